"""Schedules as values, and those that are refused."""

from dataclasses import replace

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
    with pytest.raises(ScheduleError, match=r"rank 0 of sends holds 0SEND_F0; a schedule holds compute ops \("):
        Schedule("sends", Placement.looped(1), 1, ((Op(OpKind.SEND_F, 0, 0),),))


def pairing(row: str, *pairs: int) -> Schedule:
    ops = tuple(Op(OpKind[kind], 0, microbatch) for microbatch, kind in enumerate(row))
    return Schedule("pairing", Placement.looped(1), len(row), (ops,), overlapped=(pairs,))


def test_a_pair_is_a_forward_and_a_backward_side_by_side() -> None:
    assert pairing("FBFIBFWIF", 0, 2, 4, 7).overlapped == ((0, 2, 4, 7),)


@pytest.mark.parametrize(
    ("row", "pairs", "at"),
    [
        ("FBFB", (0, 1), 1),  # shares an op with the pair before
        ("FBFB", (2, 0), 0),
        ("FBFB", (0, 0), 0),
        ("FFBB", (0,), 0),
        ("FFBB", (2,), 2),
        ("FIWF", (2,), 2),
        ("BIFF", (0,), 0),
        ("FB", (1,), 1),
        ("FB", (2,), 2),
        ("FB", (-2,), -2),
    ],
)
def test_what_is_no_pair_is_refused_with_its_position(row: str, pairs: tuple[int, ...], at: int) -> None:
    with pytest.raises(ScheduleError, match=f"rank 0 of pairing: no pair at position {at}; positions ascend, each"):
        pairing(row, *pairs)


def test_pairs_and_keepers_are_given_for_every_rank() -> None:
    with pytest.raises(ScheduleError, match="has pairs for 1 ranks of 2; give one list of positions a rank"):
        replace(one_f_one_b(2, 4), overlapped=((1,),))
    with pytest.raises(ScheduleError, match="has keepers for 3 ranks of 2; give one rank a rank"):
        replace(one_f_one_b(2, 4), keepers=(2, 1, 0))
    with pytest.raises(ScheduleError, match="has keeper 2 among 2 ranks; use a rank from 0 to 1"):
        replace(one_f_one_b(2, 4), keepers=(1, 2))


def test_no_pair_anywhere_has_one_spelling() -> None:
    assert replace(one_f_one_b(2, 4), overlapped=((), ())) == one_f_one_b(2, 4)


@pytest.mark.parametrize("name", ["", " gpipe", "two\nlines", "a  b", "tab\tbed"])
def test_a_name_that_would_not_survive_the_grid_is_refused(name: str) -> None:
    """Symptom: such a schedule was drawn as a grid that could not be read back."""
    with pytest.raises(ScheduleError, match="use words parted by single spaces"):
        Schedule(name, Placement.looped(1), 1, ((F0,),))
