"""BPipe: 1F1B whose first ranks lend memory from its last ones."""

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Cluster, OpKind, Schedule, StageCosts, Timeline, bpipe, one_f_one_b, simulate, verify
from penstock.errors import ScheduleError

GRIDS = {
    (3, 4): """
        rank 0: F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
        rank 1: .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .
    """,
    (4, 4): """
        rank 0: F0 F1 F2,OFFLOAD2 F3 .  .  .  B0 .  B1,RELOAD2 .  B2 .  B3
        rank 1: .  F0 F1          F2 .  .  B0 F3 B1 .          B2 .  B3 .
        rank 2: .  .  F0          F1 .  B0 F2 B1 F3 B2         .  B3 .  .
        rank 3: .  .  .           F0 B0 F1 B1 F2 B2 F3         B3 .  .  .
    """,
    (4, 6): """
        rank 0: F0 F1 F2,OFFLOAD2 F3 .  .  .  B0 F4,OFFLOAD4 B1,RELOAD2 F5 B2 .  B3,RELOAD4 .  B4 .  B5
        rank 1: .  F0 F1          F2 .  .  B0 F3 B1          F4         B2 F5 B3 .          B4 .  B5 .
        rank 2: .  .  F0          F1 .  B0 F2 B1 F3          B2         F4 B3 F5 B4         .  B5 .  .
        rank 3: .  .  .           F0 B0 F1 B1 F2 B2          F3         B3 F4 B4 F5         B5 .  .  .
    """,
}
SIZES = [(num_ranks, num_microbatches) for num_ranks in range(1, 10) for num_microbatches in range(1, 22)]


def limit(num_ranks: int) -> int:
    """Returns ⌈(p+2)/2⌉."""
    return -(-(num_ranks + 2) // 2)


def timed(schedule: Schedule, *, forward: float, backward: float, copy: float) -> Timeline:
    """Returns the simulation in which a microbatch's activations take `copy` seconds from rank to rank."""
    costs = StageCosts(forward=forward, backward=backward, activation_bytes=copy)
    return simulate(schedule, costs, Cluster.uniform(schedule.num_ranks, bytes_per_second=1))


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_bpipe_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(bpipe(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(bpipe) == rows(bpipe(4, 6))


def test_forwards_and_backwards_keep_the_order_of_1f1b() -> None:
    for num_ranks, num_microbatches in SIZES:
        schedule = bpipe(num_ranks, num_microbatches)
        computed = tuple(tuple(op for op in ops if op.kind in (OpKind.F, OpKind.B)) for ops in schedule.ranks)
        assert computed == one_f_one_b(num_ranks, num_microbatches).ranks


def test_no_rank_ever_holds_more_than_half_of_the_ranks_and_one() -> None:
    """Proven from the orders alone, so whatever the timing; 1F1B's rank 0 holds p."""
    for num_ranks, num_microbatches in SIZES:
        assert max(verify(bpipe(num_ranks, num_microbatches)).peak_activations) <= limit(num_ranks)


def test_peaks_are_those_of_1f1b_cut_at_the_limit_with_the_guests_of_the_partner() -> None:
    for num_ranks in range(1, 12):
        most = limit(num_ranks)
        expected = []
        for rank in range(num_ranks):
            partner = num_ranks - 1 - rank
            lends = rank > partner and num_ranks - partner > most
            expected.append(num_ranks + 2 - most if lends else min(num_ranks - rank, most))
        for num_microbatches in (2 * num_ranks, 2 * num_ranks + 1, 3 * num_ranks + 2):
            assert verify(bpipe(num_ranks, num_microbatches)).peak_activations == tuple(expected)


def test_only_ranks_of_the_upper_half_offload_and_only_to_their_partner() -> None:
    for num_ranks in range(1, 12):
        schedule = bpipe(num_ranks, 3 * num_ranks)
        offloading = [rank for rank, _, op in schedule.ops() if op.kind is OpKind.OFFLOAD]
        assert sorted(set(offloading)) == list(range(max(num_ranks - limit(num_ranks), 0)))
        assert schedule.keepers == tuple(num_ranks - 1 - rank for rank in range(num_ranks))


@pytest.mark.parametrize(("forward", "backward", "copy"), [(1, 1, 1), (1, 2, 1), (3, 2, 2), (2, 5, 0.5), (1, 2, 0)])
def test_copies_no_longer_than_a_forward_and_a_backward_cost_nothing(
    forward: float, backward: float, copy: float
) -> None:
    for num_ranks in (2, 4, 5, 8):
        for num_microbatches in (1, num_ranks, 2 * num_ranks + 1):
            timeline = timed(bpipe(num_ranks, num_microbatches), forward=forward, backward=backward, copy=copy)
            assert timeline.makespan == (num_microbatches + num_ranks - 1) * (forward + backward)


def test_longer_copies_are_waited_for() -> None:
    """F3 for the memory that microbatch 2 leaves, the backwards each for its own activations."""
    timeline = timed(bpipe(4, 8), forward=2, backward=4, copy=3)
    waits = [(str(wait.op), wait.start, wait.end) for wait in timeline.waits if (wait.rank, wait.source) == (0, 3)]
    assert waits == [("0F3", 6, 9), ("0B2", 32, 33), ("0B4", 45, 46), ("0B6", 55, 58)]
    assert timeline.makespan == timed(one_f_one_b(4, 8), forward=2, backward=4, copy=3).makespan + 1 == 67


def test_bytes_are_moved_from_the_first_ranks_to_the_last() -> None:
    base, moved = (timed(make(8, 24), forward=1, backward=2, copy=1) for make in (one_f_one_b, bpipe))
    assert base.peak_memory == (8, 7, 6, 5, 4, 3, 2, 1)
    assert moved.peak_memory == (5, 5, 5, 5, 4, 5, 5, 5)
    assert moved.peak_activations == moved.peak_memory
    assert moved.busy == base.busy


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ScheduleError, match="bpipe: num_microbatches=0; use at least 1"):
        bpipe(4, 0)
