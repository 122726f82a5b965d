"""1F1B: one forward, one backward in turn."""

from fractions import Fraction

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import StageCosts, one_f_one_b, simulate

GRIDS = {
    (3, 1): """
        rank 0: F0 .  .  .  .  B0
        rank 1: .  F0 .  .  B0 .
        rank 2: .  .  F0 B0 .  .
    """,
    (3, 2): """
        rank 0: F0 F1 .  .  .  B0 .  B1
        rank 1: .  F0 F1 .  B0 .  B1 .
        rank 2: .  .  F0 B0 F1 B1 .  .
    """,
    (3, 3): """
        rank 0: F0 F1 F2 .  .  B0 .  B1 .  B2
        rank 1: .  F0 F1 .  B0 F2 B1 .  B2 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 .  .
    """,
    (3, 4): """
        rank 0: F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
        rank 1: .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .
    """,
    (4, 4): """
        rank 0: F0 F1 F2 F3 .  .  .  B0 .  B1 .  B2 .  B3
        rank 1: .  F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3 .
        rank 2: .  .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .  .
        rank 3: .  .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .  .
    """,
    (4, 6): """
        rank 0: F0 F1 F2 F3 .  .  .  B0 F4 B1 F5 B2 .  B3 .  B4 .  B5
        rank 1: .  F0 F1 F2 .  .  B0 F3 B1 F4 B2 F5 B3 .  B4 .  B5 .
        rank 2: .  .  F0 F1 .  B0 F2 B1 F3 B2 F4 B3 F5 B4 .  B5 .  .
        rank 3: .  .  .  F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 .  .  .
    """,
}


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_one_f_one_b_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(one_f_one_b(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(one_f_one_b) == rows(one_f_one_b(3, 4))


def test_the_last_rank_starts_a_backward_at_once() -> None:
    for num_ranks in range(1, 6):
        last = one_f_one_b(num_ranks, 4).ranks[-1]
        assert [str(op)[1:] for op in last] == ["F0", "B0", "F1", "B1", "F2", "B2", "F3", "B3"]


def test_rank_0_warms_up_with_one_forward_for_each_rank_behind_it() -> None:
    for num_ranks in range(1, 6):
        kinds = "".join(op.kind.name for op in one_f_one_b(num_ranks, 8).ranks[0])
        assert kinds.index("B") == num_ranks


@pytest.mark.parametrize(("forward", "backward"), [(1, 1), (1, 2), (3, 2), (0, 1)])
def test_the_closed_forms_of_one_f_one_b_hold_exactly(forward: int, backward: int) -> None:
    costs = StageCosts(forward=forward, backward=backward)
    for num_ranks in range(1, 9):
        for num_microbatches in range(1, 17):
            timeline = simulate(one_f_one_b(num_ranks, num_microbatches), costs)
            slots = num_microbatches + num_ranks - 1
            assert timeline.makespan == slots * (forward + backward)
            assert timeline.bubble_fraction == (num_ranks - 1) / slots
            assert timeline.bubble_ratio == (num_ranks - 1) / num_microbatches
            assert timeline.peak_activations == tuple(
                min(num_ranks - rank, num_microbatches) for rank in range(num_ranks)
            )


def test_the_closed_forms_of_one_f_one_b_hold_in_fractions() -> None:
    timeline = simulate(one_f_one_b(4, 6), StageCosts(forward=Fraction(1, 7), backward=Fraction(3, 11)))
    assert timeline.makespan == 9 * Fraction(32, 77)
    assert timeline.bubble_fraction == Fraction(1, 3)
    assert timeline.bubble_ratio == Fraction(1, 2)
