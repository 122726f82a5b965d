"""Placements: tables of stage -> rank, and those that are refused."""

from collections.abc import Callable

import pytest

from penstock import Placement
from penstock.errors import ScheduleError


def test_a_looped_placement_deals_the_stages_out_in_turn() -> None:
    placement = Placement.looped(3, 2)
    assert placement.table == ((0, 1, 2, 0, 1, 2),)
    assert (placement.num_ranks, placement.num_stages, placement.num_chunks) == (3, 6, 2)
    assert placement.stages_of(1) == (1, 4)


def test_a_v_turns_back_on_the_last_rank() -> None:
    placement = Placement.v_shaped(2)
    assert placement == Placement.replicas((0, 1, 1, 0))
    assert placement.stages_of(0) == (0, 3)
    assert placement.stages_of(1) == (1, 2)
    assert [placement.rank_of(stage) for stage in range(4)] == [0, 1, 1, 0]


def test_rank_i_of_a_v_holds_the_i_th_stage_from_either_end() -> None:
    for num_ranks in range(1, 9):
        placement = Placement.v_shaped(num_ranks)
        assert placement.num_stages == 2 * num_ranks
        for rank in range(num_ranks):
            assert placement.stages_of(rank) == (rank, 2 * num_ranks - 1 - rank)


def test_a_wave_goes_down_and_up_again() -> None:
    assert Placement.wave(3, 2).table == ((0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0),)
    assert Placement.wave(1, 3).table == ((0, 0, 0, 0, 0, 0),)
    for num_ranks in range(1, 6):
        assert Placement.wave(num_ranks) == Placement.v_shaped(num_ranks)
        for num_waves in range(1, 5):
            placement = Placement.wave(num_ranks, num_waves)
            assert (placement.num_ranks, placement.num_chunks) == (num_ranks, 2 * num_waves)


@pytest.mark.parametrize("table", [Placement.v_shaped, Placement.wave, lambda p: Placement.wave(2, p)])
def test_a_v_of_no_ranks_or_waves_is_an_empty_placement(table: Callable[[int], Placement]) -> None:
    with pytest.raises(ScheduleError, match="placement is empty"):
        table(0)


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


def test_a_rank_in_several_rows_holds_its_stage_once_and_other_ranks_are_its_copies() -> None:
    placement = Placement.replicas((0, 3), (1, 4), (2, 3), (0, 4), (1, 3), (2, 4))
    assert [placement.owners(stage) for stage in range(2)] == [(0, 1, 2), (3, 4)]
    assert [placement.held(rank) for rank in range(5)] == [(0,), (0,), (0,), (1,), (1,)]
    assert Placement.replicas((0, 1, 1), (1, 0, 1)).held(1) == (0, 1, 2)
    assert Placement.v_shaped(2).held(1) == (1, 2)


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
