"""zb_auto: the zero-bubble schedule found for costs and a memory limit."""

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Cluster, Device, Link, Op, OpKind, StageCosts, simulate, verify, zb_auto, zb_h1, zb_h2
from penstock.errors import ScheduleError, UserError

SMALL = json.loads(Path(__file__).parents[1].joinpath("reference/zero_bubble_small.json").read_text())["rows"]

GRIDS = {
    (3, 4, 1): """
        rank 0: F0 .  .  .  .  I0 W0 F1 .  .  .  .  I1 W1 F2 .  .  .  .  I2 W2 F3 .  .  .  .  I3 W3
        rank 1: .  F0 .  .  I0 W0 .  .  F1 .  .  I1 W1 .  .  F2 .  .  I2 W2 .  .  F3 .  .  I3 W3 .
        rank 2: .  .  F0 I0 W0 .  .  .  .  F1 I1 W1 .  .  .  .  F2 I2 W2 .  .  .  .  F3 I3 W3 .  .
    """,
    (3, 5, 4): """
        rank 0: F0 F1 F2 F3 .  I0 W0 F4 I1 W1 I2 W2 I3 W3 I4 W4 .
        rank 1: .  F0 F1 F2 I0 F3 I1 W0 I2 F4 I3 W1 W2 I4 W3 W4 .
        rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 W2 W3 W4
    """,
    (3, 6, 6): """
        rank 0: F0 F1 F2 F3 F4 I0 F5 W0 I1 W1 I2 W2 I3 W3 I4 W4 I5 W5 .  .
        rank 1: .  F0 F1 F2 I0 F3 I1 F4 I2 F5 I3 W0 I4 W1 I5 W2 W3 W4 W5 .
        rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 F5 I5 W0 W1 W2 W3 W4 W5
    """,
}
"""p, m and the limit in microbatches."""


def peak_of(ops: Sequence[Op], activation: float, deferred: float) -> float:
    """Returns the most that F and I keep at once."""
    changes = {OpKind.F: activation, OpKind.I: deferred - activation, OpKind.W: -deferred}
    held = peak = 0.0
    for op in ops:
        held += changes[op.kind]
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "limit"), GRIDS)
def test_zb_auto_is_drawn_so(num_ranks: int, num_microbatches: int, limit: int) -> None:
    found = zb_auto(num_ranks, num_microbatches, memory_limit=limit)
    assert rows(found) == drawn(GRIDS[num_ranks, num_microbatches, limit])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(zb_auto) == rows(zb_auto(3, 5, memory_limit=4))


def test_by_default_a_rank_may_hold_p_microbatches_until_their_w() -> None:
    for p, m in product(range(1, 5), range(1, 8)):
        assert zb_auto(p, m) == zb_auto(p, m, memory_limit=p) == zb_auto(p, m, costs=StageCosts(), memory_limit=[p] * p)
        in_bytes = StageCosts(activation_bytes=10, deferred_bytes=10)
        assert zb_auto(p, m) == zb_auto(p, m, costs=in_bytes) == zb_auto(p, m, costs=in_bytes, memory_limit=10 * p)


@pytest.mark.parametrize(("forward", "input_grad", "weight_grad"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (5, 4, 3)])
def test_the_closed_forms_of_zb_auto_hold_exactly(forward: int, input_grad: int, weight_grad: int) -> None:
    costs = StageCosts(forward=forward, input_grad=input_grad, weight_grad=weight_grad)
    for p, m in product(range(1, 6), range(1, 11)):
        ideal = m * (forward + input_grad + weight_grad)
        timeline = simulate(zb_auto(p, m, costs=costs), costs)
        assert timeline.makespan == timeline.per_rank_span == simulate(zb_h1(p, m), costs).makespan
        if m >= p:
            assert timeline.makespan == ideal + (p - 1) * (forward + input_grad - weight_grad)
        if m >= 2 * p:
            span = simulate(zb_auto(p, m, costs=costs, memory_limit=2 * p - 1), costs).per_rank_span
            assert ideal <= span <= ideal + (p - 1) * (forward + input_grad - 2 * weight_grad)
            assert simulate(zb_h2(p, m), costs).per_rank_span >= span


@pytest.mark.parametrize("row", SMALL, ids=lambda row: "-".join(str(value) for value in row.values()))
def test_small_pipelines_come_out_as_the_papers_scheduler_has_them(row: dict[str, Any]) -> None:
    costs = StageCosts(
        forward=row["forward"],
        input_grad=row["input_grad"],
        weight_grad=row["weight_grad"],
        activation_bytes=row["activation"],
        deferred_bytes=row["deferred"],
    )
    cluster = Cluster.uniform(row["p"], latency_seconds=row["transfer"])
    schedule = zb_auto(row["p"], row["m"], costs=costs, cluster=cluster, memory_limit=row["memory_limit"])
    timeline = simulate(schedule, costs, cluster)
    assert (timeline.per_rank_span, timeline.makespan) == (row["heuristic_span"], row["heuristic_makespan"])
    assert timeline.per_rank_span >= row["best_span"]
    assert max(timeline.peak_memory) <= row["memory_limit"]


@st.composite
def uneven(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of zb_auto with other costs, and another limit, on every rank; W may keep more than F."""
    p = draw(st.integers(1, 5))

    def numbers(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=p, max_size=p))

    costs = StageCosts(
        forward=numbers(0, 9),
        input_grad=numbers(0, 9),
        weight_grad=numbers(0, 9),
        activation_bytes=(activation := numbers(1, 5)),
        deferred_bytes=(deferred := numbers(0, 7)),
        boundary_bytes=numbers(0, 3),
    )
    needs = map(max, activation, deferred)
    limits = [need * times + more for need, times, more in zip(needs, numbers(1, 2 * p), numbers(0, 3), strict=True)]
    link = Link(draw(st.sampled_from([0, 1])), draw(st.sampled_from([1, math.inf])))
    cluster = Cluster((Device(),) * p, ((p, link),))
    return {
        "num_ranks": p,
        "num_microbatches": draw(st.integers(1, 8)),
        "costs": costs,
        "cluster": cluster,
        "memory_limit": limits,
    }


@settings(max_examples=50)
@given(arguments=uneven())
def test_any_costs_and_any_limit_that_one_microbatch_meets_give_a_schedule_within_it(arguments: dict[str, Any]) -> None:
    schedule = zb_auto(**arguments)
    verify(schedule)
    costs, p = arguments["costs"], schedule.num_ranks
    kept = zip(
        schedule.ranks, costs.per_stage("activation_bytes", p), costs.per_stage("deferred_bytes", p), strict=True
    )
    peaks = [peak_of(ops, activation, deferred) for ops, activation, deferred in kept]
    assert all(peak <= limit for peak, limit in zip(peaks, arguments["memory_limit"], strict=True))


@settings(max_examples=50)
@given(
    num_ranks=st.integers(1, 5),
    num_microbatches=st.integers(1, 12),
    times=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    deferred=st.integers(0, 4),
)
def test_in_the_memory_of_zb_h1_it_is_never_slower(
    num_ranks: int, num_microbatches: int, times: tuple[int, int, int], deferred: int
) -> None:
    """Also where W takes longer than F, which the closed forms leave out."""
    forward, input_grad, weight_grad = times
    costs = StageCosts(
        forward=forward, input_grad=input_grad, weight_grad=weight_grad, activation_bytes=4, deferred_bytes=deferred
    )
    found, fixed = (
        simulate(schedule, costs)
        for schedule in (zb_auto(num_ranks, num_microbatches, costs=costs), zb_h1(num_ranks, num_microbatches))
    )
    assert found.per_rank_span <= fixed.per_rank_span
    assert max(found.peak_memory) <= 4 * num_ranks


def test_a_limit_of_one_rank_holds_there_alone() -> None:
    first, second, *_ = (peak_of(ops, 1, 1) for ops in zb_auto(4, 8, memory_limit=[7, 3, 7, 7]).ranks)
    assert second == 3 < first <= 7


def test_the_speed_of_devices_and_the_time_of_boundaries_count() -> None:
    """Both ways to say the same give the same; saying nothing of it does not."""
    costs = StageCosts(forward=4, input_grad=6, weight_grad=2, boundary_bytes=6)
    slow_middle = Cluster((Device(), Device(speed=0.5), Device()), ((3, Link(1, 3)),))
    said = StageCosts(forward=[4, 8, 4], input_grad=[6, 12, 6], weight_grad=[2, 4, 2])
    expected = zb_auto(3, 8, costs=said, cluster=Cluster.uniform(3, latency_seconds=3), memory_limit=5)
    assert zb_auto(3, 8, costs=costs, cluster=slow_middle, memory_limit=5) == expected
    assert zb_auto(3, 8, costs=costs, memory_limit=5) != expected


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (
            0.5,
            "memory_limit=0.5 on rank 0, where one microbatch takes 1; no schedule meets that, use 1 or more: 4 idles "
            "as little as zb_h1",
        ),
        (-1, "memory_limit=-1 on rank 0, where one microbatch takes 1;"),
        ([4, 4, 0, 4], "memory_limit=0 on rank 2, where one microbatch takes 1;"),
        (math.nan, "memory_limit=nan on rank 0, where one microbatch takes 1;"),
        ([4, 4], "memory_limit has 2 values for 4 ranks; give one number a rank"),
        (True, "memory_limit=True is not a number; use e.g. 4"),
        (["4"] * 4, "memory_limit='4' is not a number; use e.g. 4"),
    ],
)
def test_a_limit_that_no_schedule_meets_is_refused(limit: Any, said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        zb_auto(4, 8, memory_limit=limit)
    assert str(refused.value).startswith(f"zb_auto: {said}")


def test_a_limit_below_what_waits_for_w_is_refused() -> None:
    costs = StageCosts(activation_bytes=[2, 2], deferred_bytes=[1, 3])
    with pytest.raises(ScheduleError, match="memory_limit=2 on rank 1, where one microbatch takes 3"):
        zb_auto(2, 4, costs=costs, memory_limit=2)
    verify(zb_auto(2, 4, costs=costs, memory_limit=[2, 3]))


def test_costs_that_know_the_full_backward_only_are_refused() -> None:
    """What `measured_costs` says of a run of 1F1B."""
    with pytest.raises(ScheduleError, match="the costs know the full backward only; measure a schedule that splits it"):
        zb_auto(2, 4, costs=StageCosts(forward=1, backward=2, input_grad=0, weight_grad=0))


def test_costs_or_a_cluster_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="forward has 3 values for 2 stages"):
        zb_auto(2, 4, costs=StageCosts(forward=[1, 2, 3]))
    with pytest.raises(ScheduleError, match="zb_auto: the cluster has 3 devices for 2 ranks; give one a rank"):
        zb_auto(2, 4, cluster=Cluster.uniform(3))
