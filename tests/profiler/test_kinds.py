"""Layers of one kind are found alike and run once; the model is left as it was."""

import torch
from tests.profiler.ticking import Ticking, Ticks
from torch import nn

import penstock as ps
from penstock.models import cut
from penstock.profiler.kinds import placed_layers


def kinds_of(model: nn.Module, inputs: torch.Tensor) -> list[int]:
    return [placed.kind for placed in placed_layers(cut(model), inputs)]


def test_alike_layers_are_one_kind_and_the_ends_are_their_own() -> None:
    assert kinds_of(nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))), torch.randn(2, 4)) == [0, 1, 1, 1, 2]


def test_width_setting_and_frozen_parameters_make_kinds() -> None:
    frozen = nn.Linear(4, 4).requires_grad_(False)
    layers = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False), frozen, nn.Dropout(0.1), nn.Dropout(0.2)]
    layers += [nn.Linear(4, 6), nn.Linear(6, 4)]
    kinds = kinds_of(nn.Sequential(*layers), torch.randn(2, 4))
    assert len(set(kinds)) == len(kinds)


def test_the_place_of_a_layer_makes_no_kind() -> None:
    layers = [nn.Linear(4, 4) for _ in range(4)]
    for index, layer in enumerate(layers):
        layer.layer_idx = index
    assert kinds_of(nn.Sequential(*layers), torch.randn(2, 4)) == [0, 1, 1, 2]


def test_each_kind_runs_forward_once_where_shapes_are_found() -> None:
    ticks = Ticks()
    placed_layers(cut(nn.Sequential(*(Ticking(ticks, 1, 1) for _ in range(9)))), torch.randn(2, 4))
    assert ticks.now == 3  # the first, one between, the last


def test_a_gradient_flows_through_layers_without_parameters() -> None:
    """Symptom: a stage that ends in ReLU held too much. Cause: its input was taken to need no gradient."""
    placed = placed_layers(cut(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))), torch.randn(2, 4))
    assert placed[1].output.tensors[0].needs_grad


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    stepped = []
    model[0].weight.register_post_accumulate_grad_hook(stepped.append)
    model[3].bias.grad = torch.full((4,), 7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters, state = list(model.parameters()), torch.get_rng_state()
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    ps.profile(model, inputs, inputs, loss_fn=nn.functional.mse_loss, seconds=0.01)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not stepped
    assert model[0].weight.grad is None
    assert model[3].bias.grad.tolist() == [7.0] * 4
