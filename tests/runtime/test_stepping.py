"""Optimizers inside the schedule: what they are given, what is refused, what a run needs to go on."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from tests.runtime.runs import mse
from tests.runtime.zoo import batch, made
from torch import Tensor, nn

import penstock as ps
from penstock.errors import HandshakeError, UserError

ADAMW = partial(torch.optim.AdamW, lr=0.01)


def pipeline(transport: ps.LoopbackTransport, model: Any, schedule: ps.Schedule, **arguments: Any) -> ps.Pipeline:
    return ps.Pipeline(model, mse, transport=transport, schedule=schedule, **{"optimizer": ADAMW, **arguments})


@pytest.mark.parametrize(
    ("schedule", "arguments"),
    [
        (ps.pipedream(2, 6), {}),
        (ps.pipedream(3, 6, replicas=(2, 1)), {"partition": [3, 3]}),
        (ps.pipedream_2bw(2, 6), {}),
        (ps.pipemare(3, 6), {"discrepancy_decay": 0.135}),
    ],
    ids=["pipedream", "replicated stages", "2bw", "pipemare"],
)
def test_a_resumed_run_equals_the_unbroken_one(schedule: ps.Schedule, arguments: dict[str, Any]) -> None:
    """Between two calls nothing is in flight: the weights and what the optimizers hold are all there is."""
    calls = [batch(12, seed=seed) for seed in range(4)]
    scheduler = {"lr_scheduler": lambda optimizer, _: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}

    def rank(transport: ps.LoopbackTransport, model: Any, *, state: Any, data: Any) -> tuple[Any, Any]:
        pipe = pipeline(transport, model, schedule, **arguments, **scheduler)
        if state:
            pipe.load_state_dict(state[0])
            pipe.load_optimizer_state_dict(state[1])
        for each in data:
            pipe.step(*each)
        own = {name: value.clone() for name, value in pipe.state_dict().items()}
        return own, pipe.optimizer_state_dict()

    def run(state: Any, data: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        function = partial(rank, model=made("dense"), state=state, data=data)
        parts = ps.run_ranks(function, schedule.num_ranks, timeout_seconds=20)
        weights = {name: value for own, _ in parts for name, value in own.items()}
        settings = {
            key: {name: value for _, each in parts for name, value in each[key].items()}
            for key in ("parameters", "stages")
        }
        return weights, settings

    whole, _ = run(None, calls)
    resumed, _ = run(run(None, calls[:2]), calls[2:])
    forgetful, _ = run((run(None, calls[:2])[0], run(None, [])[1]), calls[2:])
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not all(torch.equal(forgetful[name], value) for name, value in whole.items()), "moments matter here"


def test_pipemare_scales_old_gradients_down_and_anneals() -> None:
    """p=3, n=2: τ = 5/2, 3/2, 1/2; the last stage's delay is below a step and leaves its rate."""
    schedule = ps.pipemare(3, 8, microbatches_per_version=2)
    assert ps.pipemare_delays(schedule) == (2.5, 1.5, 0.5)
    scheduler = ps.pipemare_learning_rate(schedule, anneal_steps=4)
    rates: dict[int, list[float]] = {}

    def noting(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    def record(optimizer: torch.optim.Optimizer, stage: int) -> Any:
        rates[stage] = []
        optimizer.register_step_pre_hook(lambda used, *_: rates[stage].append(used.param_groups[0]["lr"]))
        return scheduler(optimizer, stage)

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = pipeline(transport, made("dense"), schedule, optimizer=noting, lr_scheduler=record)
        for _ in range(2):
            pipe.step(*batch(8))

    ps.run_ranks(rank, 3, timeout_seconds=20)
    quarters = [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    assert rates[0] == pytest.approx([2.5**-q for q in quarters])
    assert rates[1] == pytest.approx([1.5**-q for q in quarters])
    assert rates[2] == [1.0] * 8


def test_the_nesterov_variant_is_nadamw_with_a_long_momentum() -> None:
    layer = nn.Linear(2, 2)
    (group,) = ps.nesterov_look_ahead(list(layer.parameters()), lr=0.1).param_groups
    assert group["betas"] == (0.99, 0.999)
    assert group["decoupled_weight_decay"]


def test_frozen_layers_and_stages_without_parameters_are_no_trouble() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    model[0].requires_grad_(False)
    start = copy.deepcopy(model).state_dict()

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = pipeline(transport, model, ps.pipedream(4, 8))
        pipe.step(*batch(8))
        return pipe.state_dict()

    state = {name: value for own in ps.run_ranks(rank, 4, timeout_seconds=20) for name, value in own.items()}
    moved = {name for name, value in state.items() if not torch.equal(value, start[name])}
    assert moved == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_an_evaluation_between_steps_sees_the_newest_weights() -> None:
    model, (inputs, targets) = made("dense"), batch(12)

    def rank(transport: ps.LoopbackTransport) -> tuple[float, dict[str, Tensor]]:
        pipe = pipeline(transport, model, ps.pipedream(3, 6))
        pipe.step(inputs, targets)
        return float(pipe.evaluate(inputs, targets)), pipe.state_dict()

    parts = ps.run_ranks(rank, 3, timeout_seconds=20)
    oracle = made("dense")
    oracle.load_state_dict({name: value for _, own in parts for name, value in own.items()})
    assert parts[0][0] == pytest.approx(float(mse(oracle(inputs), targets).detach()), rel=1e-12)


def failing(parameters: Any) -> torch.optim.Optimizer:
    raise ZeroDivisionError("no optimizer today")


REFUSED: list[tuple[str, ps.Schedule, dict[str, Any]]] = [
    (r"pipedream steps the weights inside the schedule; pass optimizer=", ps.pipedream(2, 4), {"optimizer": None}),
    (r"optimizer is a int; give a function", ps.pipedream(2, 4), {"optimizer": 3}),
    (r"optimizer= is for schedules that step inside.* gpipe leaves", ps.gpipe(2, 4), {}),
    (r"lr_scheduler= is for", ps.gpipe(2, 4), {"optimizer": None, "lr_scheduler": lambda o, s: None}),
    (r"discrepancy_decay=1\.5; use a number between 0 and 1", ps.pipemare(2, 4), {"discrepancy_decay": 1.5}),
    (r"under pipedream \(weight rule stash\) none does", ps.pipedream(2, 4), {"discrepancy_decay": 0.1}),
]


@pytest.mark.parametrize(("text", "schedule", "arguments"), REFUSED, ids=[text[:30] for text, _, _ in REFUSED])
def test_what_would_not_step_is_refused_on_every_rank(
    text: str, schedule: ps.Schedule, arguments: dict[str, Any]
) -> None:
    def rank(transport: ps.LoopbackTransport) -> bool:
        with pytest.raises(UserError, match=text):
            pipeline(transport, made("dense"), schedule, **arguments)
        return True

    assert ps.run_ranks(rank, 2, timeout_seconds=5) == [True, True]


def test_an_optimizer_that_cannot_be_made_on_one_rank_is_told_to_all() -> None:
    def rank(transport: ps.LoopbackTransport) -> str:
        with pytest.raises((ZeroDivisionError, HandshakeError)) as caught:
            pipeline(transport, made("dense"), ps.pipedream(2, 4), optimizer=failing if transport.rank else ADAMW)
        return str(caught.value)

    told = ps.run_ranks(rank, 2, timeout_seconds=5)
    assert told == ["rank 1: ZeroDivisionError: no optimizer today", "no optimizer today"]


def test_clipping_and_the_loops_own_optimizer_state_are_refused_in_words() -> None:
    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = pipeline(transport, made("dense"), ps.pipedream(2, 4))
        with pytest.raises(UserError, match="pipedream steps inside, and no gradient is left to clip"):
            pipe.clip_grad_norm_(1.0)
        with pytest.raises(UserError, match=r"the optimizer state has no .*which stage"):
            pipe.load_optimizer_state_dict({})
        with pytest.raises(UserError, match=r"loss_scale=2\.0 and pipedream, which steps inside.* e\.g\. bfloat16"):
            pipe.step(*batch(4), loss_scale=2.0)
        pipe.step(*batch(4))

    def flushing(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(made("dense"), mse, transport=transport, num_microbatches=2)
        with pytest.raises(UserError, match="save the loop's own optimizer"):
            pipe.optimizer_state_dict()

    ps.run_ranks(rank, 2, timeout_seconds=20)
    ps.run_ranks(flushing, 2, timeout_seconds=20)
