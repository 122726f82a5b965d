"""An optimizer restored from named tensors takes the very steps the unbroken one takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from tests.checkpoint.ranks import alone, save
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, AdamW, NAdam, Optimizer

from penstock.checkpoint import Shard, read_manifest
from penstock.checkpoint import read_tensors as load
from penstock.checkpoint.optimizer_state import optimizer_tensors, restore_optimizer
from penstock.errors import CheckpointError

Make = Callable[[Iterable[Parameter]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda parameters: AdamW(parameters, lr=0.1),
    "AdamW amsgrad fused": lambda parameters: AdamW(parameters, lr=0.1, amsgrad=True, fused=True),
    "SGD": lambda parameters: SGD(parameters, lr=0.1),
    "SGD momentum": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
    "NAdam": lambda parameters: NAdam(parameters, lr=0.1),
    "Adagrad": lambda parameters: Adagrad(parameters, lr=0.1),
}


class Counting(Optimizer):
    """Keeps numbers, not tensors: the learning rate falls with a parameter's own count of steps."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["scale"] = state.get("scale", 1.0) / 3
                parameter.sub_(group["lr"] * state["scale"] / state["count"])


OPTIMIZERS["numbers"] = Counting


def model_at(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def names_of(model: nn.Module) -> dict[Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_resumed_optimizer_goes_on_bit_for_bit(tmp_path: Path, make: Make) -> None:
    unbroken = model_at(0)
    optimizer = make(unbroken.parameters())
    train(unbroken, optimizer, range(3))
    state = optimizer_tensors(optimizer, names_of(unbroken))
    tensors = {f"model/{name}": value for name, value in unbroken.state_dict().items()} | state
    path = save(tmp_path, Shard(tensors), step=3, rank=0, exchange=alone, keep=1, extra={})
    train(unbroken, optimizer, range(3, 6))

    resumed = model_at(1)
    loaded = load(path, read_manifest(path).tensors())
    resumed.load_state_dict(
        {name.removeprefix("model/"): value for name, value in loaded.items() if name.startswith("model/")}
    )
    fresh = make(resumed.parameters())
    restore_optimizer(fresh, names_of(resumed), tensors=loaded)
    train(resumed, fresh, range(3, 6))

    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_states_are_named_by_parameter() -> None:
    model = model_at(0)
    optimizer = AdamW(model.parameters())
    train(model, optimizer, range(1))
    tensors = optimizer_tensors(optimizer, names_of(model))
    assert set(tensors) == {
        f"optimizer/{key}/{name}" for key in ("exp_avg", "exp_avg_sq", "step") for name in names_of(model).values()
    }


def test_the_restored_state_is_a_copy_and_replaces_what_was_there() -> None:
    model = model_at(0)
    optimizer = AdamW(model.parameters())
    train(model, optimizer, range(1))
    tensors = optimizer_tensors(optimizer, names_of(model))
    before = {name: value.clone() for name, value in tensors.items()}
    restore_optimizer(optimizer, names_of(model), tensors=before)
    train(model, optimizer, range(1, 3))
    assert all(value.item() == 1 for name, value in before.items() if "/step/" in name)
    restore_optimizer(optimizer, names_of(model), tensors={})
    assert not optimizer.state


def test_a_moment_of_another_shape_is_refused() -> None:
    model = model_at(0)
    tensors = {"optimizer/exp_avg/0.weight": torch.zeros(3, 4)}
    with pytest.raises(CheckpointError, match=r'"exp_avg/0.weight" has shape \[3, 4\], its parameter \[4, 3\]'):
        restore_optimizer(AdamW(model.parameters()), names_of(model), tensors=tensors)


def test_a_state_that_is_no_tensor_is_refused_by_name() -> None:
    model = model_at(0)
    optimizer = SGD(model.parameters())
    optimizer.state[model.get_parameter("0.bias")]["history"] = ["words"]
    with pytest.raises(CheckpointError, match=r'"history" of "0\.bias" is a list'):
        optimizer_tensors(optimizer, names_of(model))
