"""A measured step is a Timeline like a simulated one, and to measure it costs next to nothing."""

import time
from statistics import median

import pytest
import torch
from tests.runtime.runs import SCHEDULES, mse
from tests.runtime.zoo import batch, made
from torch import Tensor, nn

import penstock as ps
from penstock.ir.ops import COMPUTE
from penstock.runtime.measured import decode_record, encode_record
from penstock.runtime.recorder import Recorder, StepRecord
from penstock.timeline import Timeline


class Pause(torch.autograd.Function):
    """Sleeps in forward and in backward, so that a stage has known costs even on a busy machine."""

    @staticmethod
    def forward(ctx, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return grad, None


class Paused(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.weight = seconds, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return Pause.apply(x * self.weight, self.seconds)


def traced(model: nn.Module, num_ranks: int, *, steps: int = 2, m: int = 8, schedule: str = "1F1B") -> list[Timeline]:
    def rank(transport: ps.LoopbackTransport) -> list[Timeline]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=m)
        for _ in range(steps):
            pipe.step(*batch(8))
            pipe.evaluate(*batch(8))
        return pipe.trace(steps)

    first, *others = ps.run_ranks(rank, num_ranks, timeout_seconds=20)
    assert all(other == first for other in others), "every rank has the same timelines"
    return first


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_spans_are_the_programs_ops_in_order_and_waits_name_their_source(schedule: str):
    program = ps.lower(ps.named_schedule(schedule, num_ranks=3, num_microbatches=4))
    timelines = traced(made("skips"), 3, m=4, schedule=schedule)
    assert len(timelines) == 2
    for timeline in timelines:
        assert isinstance(timeline, Timeline)
        for rank, row in enumerate(timeline.by_rank):
            assert [span.op for span in row] == [op for op in program.ranks[rank] if op.kind in COMPUTE]
            moments = [moment for span in row for moment in (span.start, span.end)]
            assert moments == sorted(moments)
            assert moments[0] >= 0
        for wait in timeline.waits:
            step = -1 if wait.op.kind.name == "F" else 1
            assert wait.source == wait.rank + step
            assert wait.start <= wait.end
        assert {wait.op for wait in timeline.waits if wait.rank == 2} == {
            span.op for span in timeline.by_rank[2] if span.op.kind.name == "F"
        }
        for rank in range(3):
            shares = timeline.shares(rank)
            assert sum(shares) == pytest.approx(timeline.makespan)
            assert min(shares) >= -1e-9


@pytest.mark.parametrize("slow", [0, 1])
def test_the_fast_rank_waits_for_the_slow_one(slow: int):
    seconds = [0.001, 0.001]
    seconds[slow] = 0.008
    timeline = traced(nn.Sequential(*map(Paused, seconds)).double(), 2)[-1]
    fast = 1 - slow
    assert timeline.shares(slow).compute > 8 * 2 * 0.008
    assert timeline.shares(fast).waiting > timeline.shares(slow).waiting
    assert timeline.shares(fast).waiting > 0.5 * timeline.makespan


def test_the_measured_bubble_is_near_the_simulated_one():
    seconds = 0.01
    model = nn.Sequential(*(Paused(seconds) for _ in range(2))).double()
    timelines = [timeline for _ in range(3) for timeline in traced(model, 2, m=4)]
    timeline = min(timelines, key=lambda timeline: timeline.makespan)  # others may use the cores meanwhile
    costs = ps.StageCosts(forward=seconds, input_grad=seconds, weight_grad=0)
    planned = ps.simulate(ps.one_f_one_b(2, 4), costs)
    assert planned.bubble_fraction == pytest.approx(1 / 5)
    assert timeline.bubble_fraction == pytest.approx(planned.bubble_fraction, abs=0.1)
    assert timeline.makespan >= 0.99 * planned.makespan
    assert timeline.peak_activations == planned.peak_activations


def test_how_many_steps_are_kept():
    def rank(transport: ps.LoopbackTransport) -> list[int]:
        pipe = ps.Pipeline(made("dense"), mse, transport=transport, num_microbatches=2)
        none = pipe.trace()
        for _ in range(34):
            pipe.step(*batch(2))
        return [len(none), *(len(pipe.trace(steps)) for steps in (0, 1, 3, 99))]

    assert ps.run_ranks(rank, 2, timeout_seconds=20) == [[0, 0, 1, 3, 32]] * 2


def test_a_record_survives_the_journey():
    record = StepRecord(1.5, 2.5, [(0, 1.0, 1.25, 1.5), (7, 2.0, 2.0, 2.25)], [(3, 1.75)])
    assert decode_record(encode_record(record)) == record
    empty = StepRecord(1.0, 2.0)
    assert decode_record(encode_record(empty)) == empty


def test_to_record_an_op_costs_less_than_a_fiftieth_of_a_millisecond():
    """What the engine does for each op: three looks at the clock, and one note; and for its send one of each."""
    recorder = Recorder(torch.device("cpu"))
    rounds = []
    for _ in range(20):
        recorder.begin()
        begin = time.perf_counter()
        for position in range(500):
            asked, started = recorder.now(), recorder.now()
            recorder.current.ops.append((position, asked, started, recorder.now()))
            recorder.current.sends.append((position, recorder.now()))
        rounds.append((time.perf_counter() - begin) / 500)
        recorder.finish()
    assert median(rounds) < 0.02 * 1e-3
