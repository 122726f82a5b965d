"""zb_v_greedy: W of a V placed for costs and a memory limit."""

import json
import math
from collections import Counter
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import (
    Cluster,
    Device,
    Link,
    OpKind,
    Schedule,
    StageCosts,
    one_f_one_b,
    simulate,
    verify,
    zb_h1,
    zb_h2,
    zb_v,
    zb_v_greedy,
)
from penstock.errors import ScheduleError

Row = dict[str, Any]
REFERENCE = Path(__file__).parents[1] / "reference"
TABLE_8: list[Row] = json.loads(REFERENCE.joinpath("zero_bubble_v.json").read_text())["rows"]
CONTROLLABLE: list[Row] = json.loads(REFERENCE.joinpath("controllable_memory.json").read_text())["rows"]

HALF = StageCosts(forward=10, input_grad=12, weight_grad=8, activation_bytes=2, deferred_bytes=1)
"""W is the shortest and keeps half of what F does."""


def order_of_f_and_i(schedule: Schedule) -> list[list[str]]:
    return [[str(op) for op in ops if op.kind != OpKind.W] for ops in schedule.ranks]


def peaks(schedule: Schedule, costs: StageCosts) -> list[float]:
    """Returns the most that F and I keep on each rank at once, after any op."""
    kept = costs.per_stage("activation_bytes", schedule.num_stages)
    deferred = costs.per_stage("deferred_bytes", schedule.num_stages)
    found = []
    for ops in schedule.ranks:
        live: Counter[int] = Counter()
        waiting: Counter[int] = Counter()
        most: float = 0
        for op in ops:
            live[op.stage] += {OpKind.F: 1, OpKind.I: -1}.get(op.kind, 0)
            waiting[op.stage] += {OpKind.I: 1, OpKind.W: -1}.get(op.kind, 0)
            most = max(most, sum(live[stage] * kept[stage] + waiting[stage] * deferred[stage] for stage in live))
        found.append(most)
    return found


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(zb_v_greedy) == rows(zb_v_greedy(3, 5))


def test_it_is_drawn_so() -> None:
    assert rows(zb_v_greedy(2, 4, costs=HALF)) == drawn("""
        rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 0I2 3W3 0W2 0I3 0W3 .
        rank 1: .   1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 1I2 2I3 1I3 2W2 1W2 2W3 1W3
    """)


def test_with_more_memory_it_is_drawn_so() -> None:
    cluster = Cluster.uniform(2, latency_seconds=1)
    assert rows(zb_v_greedy(2, 4, cluster=cluster, memory_limit=6)) == drawn("""
        rank 0: 0F0 0F1 0F2 0F3 3F0 3I0 3F1 3I1 3W0 3W1 3F2 0I0 3I2 0W0 3W2 3F3 0I1 3I3 0I2 0W1 3W3 0W2 0I3 0W3 .
        rank 1: .   1F0 2F0 1F1 2F1 1F2 2I0 2F2 1I0 2W0 1F3 2I1 1W0 2F3 1I1 2I2 1I2 2W1 1W1 2I3 1I3 2W2 1W2 2W3 1W3
    """)


@pytest.mark.parametrize("row", TABLE_8, ids=lambda row: f"m={row['m']}")
def test_the_bubbles_of_table_8_come_out_to_the_published_digits(row: Row) -> None:
    p, m, deferred = row["p"], row["m"], row["deferred"]
    times = row["forward_us"], row["input_grad_us"], row["weight_grad_us"]
    cluster = Cluster.uniform(p, latency_seconds=row["transfer_us"])
    ideal = 2 * m * sum(times)

    costs = StageCosts(*times, activation_bytes=1, deferred_bytes=deferred)
    timeline = simulate(zb_v_greedy(p, m, costs=costs, cluster=cluster), costs, cluster)
    assert timeline.per_rank_span == row["zb_v_cost_us"]
    assert round(1 - ideal / timeline.per_rank_span, 4) == row["published_bubble"]["ZB-V"]
    assert max(timeline.peak_memory) <= 2 * p

    both_chunks = StageCosts(*(2 * time for time in times))
    for name, generate, is_span in (("1F1B", one_f_one_b, False), ("ZB-H1", zb_h1, False), ("ZB-H2", zb_h2, True)):
        timeline = simulate(generate(p, m), both_chunks, cluster)
        cost = timeline.per_rank_span if is_span else timeline.makespan
        assert round(1 - ideal / cost, 4) == row["published_bubble"][name]


@pytest.mark.parametrize("row", CONTROLLABLE, ids=lambda row: "-".join(str(row[key]) for key in list(row)[:6]))
@pytest.mark.parametrize("deferred", [0.432432, 1])
def test_the_zb_v_of_the_controllable_memory_paper_comes_out_exactly(row: Row, deferred: float) -> None:
    times = row["forward"], row["input_grad"], row["weight_grad"]
    costs = StageCosts(*times, activation_bytes=1, deferred_bytes=deferred)
    cluster = Cluster.uniform(row["p"], latency_seconds=row["transfer"])
    timeline = simulate(zb_v_greedy(row["p"], row["m"], costs=costs, cluster=cluster), costs, cluster)
    assert timeline.per_rank_span == row["zb_v_greedy"]["span"]
    assert round(1 - 2 * row["m"] * sum(times) / timeline.per_rank_span, 6) == row["zb_v_greedy"]["bubble"]
    assert max(timeline.peak_memory) / 2 == row["zb_v_greedy"]["peak"]


def test_for_equal_times_there_is_no_bubble_at_p_microbatches_on_every_rank() -> None:
    costs = StageCosts(activation_bytes=1, deferred_bytes=1)
    for p, m in product(range(1, 6), range(1, 13)):
        timeline = simulate(zb_v_greedy(p, m), costs)
        assert timeline.per_rank_span <= simulate(zb_v(p, m), costs).per_rank_span
        if m >= 2 * p - 1:
            assert timeline.per_rank_span == 6 * m
            assert timeline.makespan == 6 * m + p - 1
            assert timeline.peak_memory == (2 * p,) * p


@settings(max_examples=30)
@given(
    num_ranks=st.integers(1, 5),
    num_microbatches=st.integers(1, 12),
    times=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    transfer=st.integers(0, 9),
)
def test_at_p_microbatches_f_and_i_run_in_the_order_of_zb_v_whatever_the_times(
    num_ranks: int, num_microbatches: int, times: tuple[int, int, int], transfer: int
) -> None:
    cluster = Cluster.uniform(num_ranks, latency_seconds=transfer)
    found = zb_v_greedy(num_ranks, num_microbatches, costs=StageCosts(*times), cluster=cluster)
    assert order_of_f_and_i(found) == order_of_f_and_i(zb_v(num_ranks, num_microbatches))


def test_w_that_fill_gaps_shorten_the_span_of_zb_v() -> None:
    def bubble(schedule: Schedule) -> float:
        return simulate(schedule, HALF).per_rank_span - 2 * schedule.num_microbatches * 30

    assert [bubble(zb_v(p, 3 * p)) for p in range(1, 6)] == [0, 8, 16, 24, 32]
    assert [bubble(zb_v_greedy(p, 3 * p, costs=HALF)) for p in range(1, 6)] == [0, 4, 12, 16, 24]


@pytest.mark.parametrize(
    ("num_ranks", "num_microbatches", "times", "transfer", "span"),
    [(2, 3, (5, 6, 4), 5, 119), (3, 4, (4, 5, 6), 2, 138), (4, 6, (4, 5, 6), 5, 255)],
)
def test_each_combination_of_rules_wins_somewhere(
    num_ranks: int, num_microbatches: int, times: tuple[int, int, int], transfer: int, span: int
) -> None:
    """W before gaps at I only, at F only, nowhere; both places give 120, 139 and 260."""
    costs = StageCosts(*times, activation_bytes=2, deferred_bytes=1)
    cluster = Cluster.uniform(num_ranks, latency_seconds=transfer)
    found = zb_v_greedy(num_ranks, num_microbatches, costs=costs, cluster=cluster)
    assert simulate(found, costs, cluster).per_rank_span == span


def test_it_is_a_heuristic_and_zb_v_may_idle_less() -> None:
    costs = StageCosts(forward=4, input_grad=5, weight_grad=6, activation_bytes=2, deferred_bytes=2)
    assert simulate(zb_v_greedy(5, 9, costs=costs), costs).per_rank_span == 279
    assert simulate(zb_v(5, 9), costs).per_rank_span == 277


def test_more_memory_hides_transfers() -> None:
    costs = StageCosts(forward=10, input_grad=10, weight_grad=10, activation_bytes=1, deferred_bytes=Fraction(43, 100))
    cluster = Cluster.uniform(4, latency_seconds=5)
    bubbles = {}
    for limit in (8, 9, 10, 12, 16):
        timeline = simulate(zb_v_greedy(4, 16, costs=costs, cluster=cluster, memory_limit=limit), costs, cluster)
        bubbles[limit] = timeline.per_rank_span - 2 * 16 * 30
        assert max(timeline.peak_memory) <= limit
    assert bubbles == {8: 80, 9: 60, 10: 40, 12: 10, 16: 0}


@st.composite
def uneven(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of zb_v_greedy with other costs on every stage and rank; W may keep more than F."""
    p = draw(st.integers(1, 5))

    def numbers(low: int, high: int, count: int = 2 * p) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    costs = StageCosts(
        forward=numbers(0, 9),
        input_grad=numbers(0, 9),
        weight_grad=numbers(0, 9),
        activation_bytes=numbers(0, 4),
        deferred_bytes=numbers(0, 5),
        boundary_bytes=numbers(0, 3),
    )
    m = draw(st.integers(1, 11))
    limit = None
    if draw(st.booleans()):
        together = zip(peaks(zb_v_greedy(p, m, costs=costs), costs), numbers(0, 20, p), strict=True)
        limit = [peak + more + 1 for peak, more in together]
    link = Link(draw(st.sampled_from([0, 1])), draw(st.sampled_from([1, math.inf])))
    cluster = Cluster(tuple(Device(speed=speed) for speed in numbers(1, 2, p)), ((p, link),))
    return {"num_ranks": p, "num_microbatches": m, "costs": costs, "cluster": cluster, "memory_limit": limit}


@settings(max_examples=40)
@given(arguments=uneven())
def test_any_costs_give_a_schedule_within_the_limit(arguments: dict[str, Any]) -> None:
    schedule = zb_v_greedy(**arguments)
    verify(schedule)
    limit, costs, p = arguments["memory_limit"], arguments["costs"], schedule.num_ranks
    if limit is None and any((*costs.activation_bytes, *costs.deferred_bytes)):
        most = [max(pair) for pair in zip(costs.activation_bytes, costs.deferred_bytes, strict=True)]
        # 2p of the dearer stage are always enough: at most 2p microbatches of a stage are between F and W
        limit = [2 * p * max(most[rank], most[2 * p - 1 - rank]) for rank in range(p)]
    if limit is not None:
        assert all(peak <= most for peak, most in zip(peaks(schedule, costs), limit, strict=True))


def test_the_speed_of_devices_and_the_time_of_boundaries_count() -> None:
    """Both ways to say the same give the same; saying nothing of it does not."""
    costs = StageCosts(forward=4, input_grad=6, weight_grad=2, boundary_bytes=6)
    slow_middle = Cluster((Device(), Device(speed=0.5), Device()), ((3, Link(1, 3)),))
    said = StageCosts(forward=[4, 8, 4] * 2, input_grad=[6, 12, 6] * 2, weight_grad=[2, 4, 2] * 2)
    expected = zb_v_greedy(3, 8, costs=said, cluster=Cluster.uniform(3, latency_seconds=3))
    assert zb_v_greedy(3, 8, costs=costs, cluster=slow_middle) == expected
    assert zb_v_greedy(3, 8, costs=costs) != expected


def test_costs_for_one_stage_a_rank_are_refused() -> None:
    with pytest.raises(Exception, match="forward has 4 values for 8 stages"):
        zb_v_greedy(4, 8, costs=StageCosts(forward=[1, 1, 1, 1]))


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), [(0, 4), (4, 0), (2.0, 4)])
def test_sizes_below_1_are_refused(num_ranks: Any, num_microbatches: Any) -> None:
    with pytest.raises(ScheduleError, match=r"zb_v_greedy: num_\w+=.*; use (at least 1|e\.g\.)"):
        zb_v_greedy(num_ranks, num_microbatches)
