"""`Pipeline.run`: batch after batch without a flush equals one process that follows the delay rule, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime import delay_rules as rules
from tests.runtime.runs import Counting, Poisoning, mse
from tests.runtime.zoo import batch, made
from torch import Tensor, nn

import penstock as ps
from penstock import checkpoint
from penstock.errors import CheckpointError, HandshakeError, RankFailedError, UserError
from penstock.lowering.parts import lower_in_parts

MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
MODELS = {1: ("dense", [6]), 2: ("dense", [3, 3]), 3: ("dense", [2, 2, 2]), 4: ("attention", [1, 1, 1, 1])}
"""Number of stages -> a model and the layers of each stage."""


def batches(schedule: ps.Schedule, count: int) -> list[tuple[Tensor, Tensor]]:
    size = 2 * schedule.num_microbatches
    inputs, targets = batch(size * count)
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def microbatches(data: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [pair for xs, ys in data for pair in zip(xs.split(2), ys.split(2), strict=True)]


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for own in parts for name, value in own.items()}


def run(schedule: ps.Schedule, data: list[tuple[Tensor, Tensor]], **arguments: Any) -> tuple[Any, list[float], Any]:
    """Returns the weights after all batches, the loss of each, and per rank the most versions of a stage."""
    name, sizes = MODELS[schedule.num_stages]
    model = made(name)
    settings = {"optimizer": MOMENTUM, "partition": sizes, **arguments}

    def rank(transport: ps.LoopbackTransport) -> tuple[dict[str, Tensor], list[float], int]:
        pipe = ps.Pipeline(model, mse, transport=Poisoning(transport), schedule=schedule, **settings)
        ends = (pipe.has_first_stage, pipe.has_last_stage)
        given = [(x if ends[0] else None, y if ends[1] else None) for x, y in data]
        losses = [float(loss) for loss in pipe.run(given)]
        assert pipe.in_flight == 0
        assert pipe.steps_done == len(data)
        assert all(parameter.grad is None for parameter in pipe.parameters())
        kept = max(each.versions.most_kept for each in pipe._steps.stages.values())
        return pipe.state_dict(), losses, kept

    parts = ps.run_ranks(rank, schedule.num_ranks, timeout_seconds=20)
    assert all(losses == parts[0][1] for _, losses, _ in parts), "the same numbers on every rank"
    return merged([own for own, _, _ in parts]), parts[0][1], tuple(kept for _, _, kept in parts)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


CASES: dict[str, tuple[ps.Schedule, Callable[[int], rules.Rule], int]] = {
    "pipedream, p=3, one rank full": (ps.pipedream(3, 3), rules.stashing, 17),
    "pipedream, p=4": (ps.pipedream(4, 5), rules.stashing, 10),
    "vertical sync": (ps.pipedream(3, 4, vertical_sync=True), rules.vertical_sync, 13),
    "2bw, one version a batch": (ps.pipedream_2bw(3, 3), rules.double_buffered, 50),
    "2bw, two versions a batch": (ps.pipedream_2bw(2, 4, microbatches_per_version=2), rules.double_buffered, 25),
}


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_over_batches_equal_the_delay_rule_in_one_process(case: str) -> None:
    schedule, rule, count = CASES[case]
    data = batches(schedule, count)
    found, losses, kept = run(schedule, data)
    name, sizes = MODELS[schedule.num_stages]
    expected, each = rules.trained(
        made(name), mse, microbatches(data), sizes=sizes, rule=rule(schedule.num_ranks), optimizer=MOMENTUM
    )
    assert_equal(found, expected)
    means = torch.stack(each).reshape(count, -1).mean(dim=1).tolist()
    assert losses == pytest.approx(means, rel=1e-13)
    assert kept == ps.verify(ps.unbroken(schedule, 4)).weight_versions, "memory of versions as was proven"


def test_pipemare_goes_on_with_the_weights_that_are_there() -> None:
    schedule = ps.pipemare(3, 6, microbatches_per_version=2)
    data = batches(schedule, 17)
    expected = rules.trained_without_stash(
        made("dense"), microbatches(data), num_stages=3, per_version=2, optimizer=ADAMW
    )
    found, *_ = run(schedule, data, optimizer=ADAMW)
    assert_equal(found, expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_drain_after_any_number_of_batches_applies_all_of_them(count: int) -> None:
    """After one and two batches the pipeline does not repeat itself yet: each such drain is a program of its own."""
    schedule = ps.pipedream_2bw(3, 3)
    data = batches(schedule, count)
    found, *_ = run(schedule, data, optimizer=ADAMW)
    expected, _ = rules.trained(
        made("dense"), mse, microbatches(data), sizes=[2, 2, 2], rule=rules.double_buffered(3), optimizer=ADAMW
    )
    assert_equal(found, expected)


def test_shapes_may_change_while_microbatches_are_in_flight() -> None:
    """Microbatches of one and of three samples behind those of two: what is in flight keeps its own shapes."""
    schedule = ps.pipedream(3, 4)
    sizes = (2, 2, 1, 2, 3, 3, 2, 2, 2)
    data = [batch(4 * size, seed=at) for at, size in enumerate(sizes)]
    found, *_ = run(schedule, data)
    pieces = [
        pair
        for size, (xs, ys) in zip(sizes, data, strict=True)
        for pair in zip(xs.split(size), ys.split(size), strict=True)
    ]
    expected, _ = rules.trained(made("dense"), mse, pieces, sizes=[2, 2, 2], rule=rules.stashing(3), optimizer=MOMENTUM)
    assert_equal(found, expected)


def test_no_rank_is_told_to_wait_between_batches() -> None:
    """A drain runs at the end alone: between batches all that the schedule has in flight stays there."""
    model, schedule = made("dense"), ps.pipedream(3, 4)

    def rank(transport: ps.LoopbackTransport) -> tuple[list[int], list[int]]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, optimizer=MOMENTUM)
        given = iter(batches(schedule, 4))
        held, versions = [], []
        for _ in pipe.run(given):
            held.append(sum(len(work._in_flight) for work in pipe._stages.values()))
            versions.append(sum(len(stage.versions.kept) for stage in pipe._steps.stages.values()))
        return held, versions

    parts = ps.run_ranks(rank, 3, timeout_seconds=20)
    assert [held for held, _ in parts] == [[2, 2, 2, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert [kept for _, kept in parts] == [[2, 2, 2, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_an_evaluation_between_batches_changes_nothing_and_sees_the_newest_weights() -> None:
    model, schedule = made("dense"), ps.pipedream(3, 4)
    data = batches(schedule, 5)

    def rank(transport: ps.LoopbackTransport) -> tuple[list[tuple[float, dict[str, Tensor]]], dict[str, Tensor]]:
        pipe = ps.Pipeline(model, mse, transport=Poisoning(transport), schedule=schedule, optimizer=MOMENTUM)
        seen = []
        for _ in pipe.run(data):
            newest = {name: value.clone() for name, value in pipe.state_dict().items()}
            seen.append((float(pipe.evaluate(*data[0])), newest))
        return seen, pipe.state_dict()

    parts = ps.run_ranks(rank, 3, timeout_seconds=20)
    expected, *_ = run(schedule, data)
    assert_equal(merged([own for _, own in parts]), expected)
    for at in range(5):
        oracle = made("dense")
        oracle.load_state_dict(merged([seen[at][1] for seen, _ in parts]))
        assert parts[0][0][at][0] == pytest.approx(float(mse(oracle(data[0][0]), data[0][1]).detach()), rel=1e-12)


def test_a_loop_may_be_left_and_gone_on_with() -> None:
    model, schedule = made("dense"), ps.pipedream(2, 3)
    data = batches(schedule, 6)

    def rank(transport: ps.LoopbackTransport) -> tuple[dict[str, Tensor], list[float]]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, optimizer=MOMENTUM, partition=[3, 3])
        losses = [float(loss) for loss in islice(pipe.run(iter(data[:4])), 2)]
        assert pipe.in_flight == 3
        with pytest.raises(UserError, match="step with microbatches of run in flight; call drain first"):
            pipe.step(*data[3])
        rest = pipe.run(data[3:])
        losses += [float(next(rest)), float(next(rest)), float(next(rest))]
        losses += [float(loss) for loss in pipe.drain()]
        assert pipe.drain() == []
        return pipe.state_dict(), losses

    parts = ps.run_ranks(rank, 2, timeout_seconds=20)
    expected, losses, _ = run(schedule, data)
    assert_equal(merged([own for own, _ in parts]), expected)
    assert parts[0][1] == losses


class Statistics(nn.Module):
    """Counts its forwards in a buffer and drops half of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return nn.functional.dropout(torch.tanh(self.linear(x)), 0.5, self.training)


RESUMED: dict[str, tuple[ps.Schedule, int]] = {
    "after the first batch": (ps.pipedream(3, 3), 1),
    "after the second": (ps.pipedream(3, 4), 2),
    "in the steady phase": (ps.pipedream(4, 4), 5),
    "2bw with half a version's gradients": (ps.pipedream_2bw(3, 4, microbatches_per_version=4), 4),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_resumed_with_versions_in_flight_equals_the_unbroken_one(case: str) -> None:
    """What `in_flight_state_dict` gives is all that is in flight: weights, boundaries and gradients on their way."""
    schedule, at = RESUMED[case]
    torch.manual_seed(3)
    model = nn.Sequential(*(Statistics() for _ in range(schedule.num_stages))).double()
    size, p = 2 * schedule.num_microbatches, schedule.num_ranks
    data = [batch(size, seed=seed) for seed in range(7)]
    scheduler = {"lr_scheduler": lambda optimizer, _: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)}

    def pipeline(transport: ps.LoopbackTransport) -> ps.Pipeline:
        own = copy.deepcopy(model)
        return ps.Pipeline(
            own, mse, transport=Poisoning(transport), schedule=schedule, optimizer=ADAMW, seed=5, **scheduler
        )

    def unbroken(transport: ps.LoopbackTransport) -> tuple[Any, Any, Any]:
        pipe = pipeline(transport)
        losses, state = [], {}
        for number, loss in enumerate(pipe.run(data)):
            losses.append(float(loss))
            if pipe.in_flight == at:
                state = copy.deepcopy(
                    {
                        "model": pipe.state_dict(),
                        "optimizers": pipe.optimizer_state_dict(),
                        "in flight": pipe.in_flight_state_dict(),
                        "losses": number + 1,
                    }
                )
        return losses, pipe.state_dict(), state

    def leaving(transport: ps.LoopbackTransport) -> Any:
        """The first batch gives no loss, so the loop is left behind the last that is to be in flight."""
        pipe = pipeline(transport)
        assert not [float(loss) for loss in islice(pipe.run(data), at - 1)][at:]
        if at == 1:
            pipe._go_on(*data[0])
        return copy.deepcopy(
            {
                "model": pipe.state_dict(),
                "optimizers": pipe.optimizer_state_dict(),
                "in flight": pipe.in_flight_state_dict(),
                "losses": at - 1,
            }
        )

    whole = ps.run_ranks(unbroken, p, timeout_seconds=20)
    saved = [state for _, _, state in whole] if whole[0][2] else ps.run_ranks(leaving, p, timeout_seconds=20)

    def resumed(transport: ps.LoopbackTransport) -> tuple[list[float], dict[str, Tensor]]:
        pipe = pipeline(transport)
        own = saved[transport.rank]
        pipe.load_state_dict(own["model"])
        pipe.load_optimizer_state_dict(own["optimizers"])
        pipe.load_in_flight_state_dict(own["in flight"])
        pipe.steps_done = at
        assert pipe.in_flight == at
        losses = [float(loss) for loss in pipe.run(data[at:])]
        return losses, pipe.state_dict()

    parts = ps.run_ranks(resumed, p, timeout_seconds=20)
    assert parts[0][0] == whole[0][0][saved[0]["losses"] :]
    assert_equal(merged([own for _, own in parts]), merged([own for _, own, _ in whole]))


def test_what_cannot_go_on_is_refused_in_words() -> None:
    model = made("dense")

    def refusing(match: str, schedule: ps.Schedule, **arguments: Any) -> Callable[[ps.LoopbackTransport], None]:
        def rank(transport: ps.LoopbackTransport) -> None:
            pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, **arguments)
            with pytest.raises(UserError, match=match):
                pipe.run([])

        return rank

    flush = refusing("one_f_one_b has a flush at the end of each step.*call step", ps.one_f_one_b(2, 4))
    ps.run_ranks(flush, 2, timeout_seconds=20)
    turns = ps.pipedream(3, 4, replicas=(2, 1))
    replicated = refusing("replicated stages ends each batch with a flush; call step", turns, optimizer=MOMENTUM)
    ps.run_ranks(replicated, 3, timeout_seconds=20)

    def latest(transport: ps.LoopbackTransport) -> None:
        schedule = ps.pipemare(2, 4)
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, optimizer=MOMENTUM)
        next(pipe.run(batches(schedule, 3)))
        with pytest.raises(UserError, match="keeps no weights of forwards in flight; call drain first"):
            pipe.in_flight_state_dict()

    ps.run_ranks(latest, 2, timeout_seconds=20)


def test_ranks_with_unequal_numbers_of_batches_are_named() -> None:
    model, schedule = made("dense"), ps.pipedream(2, 3)
    data = batches(schedule, 4)

    def rank(transport: ps.LoopbackTransport) -> str:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, optimizer=MOMENTUM)
        given: Iterator[tuple[Tensor, Tensor]] = iter(data if transport.rank else data[:3])
        with pytest.raises((HandshakeError, RankFailedError)) as caught:
            list(pipe.run(given))
        return str(caught.value)

    told = ps.run_ranks(rank, 2, timeout_seconds=5)
    assert "rank 1 takes a further batch (its call 4) and rank 0 has no further batch" in told[1]
    assert "give run as many batches on every rank" in told[0]


def test_a_batch_that_does_not_fit_ends_the_run_on_every_rank_with_its_reason() -> None:
    model, schedule = made("dense"), ps.pipedream(3, 4)
    data = batches(schedule, 4)
    odd = (data[0][0][:3], data[0][1][:3])
    short = (data[0][0], data[0][1][:4])

    def rank(transport: ps.LoopbackTransport, bad: tuple[Tensor, Tensor]) -> str:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, optimizer=MOMENTUM)
        with pytest.raises((UserError, RankFailedError)) as caught:
            list(pipe.run([*data[:2], bad]))
        return str(caught.value)

    assert all("a batch of 3 samples does not divide" in told for told in ps.run_ranks(partial(rank, bad=odd), 3))
    sizes = "inputs on rank 0 hold 8 samples and targets on rank 2 hold 4; give as many of both"
    assert all(sizes in told for told in ps.run_ranks(partial(rank, bad=short), 3))


def test_nothing_more_is_sent_once_shapes_are_known() -> None:
    """A batch sends one message a boundary and microbatch, and a row to each rank: of the call, and of the loss."""
    model, schedule = made("dense"), ps.pipedream(3, 4)
    data = batches(schedule, 8)

    def rank(transport: ps.LoopbackTransport) -> list[int]:
        counting = Counting(transport)
        pipe = ps.Pipeline(model, mse, transport=counting, schedule=schedule, optimizer=MOMENTUM)
        sent = []
        for _ in pipe.run(data):
            sent.append(len(counting.sent))
        return [after - before for before, after in pairwise(sent)]

    parts = ps.run_ranks(rank, 3, timeout_seconds=20)
    assert [counts[3:6] for counts in parts] == [[4 + 2] * 3, [8] * 3, [4 + 2] * 3]


def test_rings_are_no_larger_than_one_long_schedule_needs() -> None:
    for schedule in (ps.pipedream(4, 6), ps.pipemare(3, 6)):
        parts = lower_in_parts(schedule, 3)
        long = ps.verify(ps.unbroken(schedule, 6)).receive_slots
        assert dict(ps.verify(parts.program).receive_slots).keys() == dict(long).keys()
        for channel, slots in ps.verify(parts.program).receive_slots:
            assert slots <= dict(long)[channel] + 1


def test_a_checkpoint_holds_what_is_in_flight_and_opens_in_the_same_layout_alone(tmp_path: Path) -> None:
    schedule = ps.pipedream(3, 3)
    data = batches(schedule, 7)

    def pipeline(transport: ps.LoopbackTransport, schedule: ps.Schedule = schedule) -> ps.Pipeline:
        return ps.Pipeline(made("dense"), mse, transport=transport, schedule=schedule, optimizer=ADAMW)

    def saving(transport: ps.LoopbackTransport) -> tuple[list[float], dict[str, Tensor]]:
        pipe = pipeline(transport)
        losses = []
        for loss in pipe.run(data):
            losses.append(float(loss))
            if pipe.steps_done == 4 and pipe.in_flight == 4:
                checkpoint.save(tmp_path, pipe)
        return losses, pipe.state_dict()

    def going_on(transport: ps.LoopbackTransport) -> tuple[list[float], dict[str, Tensor]]:
        pipe = pipeline(transport)
        assert checkpoint.load(checkpoint.latest(tmp_path), pipe).step == 4
        losses = [float(loss) for loss in pipe.run(data[4:])]
        return losses, pipe.state_dict()

    def elsewhere(transport: ps.LoopbackTransport) -> None:
        pipe = pipeline(transport, ps.pipedream(2, 3))
        with pytest.raises(CheckpointError, match="with microbatches of run in flight on 3 ranks; load it into"):
            checkpoint.load(checkpoint.latest(tmp_path), pipe)

    whole = ps.run_ranks(saving, 3, timeout_seconds=20)
    resumed = ps.run_ranks(going_on, 3, timeout_seconds=20)
    assert resumed[0][0] == whole[0][0][3:], "the fourth batch was in flight, and its loss not given yet"
    assert_equal(merged([own for _, own in resumed]), merged([own for _, own in whole]))
    ps.run_ranks(elsewhere, 2, timeout_seconds=20)


def test_trace_gives_one_timeline_of_the_last_batches_in_a_row() -> None:
    model, schedule = made("dense"), ps.pipedream(2, 4)
    data = batches(schedule, 6)

    def rank(transport: ps.LoopbackTransport) -> list[ps.Timeline]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, optimizer=MOMENTUM, partition=[3, 3])
        list(pipe.run(data))
        return [*pipe.trace(4), *pipe.trace(32)]

    (last, whole), (_, same) = ps.run_ranks(rank, 2, timeout_seconds=20)
    assert whole == same
    for timeline, fewest in ((last, 2), (whole, 4)):
        for row in timeline.by_rank:
            forwards = [span.op.microbatch for span in row if span.op.kind == ps.OpKind.F]
            assert forwards == list(range(forwards[0], forwards[0] + len(forwards))), "in order, none left out"
            assert len(forwards) >= fewest * 4
            assert 0 <= row[0].start <= row[-1].end <= timeline.makespan
    assert last.makespan < whole.makespan
