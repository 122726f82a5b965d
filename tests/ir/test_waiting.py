"""The walk that decides who waits for good. Two ranks of three entries each: 0 1 2 and 3 4 5."""

import numpy as np

from penstock.ir.waiting import NEVER, Waits, Walk

FIRST = np.array([0, 3, 6])


def walk(*waits: tuple[int, int, int]) -> Walk:
    return Walk(FIRST, Waits(*np.array(waits, np.int64).reshape(-1, 3).T))


def test_ranks_that_wait_for_nobody_reach_their_end() -> None:
    free = walk()
    assert free.run() == {}
    assert free.reached == [3, 6]


def test_ranks_that_wait_in_turn_reach_their_end() -> None:
    in_turn = walk((0, 1, 4), (4, 0, 2), (2, 1, 6))
    assert in_turn.run() == {}
    assert in_turn.reached == [3, 6]


def test_ranks_that_wait_in_a_circle_stand_where_they_wait() -> None:
    circle = walk((4, 0, 3), (1, 1, 5))
    assert circle.run() == {0: 1, 1: 0}
    assert circle.reached == [1, 4]


def test_a_rank_waits_for_a_later_entry_of_its_own_for_good() -> None:
    assert walk((1, 0, 3)).run() == {0: 0}


def test_a_released_rank_goes_on_and_wakes_who_waits_for_it() -> None:
    released = walk((1, 1, NEVER), (5, 0, 3))
    assert released.run() == {0: 0, 1: 1}
    released.release(0)
    assert released.run() == {}
    assert released.reached == [3, 6]
