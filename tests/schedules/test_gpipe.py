"""GPipe: fill, then drain."""

from fractions import Fraction

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import StageCosts, gpipe, simulate

GRIDS = {
    (3, 2): """
        rank 0: F0 F1 .  .  .  .  B0 B1
        rank 1: .  F0 F1 .  .  B0 B1 .
        rank 2: .  .  F0 F1 B0 B1 .  .
    """,
    (3, 3): """
        rank 0: F0 F1 F2 .  .  .  .  B0 B1 B2
        rank 1: .  F0 F1 F2 .  .  B0 B1 B2 .
        rank 2: .  .  F0 F1 F2 B0 B1 B2 .  .
    """,
    (3, 4): """
        rank 0: F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3
        rank 1: .  F0 F1 F2 F3 .  .  B0 B1 B2 B3 .
        rank 2: .  .  F0 F1 F2 F3 B0 B1 B2 B3 .  .
    """,
    (4, 5): """
        rank 0: F0 F1 F2 F3 F4 .  .  .  .  .  .  B0 B1 B2 B3 B4
        rank 1: .  F0 F1 F2 F3 F4 .  .  .  .  B0 B1 B2 B3 B4 .
        rank 2: .  .  F0 F1 F2 F3 F4 .  .  B0 B1 B2 B3 B4 .  .
        rank 3: .  .  .  F0 F1 F2 F3 F4 B0 B1 B2 B3 B4 .  .  .
    """,
}


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_gpipe_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(gpipe(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(gpipe) == rows(gpipe(3, 4))


@pytest.mark.parametrize(("forward", "backward"), [(1, 1), (1, 2), (5, 3), (0, 1)])
def test_the_closed_forms_of_gpipe_hold_exactly(forward: int, backward: int) -> None:
    costs = StageCosts(forward=forward, backward=backward)
    for num_ranks in range(1, 9):
        for num_microbatches in range(1, 17):
            timeline = simulate(gpipe(num_ranks, num_microbatches), costs)
            slots = num_microbatches + num_ranks - 1
            assert timeline.makespan == slots * (forward + backward)
            assert timeline.bubble_fraction == (num_ranks - 1) / slots
            assert timeline.bubble_ratio == (num_ranks - 1) / num_microbatches
            assert timeline.peak_activations == (num_microbatches,) * num_ranks


def test_the_closed_forms_of_gpipe_hold_in_fractions() -> None:
    timeline = simulate(gpipe(5, 7), StageCosts(forward=Fraction(1, 3), backward=Fraction(2, 7)))
    assert timeline.makespan == 11 * Fraction(13, 21)
    assert timeline.bubble_fraction == Fraction(4, 11)
    assert timeline.bubble_ratio == Fraction(4, 7)


def test_backwards_run_in_microbatch_order_so_that_gradients_accumulate_as_elsewhere() -> None:
    for ops in gpipe(3, 5).ranks:
        assert [op.microbatch for op in ops if op.kind.name == "B"] == [0, 1, 2, 3, 4]
