"""A module that is no list of layers, cut between its blocks, gives the unsplit model's loss, outputs and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models.traced_models import MODELS, ResNet, TwoTowers, UNet, Wrapped, batch_of, loss_of, made
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import penstock as ps
from penstock.errors import BatchError, ModelError
from penstock.models import cut, from_module
from penstock.partition import Partition
from penstock.testing import reference_gradients

TARGETS = torch.linspace(0.2, 1, 4, dtype=torch.float64)
SEED = 7


def assert_like_unsplit(model: Any, inputs: Any, *, p: int, **arguments: Any) -> None:
    loss, grads = reference_gradients(model, loss_of, inputs, TARGETS, num_microbatches=2, seed=arguments.get("seed"))
    twin = copy.deepcopy(model)

    def rank(transport: ps.LoopbackTransport) -> tuple[Tensor, dict[str, Tensor]]:
        pipe = ps.Pipeline(twin, loss_of, transport=transport, num_microbatches=2, **arguments)
        return pipe.step(inputs, TARGETS), {n: v.grad for n, v in pipe.named_parameters() if v.grad is not None}

    found: dict[str, Tensor] = {}
    for each, own in ps.run_ranks(rank, p, timeout_seconds=60):
        torch.testing.assert_close(each, loss, rtol=1e-12, atol=0)
        found |= own
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-12, atol=1e-14, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("schedule", "p"), [("one_f_one_b", 4), ("zb_h1", 3), ("zb_v", 2), ("gpipe", 1)])
def test_loss_and_gradients_are_the_unsplit_models(name: str, schedule: str, p: int):
    assert_like_unsplit(made(name), batch_of(name), p=p, schedule=schedule, seed=SEED if name == "Wrapped" else None)


def test_two_directions_and_recomputation_hold_copies_of_followed_stages():
    assert_like_unsplit(made("UNet"), batch_of("UNet"), p=2, schedule="chimera")
    assert_like_unsplit(made("UNet"), batch_of("UNet"), p=3, recompute="full")
    assert_like_unsplit(made("ResNet"), batch_of("ResNet"), p=2, recompute=[r"layer\d\.0"])


def test_every_cut_gives_the_models_own_output_in_training_and_in_eval():
    for name in MODELS:
        model = made(name)
        for training in (True, False):
            model.train(training)
            layers, inputs = cut(model), batch_of(name)
            torch.manual_seed(1)
            expected = tree_leaves(layers.unsplit(inputs))
            for stages in range(1, layers.num_layers + 1):
                partition = Partition.uniform(layers.num_layers, stages)
                value = inputs
                torch.manual_seed(1)
                for stage in range(stages):
                    value = layers.stage(partition, stage)(value)
                for found, wanted in zip(tree_leaves(value), expected, strict=True):
                    assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted)), (name, stages, training)


def test_a_unit_is_a_block_and_what_follows_it_with_the_models_own_names():
    assert list(cut(made("ResNet")).layers) == ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"]
    assert list(cut(made("UNet")).layers) == ["inc", "downs.0", "downs.1", "ups.0", "ups.1", "out"]
    assert list(cut(made("Tied")).layers) == ["embed", "block.0", "norm", "block.0#2"]
    for name in MODELS:
        model = made(name)
        layers = cut(model)
        for stages in range(1, layers.num_layers + 1):
            partition = Partition.uniform(layers.num_layers, stages)
            held = {n for s in range(stages) for n in layers.stage(partition, s).state_dict()}
            assert held == set(model.state_dict())


def test_the_order_of_a_stages_parameters_is_the_models_own():
    """Symptom: replicas in several processes added one parameter's gradient to another's. Cause: the order of a set."""
    for name in ("ResNet", "TwoTowers", "UNet"):
        model = made(name)
        layers = cut(model)
        own = [n for n, _ in model.named_parameters() if "." in n]
        for stage in range(2):
            held = [n for n, _ in layers.stage(Partition.uniform(6, 2), stage).named_parameters() if "." in n]
            assert held == [n for n in own if n in held]


def test_a_skip_passes_every_boundary_between_once_and_no_other():
    layers = cut(made("UNet"))
    value, boundaries = batch_of("UNet"), []
    for stage in range(6):
        value = layers.stage(Partition.uniform(6, 6), stage)(value)
        boundaries.append({key: tuple(each.shape[1:]) for key, each in value.items()} if stage in range(1, 4) else None)
    skip, inner = (4, 10, 10), (6, 5, 5)
    assert [list(each.values()) for each in boundaries[1:4]] == [[skip, inner], [skip, inner, (8, 2, 2)], [skip, inner]]


def test_buffers_see_each_microbatch_once_and_evaluation_runs_the_eval_forward():
    model = made("Wrapped")
    oracle, inputs = copy.deepcopy(model), batch_of("Wrapped")
    reference_gradients(model, loss_of, inputs, TARGETS, num_microbatches=2, seed=SEED)
    for part in inputs.chunk(2):
        oracle.backbone(part)
    twin = copy.deepcopy(model)

    def rank(transport: ps.LoopbackTransport) -> tuple[dict[str, Any], Any]:
        pipe = ps.Pipeline(twin, loss_of, transport=transport, num_microbatches=2, seed=SEED)
        pipe.step(inputs, TARGETS)
        return pipe.state_dict(), pipe.forward(inputs, broadcast=True)

    parts = ps.run_ranks(rank, 3, timeout_seconds=60)
    state = {name: value for own, _ in parts for name, value in own.items()}
    for name, value in oracle.state_dict().items():
        assert torch.equal(state[name], value), name
    expected = torch.cat([oracle.eval()(part) for part in inputs.chunk(2)])
    torch.testing.assert_close(parts[0][1], expected, rtol=1e-12, atol=0)


def test_arguments_by_name_by_place_and_those_with_defaults():
    model, (a, b) = made("TwoTowers"), batch_of("TwoTowers")
    assert_like_unsplit(model, {"b": b, "a": a}, p=2)
    masked = from_module(model, arguments=["a", "b", "mask"])
    mask = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)[:, None]
    assert_like_unsplit(masked, (a, b, mask), p=3)
    with pytest.raises(BatchError, match=r"followed with the arguments a, b, and inputs have 3 items"):
        cut(model).stage(Partition.uniform(6, 1), 0)((a, b, mask))
    with pytest.raises(ModelError, match=r"has no 'masks'\. Did you mean \"mask\"\?"):
        from_module(model, arguments=["a", "b", "masks"])
    with pytest.raises(ModelError, match="needs b too"):
        from_module(model, arguments=["a"])


def test_blocks_may_be_chosen_by_name_expression_or_class():
    model = made("ResNet")
    assert list(from_module(model, blocks=["layer1", "layer2"]).layers) == ["stem", "layer1", "layer2", "fc"]
    assert list(from_module(model, blocks=[r"layer\d"]).layers) == ["stem", "layer1", "layer2", "fc"]
    fine = from_module(model, blocks=[nn.Conv2d, nn.BatchNorm2d])
    assert list(fine.layers)[:4] == ["stem", "layer1.0.norm", "layer1.0.conv", "layer1.1.norm"]
    assert_like_unsplit(fine, batch_of("ResNet"), p=3)
    with pytest.raises(ModelError, match=r"blocks='layer3' is no module of ResNet\. Did you mean \"layer\d\"\?"):
        from_module(model, blocks=["layer3"])


class Asking(nn.Module):
    """A module whose `if` depends on numbers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.last(y) if y.sum() > 0 else self.last(-y)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.asking = nn.Linear(5, 5), Asking(nn.Linear(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.asking(self.first(x))


@pytest.mark.parametrize("name", ["Tied", "TwoTowers"])
def test_the_norm_counts_a_parameter_of_two_stages_once(name: str):
    """Symptom: too large a norm. Cause: both stages had the parameter under the same name, and both counted it."""
    model, inputs = made(name), batch_of(name)
    _, grads = reference_gradients(model, loss_of, inputs, TARGETS, num_microbatches=2)

    def rank(transport: ps.LoopbackTransport) -> float:
        pipe = ps.Pipeline(model, loss_of, transport=transport, num_microbatches=2)
        pipe.step(inputs, TARGETS)
        return float(pipe.clip_grad_norm_(1e9))

    expected = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
    assert ps.run_ranks(rank, 3, timeout_seconds=60) == pytest.approx([expected] * 3, rel=1e-12)


def test_what_cannot_be_followed_stays_a_block_and_a_model_of_that_kind_is_refused():
    around = Around().double()
    assert list(cut(around).layers) == ["first", "asking"]
    assert_like_unsplit(around, torch.randn(4, 5, dtype=torch.float64), p=2)
    with pytest.raises(ModelError, match=r"the forward of Asking cannot be followed without numbers.* TraceError"):
        cut(Asking(nn.Linear(5, 5)))


def test_layers_left_out_and_statistics_kept_twice_are_refused():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x) + 1)

    with pytest.raises(ModelError, match=r"the forward of Idle does not use idle\.weight"):
        cut(Idle())
    with pytest.raises(ModelError, match="Twice calls norm 2 times, and it keeps running statistics"):
        cut(Twice())


def test_what_a_whole_model_does_around_its_forward_is_refused_not_lost():
    model = made("ResNet")
    with pytest.raises(ModelError, match=r"OptimizedModule .* would not run it; compile its blocks instead"):
        cut(torch.compile(model, backend="eager"))
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match="ResNet has hooks"):
        cut(model)


def test_the_model_is_not_run_and_stays_as_it_is():
    for kind in (ResNet, UNet, TwoTowers, Wrapped):
        model = kind().double()
        before = copy.deepcopy(model.state_dict())
        for each in model.children():
            each.register_forward_hook(lambda *_: pytest.fail("it ran"))
        cut(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
