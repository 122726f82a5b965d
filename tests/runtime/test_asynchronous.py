"""Asynchronous schedules equal one process that follows their delay rule, bit for bit in fp64 over 50 steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from tests.runtime import delay_rules as rules
from tests.runtime.runs import mse
from tests.runtime.zoo import batch, made
from torch import Tensor, nn

import penstock as ps

OPTIMIZERS: dict[str, rules.Optimizers] = {
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}
MODELS = {1: ("dense", [6]), 2: ("dense", [3, 3]), 3: ("dense", [2, 2, 2]), 4: ("attention", [1, 1, 1, 1])}
"""Number of stages -> a model and the layers of each stage."""


def microbatches(count: int) -> list[tuple[Tensor, Tensor]]:
    inputs, targets = batch(2 * count)
    return list(zip(inputs.split(2), targets.split(2), strict=True))


def run(
    schedule: ps.Schedule, optimizer: rules.Optimizers, *, model: nn.Sequential | None = None, **arguments: Any
) -> tuple[dict[str, Tensor], float, list[dict[int, int]]]:
    """Returns the weights after one call, its loss, and per rank the most versions of each stage that were held."""
    model = made("dense") if model is None else copy.deepcopy(model)
    data = batch(2 * schedule.num_microbatches)

    def rank(transport: ps.LoopbackTransport) -> tuple[dict[str, Tensor], float, dict[int, int], dict[str, Tensor]]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, optimizer=optimizer, **arguments)
        loss = pipe.step(*data)
        assert all(parameter.grad is None for parameter in pipe.parameters())
        held = {name: value.detach() for name, value in pipe.named_parameters()}
        kept = {stage: each.versions.most_kept for stage, each in pipe._steps.stages.items()}
        return pipe.state_dict(), float(loss), kept, held

    parts = ps.run_ranks(rank, schedule.num_ranks, timeout_seconds=20)
    state = {name: value for own, _, _, _ in parts for name, value in own.items()}
    assert sum(len(own) for own, _, _, _ in parts) == len(state), "a name has two owners"
    for _, _, _, held in parts:
        assert all(torch.equal(value, state[name]) for name, value in held.items()), "copies differ"
    assert len({loss for _, loss, _, _ in parts}) == 1
    return state, parts[0][1], [kept for _, _, kept, _ in parts]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


SCHEDULES: dict[str, tuple[Callable[[int], ps.Schedule], Callable[[int], rules.Rule], Sequence[int]]] = {
    "pipedream": (lambda p: ps.pipedream(p, 50), rules.stashing, (1, 2, 3, 4)),
    "vertical sync": (lambda p: ps.pipedream(p, 50, vertical_sync=True), rules.vertical_sync, (2, 4)),
    "2bw": (
        lambda p: ps.pipedream_2bw(p, 50 * p, microbatches_per_version=p),
        lambda p: rules.double_buffered(p),
        (2, 4),
    ),
}
CASES = [(name, p, "momentum") for name, (_, _, ranks) in SCHEDULES.items() for p in ranks]
CASES += [(name, 3, "adamw") for name in SCHEDULES]


@pytest.mark.parametrize(("name", "num_ranks", "optimizer"), CASES)
def test_fifty_steps_equal_the_delay_rule_in_one_process(name: str, num_ranks: int, optimizer: str) -> None:
    make, rule, _ = SCHEDULES[name]
    schedule = make(num_ranks)
    model, sizes = MODELS[num_ranks]
    found, loss, kept = run(schedule, OPTIMIZERS[optimizer], model=made(model), partition=sizes)
    expected, losses = rules.trained(
        made(model),
        mse,
        microbatches(schedule.num_microbatches),
        sizes=sizes,
        rule=rule(num_ranks),
        optimizer=OPTIMIZERS[optimizer],
    )
    assert_equal(found, expected)
    assert loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-14)
    proof = ps.verify(schedule)
    assert tuple(max(own.values()) for own in kept) == proof.weight_versions, "memory of versions as was proven"


@pytest.mark.parametrize(
    ("replicas", "optimizer"),
    [(each, "momentum") for each in ((2, 1), (1, 2), (2, 2), (1, 2, 1), (2, 1, 1))] + [((3, 1), "adamw")],
)
def test_replicated_stages_take_turns_and_step_together(replicas: tuple[int, ...], optimizer: str) -> None:
    schedule = ps.pipedream(sum(replicas), 48, replicas=replicas)
    _, sizes = MODELS[len(replicas)]
    found, _, kept = run(schedule, OPTIMIZERS[optimizer], partition=sizes)
    expected, _ = rules.trained(
        made("dense"),
        mse,
        microbatches(48),
        sizes=sizes,
        rule=rules.replicated(replicas),
        optimizer=OPTIMIZERS[optimizer],
    )
    assert_equal(found, expected)
    assert tuple(max(own.values()) for own in kept) == ps.verify(schedule).weight_versions


def test_uneven_weights_are_shares_of_the_step_that_applies_them() -> None:
    """Replicas (2, 1): one microbatch a step on the last stage, two on the first, whose weighted mean it takes."""
    weights = [1.0 + i % 3 for i in range(12)]
    data = microbatches(12)

    def weigh(target: Tensor) -> float:
        return next(weight for weight, (_, each) in zip(weights, data, strict=True) if torch.equal(each, target))

    for schedule, rule in (
        (ps.pipedream(3, 12, replicas=(2, 1)), rules.replicated((2, 1))),
        (ps.pipedream_2bw(2, 12, microbatches_per_version=3), rules.double_buffered(3)),
    ):
        found, loss, _ = run(schedule, OPTIMIZERS["momentum"], partition=[3, 3], weight_fn=weigh)
        expected, losses = rules.trained(
            made("dense"), mse, data, sizes=[3, 3], rule=rule, optimizer=OPTIMIZERS["momentum"], weights=weights
        )
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
        mean = sum(float(each) * w for each, w in zip(losses, weights, strict=True)) / sum(weights)
        assert loss == pytest.approx(mean, rel=1e-13)


@pytest.mark.parametrize(
    ("per_version", "decay", "optimizer"),
    [(1, None, "momentum"), (2, None, "adamw"), (1, 0.135, "momentum"), (2, 0.135, "adamw")],
)
def test_pipemare_meets_newer_weights_in_the_backward(per_version: int, decay: float | None, optimizer: str) -> None:
    schedule = ps.pipemare(3, 50 * per_version, microbatches_per_version=per_version)
    found, _, kept = run(schedule, OPTIMIZERS[optimizer], discrepancy_decay=decay)
    expected = rules.trained_without_stash(
        made("dense"),
        microbatches(50 * per_version),
        num_stages=3,
        per_version=per_version,
        optimizer=OPTIMIZERS[optimizer],
        decay=decay,
    )
    assert kept == [{0: 1}, {1: 1}, {2: 1}]
    assert_equal(found, expected)


def test_pipemares_learning_rates_are_those_of_the_paper_over_fifty_steps() -> None:
    """τ_k = 2(p-1-k)+1 with stages from 0; stage k steps at lr · τ_k^-(1 - min(t / T, 1))."""
    schedule, anneal = ps.pipemare(3, 50), 30
    made_before: list[torch.optim.Optimizer] = []

    def by_hand(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = OPTIMIZERS["momentum"](parameters)
        delay, taken = 2 * (2 - len(made_before)) + 1, [0]

        def rate(used: torch.optim.Optimizer, *_: object) -> None:
            used.param_groups[0]["lr"] = 0.05 * float(delay) ** -(1 - min(taken[0] / anneal, 1))
            taken[0] += 1

        optimizer.register_step_pre_hook(rate)
        made_before.append(optimizer)
        return optimizer

    found, *_ = run(
        schedule,
        OPTIMIZERS["momentum"],
        lr_scheduler=ps.pipemare_learning_rate(schedule, anneal_steps=anneal),
        discrepancy_decay=0.135,
    )
    expected = rules.trained_without_stash(
        made("dense"), microbatches(50), num_stages=3, per_version=1, optimizer=by_hand, decay=0.135
    )
    assert_equal(found, expected)


def halving(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD whose rate falls by a hundredth with each step."""
    optimizer = OPTIMIZERS["momentum"](parameters)
    optimizer.register_step_post_hook(
        lambda used, *_: used.param_groups[0].update(lr=used.param_groups[0]["lr"] * 0.99)
    )
    return optimizer


def clipping(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD that bounds the norm of its gradient, by hand."""
    optimizer = OPTIMIZERS["momentum"](parameters)

    def bound(*_: object) -> None:
        norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters))  # type: ignore[arg-type]
        for parameter in parameters:
            parameter.grad *= min(1.0, 0.3 / (float(norm) + 1e-6))

    optimizer.register_step_pre_hook(bound)
    return optimizer


VARIANTS: dict[str, tuple[rules.Optimizers, rules.Optimizers, dict[str, Any], float]] = {
    "Nesterov's look-ahead": (
        partial(ps.nesterov_look_ahead, lr=0.01),
        lambda held: torch.optim.NAdam(
            held, lr=0.01, betas=(0.99, 0.999), weight_decay=0.01, decoupled_weight_decay=True
        ),
        {},
        0,
    ),
    "a learning rate that falls": (
        OPTIMIZERS["momentum"],
        halving,
        {"lr_scheduler": lambda optimizer, _: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)},
        0,
    ),
    "clipping by stage": (ps.clip_by_stage(OPTIMIZERS["momentum"], 0.3), clipping, {}, 1e-12),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_steps_of_other_optimizers_follow_the_delay_rule_too(variant: str) -> None:
    piped, by_hand, arguments, tolerance = VARIANTS[variant]
    found, *_ = run(ps.pipedream(3, 50), piped, **arguments)
    expected, _ = rules.trained(
        made("dense"), mse, microbatches(50), sizes=[2, 2, 2], rule=rules.stashing(3), optimizer=by_hand
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)
    assert not torch.equal(plain_run()["0.weight"], found["0.weight"]), "the variant matters here"


@cache
def plain_run() -> dict[str, Tensor]:
    return run(ps.pipedream(3, 50), OPTIMIZERS["momentum"])[0]
