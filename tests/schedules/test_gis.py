"""GIS: interleaved with its backward split, in less memory."""

import re
from collections.abc import Iterator
from functools import cache

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Proof, StageCosts, gis, interleaved_1f1b, simulate, verify
from penstock.errors import ScheduleError

GRIDS = {
    (2, 2, 2, 2): """
        rank 0: 0F0 0F1 2F0 2F1 .   2I0 2W0 .   2I1 2W1 0I0 0W0 0I1 0W1
        rank 1: .   1F0 1F1 3F0 3I0 3W0 3F1 3I1 3W1 1I0 1W0 1I1 1W1 .
    """,
    (2, 2, 2, 1): """
        rank 0: 0F0 .   2F0 0F1 .   2I0 2W0 2F1 0I0 0W0 .   2I1 2W1 0I1 0W1
        rank 1: .   1F0 .   3F0 3I0 3W0 1F1 1I0 1W0 3F1 3I1 3W1 1I1 1W1 .
    """,
    (2, 3, 2, 2): """
        rank 0: 0F0 0F1 2F0 2F1 .   2I0 2W0 0F2 2I1 2W1 .   0I0 0W0 2F2 0I1 0W1 2I2 2W2 0I2 0W2
        rank 1: .   1F0 1F1 3F0 3I0 3W0 3F1 3I1 3W1 1F2 1I0 1W0 1I1 1W1 3F2 3I2 3W2 1I2 1W2 .
    """,
}
"""(p, m, v, group size) -> rows."""


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "num_chunks", "group_size"), GRIDS)
def test_gis_is_drawn_so(num_ranks: int, num_microbatches: int, num_chunks: int, group_size: int) -> None:
    schedule = gis(num_ranks, num_microbatches, num_chunks=num_chunks, group_size=group_size)
    assert rows(schedule) == drawn(GRIDS[num_ranks, num_microbatches, num_chunks, group_size])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(gis) == rows(gis(3, 3))


PAPER_GIS = """
    1 2 3 4 1 2 3 4 . . . 1 1 5 2 2 6 3 3 7 4 4 8 1 1 5 2 2 6 3 3 7 4 4 8 5 5 . 6 6 . 7 7 . 8 8 5 5 6 6 7 7 8 8
    . 1 2 3 4 1 2 3 . . 1 1 4 2 2 5 3 3 6 4 4 7 1 1 8 2 2 5 3 3 6 4 4 7 5 5 8 6 6 . 7 7 . 8 8 5 5 6 6 7 7 8 8 .
    . . 1 2 3 4 1 2 . 1 1 3 2 2 4 3 3 5 4 4 6 1 1 7 2 2 8 3 3 5 4 4 6 5 5 7 6 6 8 7 7 . 8 8 5 5 6 6 7 7 8 8 . .
    . . . 1 2 3 4 1 1 1 2 2 2 3 3 3 4 4 4 5 1 1 6 2 2 7 3 3 8 4 4 5 5 5 6 6 6 7 7 7 8 8 8 5 5 6 6 7 7 8 8 . . .
"""
"""The paper's figure 5 (bottom): 4 ranks, 2 chunks; microbatches counted from 1, chunk and kind left out."""

PAPER_GIS_H = """
    1 2 1 2 3 4 1 1 3 2 2 4 1 1 5 2 2 6 3 3 5 4 4 6 3 3 7 4 4 8 5 5 7 6 6 8 5 5 6 6 7 7 8 8 7 7 8 8
    1 2 1 2 3 1 1 4 2 2 3 1 1 4 2 2 5 3 3 6 4 4 5 3 3 6 4 4 7 5 5 8 6 6 7 5 5 8 6 6 7 7 8 8 7 7 8 8
    1 2 1 2 1 1 3 2 2 4 1 1 3 2 2 4 3 3 5 4 4 6 3 3 5 4 4 6 5 5 7 6 6 8 5 5 7 6 6 8 7 7 8 8 7 7 8 8
    1 2 1 1 1 2 2 2 3 1 1 4 2 2 3 3 3 4 4 4 5 3 3 6 4 4 5 5 5 6 6 6 7 5 5 8 6 6 7 7 7 8 8 8 7 7 8 8
"""
"""Its figure 6 (bottom), in groups of 2, without the idle slots: it leaves some open that an op could move up to."""


def _microbatches(drawing: str) -> list[str]:
    return [re.sub(r"\d[FIW](\d)", lambda cell: str(int(cell[1]) + 1), row)[8:] for row in drawing.splitlines()]


def test_gis_is_to_the_slot_as_the_paper_draws_it() -> None:
    found = [row.split() for row in _microbatches(rows(gis(4, 8)))]
    assert found == [[*row.split()] for row in PAPER_GIS.strip().splitlines()]


def test_gis_h_is_in_the_order_that_the_paper_draws() -> None:
    found = [row.replace(".", "").split() for row in _microbatches(rows(gis(4, 8, group_size=2)))]
    assert found == [row.split() for row in PAPER_GIS_H.strip().splitlines()]


@cache
def _proof(p: int, m: int, v: int, g: int) -> Proof:
    return verify(gis(p, m, num_chunks=v, group_size=g))


def _sizes() -> Iterator[tuple[int, int, int, int]]:
    """Yields (p, m, v, g) with m a multiple of g."""
    for p in range(1, 5):
        for v in (1, 2, 3):
            for g in range(-(-p // 2), p + 1):
                for groups in (1, 3):
                    yield p, groups * g, v, g


COSTS = [(1, 1, 1), (2, 2, 1), (3, 2, 2), (2, 3, 2), (1, 1, 2), (5, 4, 4), (1, 2, 3), (0, 1, 1), (3, 1, 1), (1, 3, 1)]


def test_the_bubble_shrinks_by_the_weight_gradients_and_grows_with_smaller_groups() -> None:
    tried = set()
    for p, m, v, g in _sizes():
        program = _proof(p, m, v, g).program
        for forward, input_grad, weight_grad in COSTS:
            whole = forward + input_grad + weight_grad
            if p * max(forward, input_grad) > g * whole or weight_grad > forward + input_grad:
                continue
            costs = StageCosts(forward=forward, input_grad=input_grad, weight_grad=weight_grad)
            extra = (p - g) * forward + max(0, p * input_grad - g * (input_grad + weight_grad))
            bubble = (p - 1) * (forward + input_grad) + (v - 1) * extra
            assert simulate(program, costs).makespan == m * v * whole + bubble
            tried.add((forward, input_grad, weight_grad))
    assert tried == set(COSTS)


def test_in_equal_slots_a_smaller_group_costs_the_published_extra_bubble() -> None:
    for p, m, v, g in _sizes():
        makespan = simulate(_proof(p, m, v, g).program, StageCosts()).makespan
        assert makespan == 3 * m * v + 2 * (p - 1) + (p - g) * (v - 1)


def test_gis_h_has_the_published_bubble_for_even_p() -> None:
    for p in (2, 4):
        for v in (1, 2, 3):
            for forward, input_grad, weight_grad in [(1, 1, 1), (4, 4, 3), (4, 5, 4)]:
                costs = StageCosts(forward=forward, input_grad=input_grad, weight_grad=weight_grad)
                timeline = simulate(gis(p, 2 * p, num_chunks=v, group_size=p // 2), costs)
                bubble = timeline.makespan - 2 * p * v * (forward + input_grad + weight_grad)
                published = (p - 1) * (forward + input_grad) + (v - 1) * p // 2 * (forward + input_grad - weight_grad)
                assert bubble == published


def test_it_is_faster_than_interleaved_1f1b_by_the_weight_gradients_of_the_fill() -> None:
    costs = StageCosts(forward=3, input_grad=4, weight_grad=2)
    for p in range(1, 5):
        for m in (p, 3 * p):
            interleaved = simulate(interleaved_1f1b(p, m, num_chunks=2), costs).makespan
            assert interleaved - simulate(gis(p, m), costs).makespan == (p - 1) * 2


def test_peaks_are_the_published_ones() -> None:
    for p, m, v, g in _sizes():
        peaks = _proof(p, m, v, g).peak_activations
        assert peaks == tuple(min((v - 1) * g + p - rank, m * v) for rank in range(p))
        if m >= p == g:
            assert peaks[0] == v * p
            most = verify(interleaved_1f1b(p, m, num_chunks=v)).peak_activations[0]
            assert most == min(v * p + p - 1, m * v)


def test_only_one_weight_gradient_is_ever_deferred() -> None:
    assert set(verify(gis(4, 8)).peak_deferred) == {1}


def test_a_ragged_last_group_runs_within_the_peak_of_a_whole_one() -> None:
    for p in range(1, 5):
        for g in range(-(-p // 2), p + 1):
            for m in range(1, 10):
                peaks = verify(gis(p, m, num_chunks=2, group_size=g)).peak_activations
                assert all(peak <= g + p - rank for rank, peak in enumerate(peaks))


def test_a_ragged_last_group_keeps_the_order_of_a_whole_one() -> None:
    whole = gis(3, 6, num_chunks=3).ranks
    kept = tuple(tuple(op for op in ops if op.microbatch < 4) for ops in whole)
    assert gis(3, 4, num_chunks=3).ranks == kept


def test_without_a_group_size_a_group_is_as_large_as_the_pipeline() -> None:
    assert gis(4, 8, num_chunks=3) == gis(4, 8, num_chunks=3, group_size=4)


@pytest.mark.parametrize(
    ("num_ranks", "group_size", "said"),
    [
        (4, 1, "group_size=1; it is defined from 2, half of num_ranks=4, to 4, use e.g. group_size=2"),
        (5, 2, "group_size=2; it is defined from 3, half of num_ranks=5, to 5, use e.g. group_size=3"),
        (4, 5, "group_size=5; it is defined from 2, half of num_ranks=4, to 4, use e.g. group_size=4"),
        (4, 0, "group_size=0; use at least 1"),
        (4, 2.5, "group_size=2.5 is not a whole number"),
    ],
)
def test_a_group_size_out_of_range_is_refused(num_ranks: int, group_size: int, said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        gis(num_ranks, 8, group_size=group_size)
    assert str(refused.value).startswith(f"gis: {said}")
