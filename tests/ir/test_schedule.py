"""Schedules as values, and those that are refused."""

import pytest

from penstock import Op, OpKind, Placement, Schedule, WeightRule, gpipe, one_f_one_b
from penstock.errors import ScheduleError
from penstock.notation import draw_grid

F0 = Op(OpKind.F, 0, 0)


def test_equal_sizes_give_equal_schedules() -> None:
    assert one_f_one_b(3, 5) == one_f_one_b(3, 5)
    assert hash(one_f_one_b(3, 5)) == hash(one_f_one_b(3, 5))
    assert one_f_one_b(3, 5) != one_f_one_b(3, 6)


def test_printing_a_schedule_draws_it() -> None:
    assert str(gpipe(2, 2)) == draw_grid(gpipe(2, 2))


def test_ops_come_rank_by_rank_with_their_positions() -> None:
    listed = [(rank, position, str(op)) for rank, position, op in gpipe(2, 1).ops()]
    assert listed == [(0, 0, "0F0"), (0, 1, "0B0"), (1, 0, "1F0"), (1, 1, "1B0")]


def test_sizes_come_from_the_placement() -> None:
    schedule = Schedule("loop", Placement.looped(2, 3), 1, ((), ()))
    assert (schedule.num_ranks, schedule.num_stages) == (2, 6)
    assert schedule.weight_rule is WeightRule.FLUSH


def test_no_microbatch_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"num_microbatches=-1; use at least 1"):
        Schedule("none", Placement.looped(1), -1, ((F0,),))


def test_ops_for_another_number_of_ranks_are_refused() -> None:
    with pytest.raises(ScheduleError, match=r"short has ops for 1 ranks but places stages on 2; give one row"):
        Schedule("short", Placement.looped(2), 1, ((F0,),))


def test_an_op_that_only_lowering_adds_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"rank 0 of sends holds 0SEND_F0; a schedule holds compute ops only"):
        Schedule("sends", Placement.looped(1), 1, ((Op(OpKind.SEND_F, 0, 0),),))


@pytest.mark.parametrize("name", ["", " gpipe", "two\nlines", "a  b", "tab\tbed"])
def test_a_name_that_would_not_survive_the_grid_is_refused(name: str) -> None:
    """Symptom: such a schedule was drawn as a grid that could not be read back."""
    with pytest.raises(ScheduleError, match="use words parted by single spaces"):
        Schedule(name, Placement.looped(1), 1, ((F0,),))
