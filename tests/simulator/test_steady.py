"""The steady phase of a schedule without a flush has no bubble where stages cost the same."""

from __future__ import annotations

from fractions import Fraction

import pytest

import penstock as ps
from penstock.errors import UserError
from penstock.simulator.steady import simulate_steady, steady_phase
from penstock.timeline import Span, Timeline, Transmission, Wait

F, B = ps.OpKind.F, ps.OpKind.B


@pytest.mark.parametrize(
    "schedule",
    [ps.pipedream(3, 4), ps.pipemare(3, 6), ps.pipedream_2bw(4, 4)],
    ids=lambda schedule: schedule.name,
)
def test_equal_stages_never_stand_still(schedule: ps.Schedule) -> None:
    costs = ps.StageCosts(forward=Fraction(1), input_grad=Fraction(1), weight_grad=Fraction(1))
    timeline = simulate_steady(schedule, costs, batches=3)
    assert timeline.bubble_fraction == 0
    assert all(row[0].start == 0 for row in timeline.by_rank)


def test_a_stage_twice_as_slow_leaves_the_others_idle_half_of_the_time() -> None:
    costs = ps.StageCosts(forward=(1, 2), input_grad=(1, 2), weight_grad=(1, 2))
    timeline = simulate_steady(ps.pipedream(2, 8), costs, batches=6)
    assert timeline.busy[1] == timeline.makespan
    assert timeline.busy[0] / timeline.makespan == pytest.approx(0.5, abs=0.05)


def test_what_lies_outside_is_cut_off_drawn_by_hand() -> None:
    r"""0: FFF B F   from 2, when rank 1 begins, to 5, when rank 0 ends
    1:     F BBB
    """
    rows = (
        Span(0, ps.Op(F, 0, 0), 0, 3),
        Span(0, ps.Op(B, 0, 0), 4, 5),
        Span(1, ps.Op(F, 1, 0), 2, 3),
        Span(1, ps.Op(B, 1, 0), 4, 7),
    )
    channel = ps.lower(ps.one_f_one_b(2, 1)).channels[0]
    waits = (Wait(0, ps.Op(B, 0, 0), 1, 4, 1, 3), Wait(1, ps.Op(F, 1, 0), 0, 2, 0, 1))
    found = steady_phase(Timeline(2, rows, waits, (Transmission(channel, ps.Op(F, 1, 0), 1, 2),)))
    assert [(start, end) for _, _, start, end in found.spans] == [(0, 1), (2, 3), (0, 1), (2, 3)]
    assert found.waits == (Wait(0, ps.Op(B, 0, 0), 0, 2, 1, 1),)
    assert found.transmissions == ()
    assert found.makespan == 3


def test_ranks_that_are_never_all_at_work_are_told_of() -> None:
    apart = Timeline(2, (Span(0, ps.Op(F, 0, 0), 0, 1), Span(1, ps.Op(F, 1, 0), 2, 3)))
    with pytest.raises(UserError, match="never all at work in this timeline; look at more batches"):
        steady_phase(apart)
