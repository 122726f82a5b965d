"""Eager 1F1B: twice the warm-up, so that transfers hide behind compute."""

from fractions import Fraction

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Cluster, StageCosts, eager_1f1b, interleaved_1f1b, one_f_one_b, simulate, verify

GRIDS = {
    (3, 1): """
        rank 0: F0 .  .  .  .  B0
        rank 1: .  F0 .  .  B0 .
        rank 2: .  .  F0 B0 .  .
    """,
    (3, 3): """
        rank 0: F0 F1 F2 .  .  B0 .  B1 .  B2
        rank 1: .  F0 F1 F2 B0 .  B1 .  B2 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 .  .
    """,
    (3, 7): """
        rank 0: F0 F1 F2 F3 F4 B0 F5 B1 F6 B2 .  B3 .  B4 .  B5 .  B6
        rank 1: .  F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 .  B5 .  B6 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 .  .
    """,
    (4, 4): """
        rank 0: F0 F1 F2 F3 .  .  .  B0 .  B1 .  B2 .  B3
        rank 1: .  F0 F1 F2 F3 .  B0 .  B1 .  B2 .  B3 .
        rank 2: .  .  F0 F1 F2 B0 F3 B1 .  B2 .  B3 .  .
        rank 3: .  .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .  .
    """,
}


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_eager_1f1b_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(eager_1f1b(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(eager_1f1b) == rows(eager_1f1b(3, 5))


@pytest.mark.parametrize(("forward", "backward"), [(1, 1), (1, 2), (3, 2), (0, 1)])
def test_the_closed_forms_of_eager_1f1b_hold_exactly(forward: int, backward: int) -> None:
    costs = StageCosts(forward=forward, backward=backward)
    for num_ranks in range(1, 7):
        for num_microbatches in range(1, 13):
            timeline = simulate(eager_1f1b(num_ranks, num_microbatches), costs)
            slots = num_microbatches + num_ranks - 1
            assert timeline.makespan == slots * (forward + backward)
            assert timeline.bubble_fraction == (num_ranks - 1) / slots
            assert timeline.bubble_ratio == (num_ranks - 1) / num_microbatches


def test_rank_i_holds_almost_twice_the_microbatches_of_1f1b() -> None:
    for num_ranks in range(1, 6):
        for num_microbatches in range(1, 12):
            peaks = tuple(min(2 * (num_ranks - 1 - rank) + 1, num_microbatches) for rank in range(num_ranks))
            assert verify(eager_1f1b(num_ranks, num_microbatches)).peak_activations == peaks


@pytest.mark.parametrize("transfer", [0, 1, Fraction(5, 3), Fraction(5, 2)])
def test_transfers_up_to_half_of_f_and_b_cost_the_fill_and_the_drain_only(transfer: Fraction) -> None:
    costs = StageCosts(forward=2, backward=3)
    for num_ranks in range(1, 6):
        cluster = Cluster.uniform(num_ranks, latency_seconds=transfer)
        for num_microbatches in (1, num_ranks, 2 * num_ranks + 1, 12):
            makespan = simulate(eager_1f1b(num_ranks, num_microbatches), costs, cluster).makespan
            assert makespan == (num_microbatches + num_ranks - 1) * 5 + 2 * (num_ranks - 1) * transfer


def test_longer_transfers_do_show() -> None:
    costs, cluster = StageCosts(forward=2, backward=3), Cluster.uniform(2, latency_seconds=3)
    assert simulate(eager_1f1b(2, 12), costs, cluster).makespan > 13 * 5 + 2 * 3


def test_1f1b_pays_a_transfer_for_each_further_microbatch() -> None:
    costs, cluster = StageCosts(forward=2, backward=3), Cluster.uniform(2, latency_seconds=1)

    def per_microbatch(schedule: object) -> float:
        return (
            simulate(schedule(2, 42), costs, cluster).makespan - simulate(schedule(2, 2), costs, cluster).makespan
        ) / 40

    assert per_microbatch(one_f_one_b) == 5 + 1
    assert per_microbatch(eager_1f1b) == 5


def test_it_is_interleaved_1f1b_of_one_chunk() -> None:
    for num_ranks in range(1, 6):
        for num_microbatches in range(1, 12):
            interleaved = interleaved_1f1b(num_ranks, num_microbatches, num_chunks=1)
            assert eager_1f1b(num_ranks, num_microbatches).ranks == interleaved.ranks
