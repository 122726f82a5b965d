"""naive: one microbatch at a time."""

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import StageCosts, naive, simulate

GRIDS = {
    (3, 1): """
        rank 0: F0 .  .  .  .  B0
        rank 1: .  F0 .  .  B0 .
        rank 2: .  .  F0 B0 .  .
    """,
    (3, 2): """
        rank 0: F0 .  .  .  .  B0 F1 .  .  .  .  B1
        rank 1: .  F0 .  .  B0 .  .  F1 .  .  B1 .
        rank 2: .  .  F0 B0 .  .  .  .  F1 B1 .  .
    """,
    (4, 2): """
        rank 0: F0 .  .  .  .  .  .  B0 F1 .  .  .  .  .  .  B1
        rank 1: .  F0 .  .  .  .  B0 .  .  F1 .  .  .  .  B1 .
        rank 2: .  .  F0 .  .  B0 .  .  .  .  F1 .  .  B1 .  .
        rank 3: .  .  .  F0 B0 .  .  .  .  .  .  F1 B1 .  .  .
    """,
}


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_naive_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:

    assert rows(naive(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(naive) == rows(naive(3, 2))


@pytest.mark.parametrize(("forward", "backward"), [(1, 1), (1, 2), (3, 2)])
def test_the_closed_forms_of_naive_hold_exactly(forward: int, backward: int) -> None:
    costs = StageCosts(forward=forward, backward=backward)
    for num_ranks in range(1, 9):
        for num_microbatches in range(1, 17):
            timeline = simulate(naive(num_ranks, num_microbatches), costs)
            assert timeline.makespan == num_microbatches * num_ranks * (forward + backward)
            assert timeline.bubble_fraction == (num_ranks - 1) / num_ranks
            assert timeline.bubble_ratio == num_ranks - 1
            assert timeline.peak_activations == (1,) * num_ranks


def test_a_microbatch_starts_when_rank_0_has_ended_the_one_before() -> None:
    starts = [span.start for span in simulate(naive(4, 3), StageCosts(forward=1, backward=2)).by_rank[0]]
    assert starts == [0, 10, 12, 22, 24, 34]
