"""Batches of an asynchronous schedule that follow one another are the family's own longer schedule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.errors import ScheduleError, UserError
from penstock.notation import draw_grid
from penstock.schedules.unbroken import part_ends, unbroken

SIZES = st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(1, 4))


def test_the_next_batchs_warm_up_fills_the_gaps_of_the_cool_down() -> None:
    schedule = ps.pipedream(2, 3)
    assert " ".join(map(str, schedule.ranks[0])) == "0F0 0F1 0B0 0S0 0F2 0B1 0S1 0B2 0S2"
    twice = unbroken(schedule, 2)
    assert " ".join(map(str, twice.ranks[0])) == (
        "0F0 0F1 0B0 0S0 0F2 0B1 0S1 0F3 0B2 0S2 0F4 0B3 0S3 0F5 0B4 0S4 0B5 0S5"
    )
    assert part_ends(schedule, 2) == ((7, 16, 18), (9, 18, 18))
    assert draw_grid(twice) == draw_grid(ps.pipedream(2, 6))


@given(SIZES)
@settings(max_examples=40, deadline=None)
def test_batches_in_a_row_are_one_long_schedule(sizes: tuple[int, int, int]) -> None:
    p, more, k = sizes
    m = p + more
    assert unbroken(ps.pipedream(p, m), k) == ps.pipedream(p, k * m)
    assert unbroken(ps.pipedream(p, m, vertical_sync=True), k) == ps.pipedream(p, k * m, vertical_sync=True)
    twice = ps.pipedream_2bw(p, 2 * p, microbatches_per_version=p)
    assert unbroken(twice, k) == ps.pipedream_2bw(p, 2 * p * k, microbatches_per_version=p)
    assert unbroken(ps.pipemare(p, p + m), k) == ps.pipemare(p, k * (p + m))


def test_replicated_stages_go_on_too() -> None:
    schedule = ps.pipedream(3, 6, replicas=(2, 1))
    assert unbroken(schedule, 3) == ps.pipedream(3, 18, replicas=(2, 1))


def test_fewer_microbatches_than_ranks_keep_fewer_in_flight_and_still_run() -> None:
    proof = ps.verify(unbroken(ps.pipedream(4, 2), 5))
    assert proof.peak_activations == (2, 2, 2, 1)


def test_what_has_no_steps_inside_or_no_matching_ends_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"one_f_one_b leaves the optimizer step to the loop.*e.g. pipedream"):
        unbroken(ps.one_f_one_b(2, 4), 2)
    with pytest.raises(ScheduleError, match="times=0; give how many"):
        unbroken(ps.pipedream(2, 4), 0)
    with pytest.raises(UserError, match="schedule is 3, not"):
        unbroken(3, 2)  # type: ignore[arg-type]
    op, kind = ps.Op, ps.OpKind
    late = (op(kind.F, 0, 0), op(kind.F, 0, 1), op(kind.B, 0, 0), op(kind.B, 0, 1), op(kind.S, 0, 1))
    early = (op(kind.F, 1, 0), op(kind.B, 1, 0), op(kind.F, 1, 1), op(kind.B, 1, 1), op(kind.S, 1, 1))
    fine = ps.Schedule("two", ps.Placement.looped(2), 2, (late, early), ps.WeightRule.STASH)
    ps.verify(unbroken(fine, 3))
    odd = (op(kind.F, 0, 0), op(kind.F, 0, 1), op(kind.B, 0, 0), op(kind.F, 0, 2), op(kind.F, 0, 3), op(kind.B, 0, 1))
    odd += (op(kind.B, 0, 2), op(kind.B, 0, 3), op(kind.S, 0, 3))
    ps.verify(unbroken(ps.Schedule("odd", ps.Placement.looped(1), 4, (odd,), ps.WeightRule.STASH), 2))
    last = (op(kind.F, 0, 0), op(kind.F, 0, 1), op(kind.F, 0, 2), op(kind.B, 0, 0), op(kind.B, 0, 1), op(kind.F, 0, 3))
    last += (op(kind.B, 0, 2), op(kind.S, 0, 2))
    with pytest.raises(ScheduleError, match="cannot go on without a flush: rank 0 begins with 2 forwards ahead"):
        unbroken(ps.Schedule("last", ps.Placement.looped(1), 4, (last,), ps.WeightRule.STASH), 2)
