"""Breadth-first: every microbatch through a chunk before the next chunk."""

from itertools import groupby

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import StageCosts, breadth_first, gpipe, named_schedule, simulate, verify
from penstock.errors import ScheduleError

GRIDS = {
    (2, 2, 2): """
        rank 0: 0F0 0F1 2F0 2F1 .   .   2B0 2B1 0B0 0B1
        rank 1: .   1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1 .
    """,
    (2, 3, 3): """
        rank 0: 0F0 0F1 0F2 2F0 2F1 2F2 4F0 4F1 4F2 .   .   4B0 4B1 4B2 2B0 2B1 2B2 0B0 0B1 0B2
        rank 1: .   1F0 1F1 1F2 3F0 3F1 3F2 5F0 5F1 5F2 5B0 5B1 5B2 3B0 3B1 3B2 1B0 1B1 1B2 .
    """,
    (3, 1, 2): """
        rank 0: 0F0 .   .   3F0 .   .   .   .   3B0 .   .   0B0
        rank 1: .   1F0 .   .   4F0 .   .   4B0 .   .   1B0 .
        rank 2: .   .   2F0 .   .   5F0 5B0 .   .   2B0 .   .
    """,
}


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "num_chunks"), GRIDS)
def test_breadth_first_is_drawn_so(num_ranks: int, num_microbatches: int, num_chunks: int) -> None:
    schedule = breadth_first(num_ranks, num_microbatches, num_chunks=num_chunks)
    assert rows(schedule) == drawn(GRIDS[num_ranks, num_microbatches, num_chunks])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(breadth_first) == rows(breadth_first(3, 3))


@pytest.mark.parametrize(("forward", "backward"), [(1, 1), (1, 2), (3, 2)])
def test_the_closed_forms_of_breadth_first_hold_exactly(forward: int, backward: int) -> None:
    costs = StageCosts(forward=forward, backward=backward)
    for p in range(1, 5):
        for m in (1, 2, 3, 5, 8):
            for v in range(1, 4):
                proof = verify(breadth_first(p, m, num_chunks=v))
                timeline = simulate(proof.program, costs)
                assert timeline.makespan == (m * v + p - 1 + (v - 1) * max(0, p - m)) * (forward + backward)
                if m >= p:
                    assert timeline.bubble_ratio == (p - 1) / (v * m)
                    assert timeline.bubble_fraction == (p - 1) / (v * m + p - 1)
                assert proof.peak_activations == (m * v,) * p


def test_each_chunk_is_in_use_twice_in_one_piece() -> None:
    for ops in breadth_first(3, 5, num_chunks=4).ranks:
        pieces = [stage for stage, _ in groupby(op.stage for op in ops)]
        assert len(pieces) == 2 * 4 - 1  # the last chunk's backwards follow its forwards


def test_of_one_chunk_it_is_gpipe() -> None:
    for p in range(1, 5):
        for m in range(1, 6):
            assert breadth_first(p, m, num_chunks=1).ranks == gpipe(p, m).ranks


def test_it_goes_by_the_name_torch_has_for_it() -> None:
    assert named_schedule("LoopedBFS", num_ranks=2, num_microbatches=4) == breadth_first(2, 4)


def test_no_chunk_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"breadth_first: num_chunks=0; use at least 1"):
        breadth_first(2, 4, num_chunks=0)
