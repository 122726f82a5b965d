"""The event kernel, against examples worked out by hand."""

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.random_schedules import needs_of, runs_to_its_end, valid_schedules, with_ranks

from penstock import Cluster, Device, Link, Program, Schedule, StageCosts, lower, parse_grid, simulate
from penstock.errors import UserError, VerificationError
from penstock.ir import Op, OpKind
from penstock.schedules import gpipe, naive, one_f_one_b
from penstock.simulator import simulated_seconds
from penstock.timeline import Shares, Timeline


def times(timeline: Timeline, rank: int) -> str:
    """Returns the spans of a rank as text."""
    return " ".join(f"{span.op}:{float(span.start):g}-{float(span.end):g}" for span in timeline.by_rank[rank])


def waits(timeline: Timeline, rank: int) -> list[tuple[str, float, float, int, float]]:
    return [(str(w.op), w.start, w.end, w.source, w.sent) for w in timeline.waits if w.rank == rank]


#   c = 1     0  1  2  3  4  5  6  7  8  9 10 11
#   rank 0    F0 F1 .  .  .  .  B0 B0 .  B1 B1        F = 1, B = 2
#   rank 1    .  .  F0 B0 B0 F1 B1 B1 .  .  .
def test_latency_delays_every_message_and_is_told_apart_from_waiting() -> None:
    timeline = simulate(one_f_one_b(2, 2), StageCosts(forward=1, backward=2), Cluster.uniform(2, latency_seconds=1))
    assert times(timeline, 0) == "0F0:0-1 0F1:1-2 0B0:6-8 0B1:9-11"
    assert times(timeline, 1) == "1F0:2-3 1B0:3-5 1F1:5-6 1B1:6-8"
    assert timeline.makespan == 11
    assert waits(timeline, 0) == [("0B0", 2, 6, 1, 5), ("0B1", 8, 9, 1, 8)]
    assert waits(timeline, 1) == [("1F0", 0, 2, 0, 1)]
    assert timeline.shares(0) == Shares(compute=6, waiting=3, transfer=2, other=0)
    assert timeline.shares(1) == Shares(compute=6, waiting=1, transfer=1, other=3)
    sent = [(str(t.channel), str(t.op), t.start, t.end) for t in timeline.transmissions]
    assert sent == [
        ("0→1 F", "1F0", 1, 2), ("0→1 F", "1F1", 2, 3), ("1→0 B", "0B0", 5, 6), ("1→0 B", "0B1", 8, 9)
    ]  # fmt: skip


def test_an_op_takes_longer_where_its_rank_stood_still_before_it() -> None:
    """Both ranks stand still for 1 or more before some of their ops; a wait of 2 or more costs 1, of 1 a half."""
    devices = (Device(waking=((2, 1),)),) * 2
    timeline = simulate(one_f_one_b(2, 2), StageCosts(forward=2, backward=4), Cluster(devices, ((2, Link(1)),)))
    assert times(timeline, 1) == "1F0:3-6 1B0:6-10 1F1:10-12 1B1:12-16"
    assert times(timeline, 0) == "0F0:0-2 0F1:2-4 0B0:11-16 0B1:17-21.5"


@given(valid_schedules(), st.integers(0, 3))
def test_the_seconds_alone_are_those_of_the_timeline(schedule: Schedule, latency: int) -> None:
    costs, cluster = StageCosts(forward=1, backward=3), Cluster.uniform(schedule.num_ranks, latency_seconds=latency)
    assert simulated_seconds(schedule, costs, cluster) == simulate(schedule, costs, cluster).makespan


def test_a_message_takes_its_bytes_over_the_bandwidth_and_the_link_is_busy_so_long() -> None:
    """Each forward is 6 bytes at 2 a second: the second waits for the link until 4, and arrives at 7."""
    timeline = simulate(
        gpipe(2, 2),
        StageCosts(forward=1, backward=1, boundary_bytes=6),
        Cluster.uniform(2, bytes_per_second=2),
    )
    sent = [(str(t.op), t.start, t.end) for t in timeline.transmissions]
    assert sent == [("1F0", 1, 4), ("1F1", 4, 7), ("0B0", 9, 12), ("0B1", 12, 15)]
    assert times(timeline, 1) == "1F0:4-5 1F1:7-8 1B0:8-9 1B1:9-10"
    assert times(timeline, 0) == "0F0:0-1 0F1:1-2 0B0:12-13 0B1:15-16"


def test_standing_still_behind_a_busy_link_is_transfer() -> None:
    """Rank 1 stands 5-7 for a message that was ready at 2. Its neighbour owes it nothing."""
    timeline = simulate(
        gpipe(2, 2),
        StageCosts(forward=1, backward=1, boundary_bytes=6),
        Cluster.uniform(2, bytes_per_second=2),
    )
    assert waits(timeline, 1) == [("1F0", 0, 4, 0, 1), ("1F1", 5, 7, 0, 2)]
    assert timeline.shares(1) == Shares(compute=4, waiting=1, transfer=5, other=6)


def test_a_gradient_is_as_large_as_the_boundary_it_goes_back_over() -> None:
    timeline = simulate(naive(3, 1), StageCosts(boundary_bytes=[2, 4, 99]), Cluster.uniform(3, bytes_per_second=1))
    lasted = [(str(t.op), t.end - t.start) for t in timeline.transmissions]
    assert lasted == [("1F0", 2), ("2F0", 4), ("1B0", 4), ("0B0", 2)]


def test_the_link_is_free_while_the_last_message_is_still_in_flight() -> None:
    cluster = Cluster((Device(), Device()), ((2, Link(latency_seconds=10, bytes_per_second=6)),))
    timeline = simulate(gpipe(2, 2), StageCosts(forward=1, backward=1, boundary_bytes=6), cluster)
    assert [(t.start, t.end) for t in timeline.transmissions][:2] == [(1, 12), (2, 13)]


def test_messages_of_two_channels_share_the_link_of_their_ranks() -> None:
    """Outputs of stage 0 and gradients of stage 2 go the same way: first ready, first served."""
    schedule = parse_grid("""
        there_and_back p=2 m=2 weights=flush placement=0,1,0
        rank 0: 0F0 2F0 2B0 0F1 2F1 2B1 0B0 0B1
        rank 1: 1F0 1F1 1B0 1B1
    """)
    costs = StageCosts(forward=1, backward=1, boundary_bytes=3)
    timeline = simulate(schedule, costs, Cluster.uniform(2, bytes_per_second=1))
    sent = {
        source: [(str(t.op), t.start, t.end) for t in timeline.transmissions if t.channel.source == source]
        for source in (0, 1)
    }
    # 0F1 ends at 11, while the gradient of 2B0 is on the link until 13; 1B0 ends at 18, 1F1's output until 20
    assert sent[0] == [("1F0", 1, 4), ("1B0", 10, 13), ("1F1", 13, 16), ("1B1", 22, 25)]
    assert sent[1] == [("2F0", 5, 8), ("2F1", 17, 20), ("0B0", 20, 23), ("0B1", 26, 29)]
    assert times(timeline, 0) == "0F0:0-1 2F0:8-9 2B0:9-10 0F1:10-11 2F1:20-21 2B1:21-22 0B0:23-24 0B1:29-30"
    assert times(timeline, 1) == "1F0:4-5 1F1:16-17 1B0:17-18 1B1:25-26"


def test_messages_of_one_channel_that_are_ready_at_once_keep_their_order() -> None:
    """Symptom: microbatch 0 overtook 1. Cause: ties were broken by microbatch; a channel is first in, first out."""
    schedule = parse_grid("""
        turned p=2 m=2 weights=flush placement=0,1
        rank 0: F1 F0 B1 B0
        rank 1: F1 F0 B1 B0
    """)
    costs = StageCosts(forward=[0, 1], backward=1, boundary_bytes=5)
    timeline = simulate(schedule, costs, Cluster.uniform(2, bytes_per_second=1))
    assert [str(t.op) for t in timeline.transmissions][:2] == ["1F1", "1F0"]
    assert times(timeline, 1).startswith("1F1:5-6 1F0:10-11")


def test_a_late_receive_holds_its_message_back() -> None:
    program = lower(gpipe(2, 2))
    row = [entry for entry in program.ranks[1] if str(entry) != "1RECV_F1"]
    late = next(entry for entry in program.ranks[1] if str(entry) == "1RECV_F1")
    row.insert(row.index(Op(OpKind.F, 1, 1)), late)
    held = Program(program.schedule, (program.ranks[0], tuple(row)))
    costs, cluster = StageCosts(forward=[1, 5], backward=1), Cluster.uniform(2, latency_seconds=1)
    assert [t.start for t in simulate(program, costs, cluster).transmissions][:2] == [1, 2]
    assert [t.start for t in simulate(held, costs, cluster).transmissions][:2] == [1, 7]
    assert waits(simulate(held, costs, cluster), 1)[1] == ("1F1", 7, 8, 0, 7)


def test_a_slower_device_takes_longer_over_everything() -> None:
    cluster = Cluster((Device(), Device(speed=Fraction(1, 2))), ((2, Link()),))  # type: ignore[arg-type]
    timeline = simulate(naive(2, 1), StageCosts(forward=2, backward=3), cluster)
    assert times(timeline, 0) == "0F0:0-2 0B0:12-15"
    assert times(timeline, 1) == "1F0:2-6 1B0:6-12"


def test_stages_cost_what_they_cost() -> None:
    timeline = simulate(naive(3, 1), StageCosts(forward=[1, 2, 3], input_grad=[4, 5, 6], weight_grad=[0, 1, 0]))
    assert times(timeline, 0) == "0F0:0-1 0B0:18-22"
    assert times(timeline, 1) == "1F0:1-3 1B0:12-18"
    assert times(timeline, 2) == "2F0:3-6 2B0:6-12"


def test_the_slowest_stage_sets_the_pace_of_one_f_one_b() -> None:
    """Fill to stage 1, which is busy from then on (stage 2 answers while it works), then drain from it."""
    timeline = simulate(one_f_one_b(3, 8), StageCosts(forward=[1, 3, 1], backward=[2, 6, 2]))
    assert timeline.makespan == 1 + 8 * (3 + 6) + 2


def test_a_reduction_takes_its_time_after_the_last_backward() -> None:
    program = lower(one_f_one_b(2, 1), reduce_gradients=True)
    timeline = simulate(program, StageCosts(forward=1, backward=1, reduce_grad=[5, 2]))
    assert times(timeline, 0) == "0F0:0-1 0B0:3-4 0REDUCE_GRAD:4-9"
    assert times(timeline, 1) == "1F0:1-2 1B0:2-3 1REDUCE_GRAD:3-5"


def test_a_split_backward_sends_after_its_first_half() -> None:
    schedule = parse_grid("""
        split p=2 m=1 weights=flush placement=0,1
        rank 0: F0 .  .  I0 W0
        rank 1: .  F0 I0 W0
    """)
    timeline = simulate(schedule, StageCosts(forward=1, input_grad=2, weight_grad=3))
    assert times(timeline, 0) == "0F0:0-1 0I0:4-6 0W0:6-9"
    assert times(timeline, 1) == "1F0:1-2 1I0:2-4 1W0:4-7"


@given(schedule=valid_schedules(), latency=st.integers(0, 3), rate=st.integers(1, 4))
def test_shares_add_up_and_every_op_runs_once_in_order(schedule: Schedule, latency: int, rate: int) -> None:
    cluster = Cluster.uniform(
        schedule.num_ranks,
        latency_seconds=latency,
        bytes_per_second=Fraction(rate),  # type: ignore[arg-type]
    )
    timeline = simulate(schedule, StageCosts(forward=2, backward=5, boundary_bytes=3), cluster)
    for rank, ops in enumerate(schedule.ranks):
        ran = [span for span in timeline.by_rank[rank] if span.op.kind != OpKind.REDUCE_GRAD]
        assert tuple(span.op for span in ran) == ops
        assert all(before.end <= span.start for before, span in itertools.pairwise(ran))
        shares = timeline.shares(rank)
        assert sum(shares) == timeline.makespan
        assert min(shares) >= 0
    for wait in timeline.waits:
        assert wait.start < wait.end
        assert wait.source != wait.rank


@given(schedule=valid_schedules(), factor=st.integers(2, 5), latency=st.integers(0, 3))
def test_costs_times_a_factor_give_times_times_that_factor(schedule: Schedule, factor: int, latency: int) -> None:
    def run(scale: int) -> Timeline:
        costs = StageCosts(
            forward=2 * scale, input_grad=3 * scale, weight_grad=scale, backward=5 * scale, boundary_bytes=4
        )
        link = Link(latency * scale, Fraction(2, scale))  # type: ignore[arg-type]
        return simulate(schedule, costs, Cluster((Device(),) * schedule.num_ranks, ((64, link),)))

    once, scaled = run(1), run(factor)
    assert [(s.op, s.start * factor, s.end * factor) for s in once.spans] == [
        (s.op, s.start, s.end) for s in scaled.spans
    ]
    assert [(w.start * factor, w.end * factor, w.sent * factor) for w in once.waits] == [
        (w.start, w.end, w.sent) for w in scaled.waits
    ]


@given(schedule=valid_schedules())
def test_simulating_twice_gives_one_timeline(schedule: Schedule) -> None:
    costs, cluster = (
        StageCosts(boundary_bytes=2, activation_bytes=1),
        Cluster.uniform(schedule.num_ranks, latency_seconds=1, bytes_per_second=3),
    )
    assert simulate(schedule, costs, cluster) == simulate(lower(schedule), costs, cluster)


@given(schedule=valid_schedules())
def test_an_op_starts_when_the_last_thing_it_needs_is_there(schedule: Schedule) -> None:
    """Without transfer times: at the end of its rank's op before or of what it needs, whichever is later."""
    timeline = simulate(schedule, StageCosts(forward=2, input_grad=3, weight_grad=1, backward=7))
    needs = needs_of({op for _, _, op in schedule.ops()})
    ends = {span.op: span.end for span in timeline.spans}
    for row in timeline.by_rank:
        free = 0.0
        for span in row:
            if span.op in needs:
                assert span.start == max([free, *(ends[other] for other in needs[span.op])])
            free = span.end


def test_a_program_that_waits_in_a_circle_is_refused() -> None:
    schedule = parse_grid("""
        stuck p=2 m=2 weights=flush placement=0,1
        rank 0: F0 B0 F1 B1
        rank 1: F0 F1 B0 B1
    """)
    with pytest.raises(VerificationError, match=r"stuck cannot run to its end; penstock\.verify shows why"):
        simulate(schedule, StageCosts())


@given(schedule=valid_schedules(), data=st.data())
def test_an_order_that_cannot_run_is_refused_even_on_one_rank(schedule: Schedule, data: st.DataObject) -> None:
    """Symptom: a backward before its own forward was timed. Cause: only messages were waited for."""
    rows = [list(row) for row in schedule.ranks]
    row = data.draw(st.sampled_from([row for row in rows if len(row) > 1]))
    at = data.draw(st.integers(0, len(row) - 2))
    row[at], row[at + 1] = row[at + 1], row[at]
    swapped = with_ranks(schedule, rows)
    if runs_to_its_end(swapped):
        simulate(swapped, StageCosts())
    else:
        with pytest.raises(VerificationError, match="cannot run to its end"):
            simulate(swapped, StageCosts())


@pytest.mark.parametrize(
    ("costs", "cluster", "said"),
    [
        (StageCosts(), Cluster.uniform(3), "the cluster has 3 devices for 2 ranks; give one a rank"),
        (StageCosts(forward=[1, 2, 3]), None, "forward has 3 values for 2 stages; give one number a stage"),
        (StageCosts(boundary_bytes=[1]), None, "boundary_bytes has 1 values for 2 stages"),
        (StageCosts(parameter_bytes=[1]), None, "parameter_bytes has 1 values for 2 stages"),
    ],
)
def test_costs_or_a_cluster_of_another_size_are_refused(costs: StageCosts, cluster: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        simulate(gpipe(2, 2), costs, cluster)
    assert said in str(refused.value)
