"""Small pipelines over loopback that train, save and go on; what they held at the end, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import penstock as ps
from penstock import checkpoint
from penstock.ir.steps import SYNCHRONOUS

WIDTH = 6
mse = nn.functional.mse_loss


class Setup(NamedTuple):
    """How a pipeline is laid out and what steps it.

    Attributes:
        num_ranks: p.
        schedule: its name or value.
        make: parameters by name -> optimizers; None where the schedule steps inside.
        schedulers: optimizer -> its scheduler.
        arguments: of the Pipeline.
    """

    num_ranks: int = 1
    schedule: Any = "naive"
    make: Callable[[dict[str, nn.Parameter]], Sequence[Optimizer]] | None = None
    schedulers: Callable[[Optimizer], Any] | None = None
    model: Callable[[int], nn.Module] | None = None
    arguments: Mapping[str, Any] = MappingProxyType({})


class Outcome(NamedTuple):
    """Losses, weights and buffers, optimizer states and learning rates, by name over all ranks."""

    losses: list[float]
    weights: dict[str, Tensor]
    states: dict[str, Any]
    rates: dict[str, float]


def eight(seed: int) -> nn.Sequential:
    """Eight layers, so that there may be eight stages."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(8))).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return tuple(torch.randn(24, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


class Rank:
    """One rank's pipeline, optimizers and schedulers."""

    def __init__(self, transport: ps.LoopbackTransport, setup: Setup, seed: int) -> None:
        model = (setup.model or eight)(seed)
        arguments = {"num_microbatches": 4, **setup.arguments}
        if isinstance(setup.schedule, ps.Schedule):
            del arguments["num_microbatches"]
        self.pipe = ps.Pipeline(model, mse, transport=transport, schedule=setup.schedule, **arguments)
        self.optimizers = list(setup.make(dict(self.pipe.named_parameters()))) if setup.make else []
        self.schedulers = [setup.schedulers(each) for each in self.optimizers] if setup.schedulers else []

    def save(self, root: Path, **more: Any) -> Path:
        return checkpoint.save(root, self.pipe, optimizer=self.optimizers, scheduler=self.schedulers, **more)

    def load(self, path: Path, **more: Any) -> checkpoint.Loaded:
        return checkpoint.load(path, self.pipe, optimizer=self.optimizers, scheduler=self.schedulers, **more)

    def train(self, steps: range) -> list[float]:
        return [self.step(step) for step in steps]

    def step(self, step: int) -> float:
        loss = self.pipe.step(*batch(step)).item()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in self.schedulers:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(loss)
            else:
                scheduler.step()
        return loss

    def held(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, float]]:
        names = {parameter: name for name, parameter in self.pipe.named_parameters()}
        states, rates = {}, {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    rates[names[parameter]] = group["lr"]
                    for key, value in optimizer.state.get(parameter, {}).items():
                        states[f"{names[parameter]}/{key}"] = value
        if self.pipe.schedule.weight_rule not in SYNCHRONOUS:
            for name, own in self.pipe.optimizer_state_dict()["parameters"].items():
                states |= {f"{name}/{key}": value for key, value in own.items()}
        return {name: value.clone() for name, value in self.pipe.state_dict().items()}, states, rates


def over_ranks(setup: Setup, work: Callable[[Rank], Any], *, seed: int = 1) -> list[Any]:
    """Returns what `work` returned on each rank."""
    return ps.run_ranks(lambda transport: work(Rank(transport, setup, seed)), setup.num_ranks, timeout_seconds=20)


def merged(parts: list[tuple[list[float], tuple[dict[str, Tensor], dict[str, Any], dict[str, float]]]]) -> Outcome:
    weights, states, rates = ({}, {}, {})  # type: ignore[var-annotated]
    for losses, (own_weights, own_states, own_rates) in parts:
        assert losses == parts[0][0]
        weights |= own_weights
        states |= own_states
        rates |= own_rates
    return Outcome(parts[0][0], weights, states, rates)


def saved_then_unbroken(root: Path, setup: Setup, *, before: int = 3, after: int = 3) -> tuple[Path, Outcome]:
    """Returns a checkpoint of step `before`, and what the run was that went on without a break."""

    def work(rank: Rank) -> tuple[Path, Any]:
        rank.train(range(before))
        path = rank.save(root)
        losses = rank.train(range(before, before + after))
        return path, (losses, rank.held())

    parts = over_ranks(setup, work)
    return parts[0][0], merged([part for _, part in parts])


def resumed(path: Path, setup: Setup, *, before: int = 3, after: int = 3) -> Outcome:
    """Returns what a run is that begins with other weights, loads `path` and goes on."""

    def work(rank: Rank) -> Any:
        assert rank.load(path).step == before
        assert rank.pipe.steps_done == before
        losses = rank.train(range(before, before + after))
        return losses, rank.held()

    return merged(over_ranks(setup, work, seed=2))


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Bit for bit."""
    assert found.losses == expected.losses
    assert found.rates == expected.rates
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name
    assert found.states.keys() == expected.states.keys()
    for name, value in expected.states.items():
        same = torch.equal(found.states[name], value) if isinstance(value, Tensor) else found.states[name] == value
        assert same, name
