"""Placements: tables of stage -> rank, and those that are refused."""

import pytest

from penstock import Placement
from penstock.errors import ScheduleError


def test_a_looped_placement_deals_the_stages_out_in_turn() -> None:
    placement = Placement.looped(3, 2)
    assert placement.table == ((0, 1, 2, 0, 1, 2),)
    assert (placement.num_ranks, placement.num_stages, placement.num_chunks) == (3, 6, 2)
    assert placement.stages_of(1) == (1, 4)


def test_a_v_turns_back_on_the_last_rank() -> None:
    placement = Placement.replicas((0, 1, 1, 0))
    assert placement.stages_of(0) == (0, 3)
    assert placement.stages_of(1) == (1, 2)
    assert [placement.rank_of(stage) for stage in range(4)] == [0, 1, 1, 0]


def test_two_directions_hold_the_stages_in_opposite_orders() -> None:
    placement = Placement.replicas((0, 1, 2), (2, 1, 0))
    assert placement.num_replicas == 2
    assert placement.num_chunks == 1
    assert placement.stages_of(0) == (0,)
    assert placement.stages_of(0, replica=1) == (2,)
    assert placement.rank_of(2, replica=1) == 0


def test_a_rank_may_hold_no_stage_of_one_direction() -> None:
    placement = Placement.replicas((0, 0), (1, 0))
    assert placement.num_ranks == 2
    assert placement.stages_of(1) == ()
    assert placement.num_chunks == 2


def test_equal_tables_are_equal_placements() -> None:
    assert Placement.replicas([0, 1]) == Placement.looped(2)
    assert hash(Placement.replicas([0, 1])) == hash(Placement.looped(2))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "placement is empty; it needs a rank for at least one stage, e.g. ((0,),)"),
        ([[]], "placement is empty; it needs a rank for at least one stage, e.g. ((0,),)"),
        ([[0, 2]], "placement uses ranks [0, 2]; ranks count from 0 without a gap and each holds a stage, here [0, 1]"),
        ([[1, 2]], "placement uses ranks [1, 2]; ranks count from 0 without a gap"),
        ([[-1, 0]], "placement uses ranks [-1, 0]; ranks count from 0 without a gap"),
        ([[0, 1], [0]], "placement has replicas of [2, 1] stages; all replicas hold the same stages"),
    ],
)  # fmt: skip
def test_a_table_that_is_no_placement_is_refused(rows: list[list[int]], said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        Placement.replicas(*rows)
    assert said in str(refused.value)
