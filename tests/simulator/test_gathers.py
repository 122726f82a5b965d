"""Gathered parameters in time and memory, and clusters whose ranks do nothing else while they send."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.random_schedules import valid_schedules

from penstock import Cluster, OpKind, Schedule, StageCosts, lower, parse_grid, simulate
from penstock.errors import ScheduleError
from penstock.schedules import named_schedule
from penstock.simulator.replay import Replay
from penstock.timeline import Timeline

ONE = parse_grid("one p=1 m=2 weights=flush placement=0,0\nrank 0: 0F0 0F1 1F0 1F1 1B0 1B1 0B0 0B1")


def times(timeline: Timeline, rank: int = 0) -> str:
    return " ".join(f"{span.op}:{span.start:g}-{span.end:g}" for span in timeline.by_rank[rank])


def gathers(timeline: Timeline) -> list[tuple[str, float, float]]:
    return [(str(op), start, end) for _, op, start, end in timeline.transmissions if op.kind == OpKind.UNSHARD]


def timed(gathered: int, *, overlap: bool = True) -> Timeline:
    costs = StageCosts(forward=2, backward=2, unshard=3, parameter_bytes=(10, 20), sharded_bytes=(1, 2))
    return simulate(lower(ONE, gathered=gathered), costs, replace(Cluster.uniform(1), overlap=overlap))


#            0  1  2  3  4  5  6  7  8  9 10 11 12 13 14        F = B = 2, a gather 3
#   rank 0   .  .  .  0F0-> 0F1-> 1F0-> …
#   gathers  0------> 1------>
def test_a_gather_runs_beside_compute_and_the_first_op_that_needs_it_waits() -> None:
    timeline = timed(2)
    assert times(timeline) == "0F0:3-5 0F1:5-7 1F0:7-9 1F1:9-11 1B0:11-13 1B1:13-15 0B0:15-17 0B1:17-19"
    assert gathers(timeline) == [("0UNSHARD", 0, 3), ("1UNSHARD", 3, 6)]
    assert [(str(wait.op), wait.start, wait.end) for wait in timeline.waits] == [("0F0", 0, 3)]
    assert timeline.memory == (((0, 3), (0, 13), (3, 33), (15, 13), (19, 3)),)
    assert timeline.shares(0).transfer == 3


def test_one_stage_at_a_time_waits_for_every_gather_and_holds_less() -> None:
    timeline = timed(1)
    assert times(timeline) == "0F0:3-5 0F1:5-7 1F0:10-12 1F1:12-14 1B0:14-16 1B1:16-18 0B0:21-23 0B1:23-25"
    assert timeline.peak_memory == (23,)
    assert timed(2).peak_memory == (33,)


def test_without_overlap_a_gather_takes_the_ranks_time() -> None:
    timeline = timed(2, overlap=False)
    assert times(timeline).startswith("0UNSHARD:0-3 1UNSHARD:3-6 0F0:6-8 ")
    assert timeline.makespan == 6 + 8 * 2
    assert timeline.peak_memory == (33,)


@pytest.mark.parametrize(("schedule", "count"), [("breadth_first", 6), ("interleaved_1f1b", 16)])
def test_breadth_first_needs_fewer_gathers_than_depth_first(schedule: str, count: int) -> None:
    """Lamy-Poirier 2023, section 4.2: with sharded parameters each stage is gathered once a pass, not once a group."""
    program = lower(named_schedule(schedule, num_ranks=2, num_microbatches=4, num_chunks=2), gathered=1)
    assert len(gathers(simulate(program, StageCosts()))) == count


@given(schedule=valid_schedules(), gathered=st.integers(1, 3))
def test_gathers_that_take_no_time_change_no_time(schedule: Schedule, gathered: int) -> None:
    costs = StageCosts(forward=2, input_grad=1, weight_grad=3)
    assert simulate(lower(schedule, gathered=gathered), costs).spans == simulate(schedule, costs).spans


PAIR = parse_grid("pair p=2 m=2 weights=flush placement=0,1\nrank 0: F0 F1 B0 B1\nrank 1: F0 B0 F1 B1")


#            0  1  2  3  4  5  6  7  8  9 10 11 12                 F = B = 2, a message 1
#   rank 0   F0 F0 >  F1 F1 .. ..  >  B0 B0 . . B1 B1
#   rank 1   .  .  .  F0 F0 B0 B0  >  F1 F1 B1 B1 >
def test_without_overlap_a_rank_stands_still_until_its_message_has_arrived() -> None:
    cluster = Cluster.uniform(2, latency_seconds=1)
    together = simulate(PAIR, StageCosts(forward=2, backward=2), cluster)
    assert times(together, 0) == "0F0:0-2 0F1:2-4 0B0:8-10 0B1:12-14"
    apart = simulate(PAIR, StageCosts(forward=2, backward=2), replace(cluster, overlap=False))
    assert times(apart, 0) == "0F0:0-2 0F1:3-5 0B0:8-10 0B1:13-15"
    assert times(apart, 1) == "1F0:3-5 1B0:5-7 1F1:8-10 1B1:10-12"
    assert [(str(wait.op), wait.start, wait.end, wait.source) for wait in apart.waits if wait.rank == 0] == [
        ("0F0", 2, 3, 1),
        ("0F1", 5, 6, 1),
        ("0B0", 6, 8, 1),
        ("0B1", 10, 13, 1),
    ]
    for rank in range(2):
        assert sum(apart.shares(rank)) == apart.makespan


@given(schedule=valid_schedules(), latency=st.integers(0, 3))
def test_without_overlap_nothing_hangs_and_nothing_is_faster(schedule: Schedule, latency: int) -> None:
    costs = StageCosts(forward=2, input_grad=1, weight_grad=3)
    cluster = Cluster.uniform(schedule.num_ranks, latency_seconds=latency)
    together = simulate(schedule, costs, cluster)
    apart = simulate(schedule, costs, replace(cluster, overlap=False))
    assert len(apart.spans) == len(together.spans)
    assert apart.makespan >= together.makespan


def test_what_only_simulate_can_time_is_refused_by_a_replay() -> None:
    with pytest.raises(ScheduleError, match="one gathers parameters; use simulate"):
        Replay(lower(ONE, gathered=1))
    with pytest.raises(ScheduleError, match="stand still while they send; use simulate"):
        Replay(lower(PAIR)).makespan(StageCosts(), replace(Cluster.uniform(2), overlap=False))
