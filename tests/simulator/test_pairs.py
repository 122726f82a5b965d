"""Overlapped pairs on the timeline."""

import itertools
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_schedules import paired_schedules, runs_to_its_end

from penstock import Cluster, Device, Link, Schedule, StageCosts, parse_grid, simulate
from penstock.timeline import Timeline

PAIRS = parse_grid("""
    pairs p=2 m=3 weights=flush placement=0,1
    rank 0: F0 F1 .  F2+B0 .  B1 .  B2
    rank 1: .  F0 B0 F1    B1 F2 B2 .
""")


def times(timeline: Timeline, rank: int) -> str:
    return " ".join(f"{span.op}:{float(span.start):g}-{float(span.end):g}" for span in timeline.by_rank[rank])


#             0  1  2  3  4  5  6  7  8  9 10 11 12 13        F = 2, B = 4, a pair 3
#   rank 0    F0 F0 F1 F1 .  .  .  .  F2+B0    .  .  .
#   rank 1    .  .  F0 F0 B0 B0 B0 B0 F1 F1 B1 B1 B1 B1
def test_a_pair_starts_when_both_its_ops_can_and_ends_as_one() -> None:
    timeline = simulate(PAIRS, StageCosts(forward=2, backward=4, overlapped=4))
    assert times(timeline, 0).startswith("0F0:0-2 0F1:2-4 0F2:8-9.33333 0B0:9.33333-12")
    assert times(timeline, 1).startswith("1F0:2-4 1B0:4-8 1F1:8-10 1B1:10-14 1F2:14-16"), "F2 was sent at 12"
    sent = {str(message.op): message.start for message in timeline.transmissions}
    assert sent["1F2"] == 12
    assert timeline.busy[0] == 2 + 2 + 4 + 4 + 4


def test_idle_is_what_no_op_of_a_pair_covers() -> None:
    """Spans of a rank follow one another, so a pair's seconds count once, and idle is exact."""
    timeline = simulate(PAIRS, StageCosts(forward=10, backward=20, overlapped=26))
    assert timeline.makespan - timeline.busy[0] == sum(timeline.shares(0)[1:])
    assert timeline.busy == (10 + 10 + 26 + 20 + 20, 90)


def test_without_a_cost_of_their_own_pairs_take_what_their_ops_take() -> None:
    alone = simulate(PAIRS, StageCosts(forward=2, backward=4))
    assert alone == simulate(PAIRS, StageCosts(forward=2, backward=4, overlapped=6))
    assert times(alone, 0).startswith("0F0:0-2 0F1:2-4 0F2:8-10 0B0:10-14")


def test_a_slower_device_takes_longer_over_a_pair() -> None:
    slow = Cluster((Device(speed=0.5), Device()), ((2, Link()),))
    timeline = simulate(PAIRS, StageCosts(forward=2, backward=4, overlapped=4), slow)
    first, second = timeline.by_rank[0][2:4]
    assert second.end - first.start == 8


def test_a_pair_waits_for_the_later_of_its_messages() -> None:
    timeline = simulate(PAIRS, StageCosts(forward=2, backward=4), Cluster.uniform(2, latency_seconds=1))
    wait = next(wait for wait in timeline.waits if wait.rank == 0)
    assert (str(wait.op), wait.start, wait.end, wait.source, wait.sent) == ("0B0", 4, 10, 1, 9)


@given(schedule=paired_schedules(), overlapped=st.integers(5, 8))
@settings(max_examples=50)
def test_spans_of_a_rank_never_overlap_and_shares_add_up(schedule: Schedule, overlapped: int) -> None:
    if not runs_to_its_end(schedule):
        return
    cluster = Cluster.uniform(schedule.num_ranks, latency_seconds=Fraction(1, 2))  # type: ignore[arg-type]
    costs = StageCosts(forward=3, input_grad=4, weight_grad=1, overlapped=overlapped)
    timeline = simulate(schedule, costs, cluster)
    for rank, ops in enumerate(schedule.ranks):
        row = [span for span in timeline.by_rank[rank] if span.op in ops]
        assert tuple(span.op for span in row) == ops
        assert all(before.end <= span.start for before, span in itertools.pairwise(row))
        for start in schedule.overlapped[rank] if schedule.overlapped else ():
            assert row[start].end == row[start + 1].start
            took = row[start + 1].end - row[start].start
            assert took == overlapped if all(span.op.kind.name != "I" for span in row[start : start + 2]) else True
        assert sum(timeline.shares(rank)) == timeline.makespan
        assert min(timeline.shares(rank)) >= 0
