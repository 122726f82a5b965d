"""One pass of zb_v_greedy's scheduler under fixed rules."""

from itertools import product

import pytest

from penstock import Cluster, OpKind, Placement, Schedule, StageCosts, simulate, verify
from penstock.schedules.zb_v_greedy_clock import Clock
from penstock.schedules.zb_v_greedy_search import Rules, placed
from penstock.schedules.zb_v_greedy_terms import terms_of

GRID = [Rules(*choice) for choice in product((True, False), repeat=2)]


def walk(
    num_ranks: int,
    num_microbatches: int,
    rules: Rules,
    *,
    times: tuple[float, float, float] = (1, 1, 1),
    transfer: float = 0,
    limit: float | None = None,
    slack: float = 0,
) -> Clock:
    """Returns a pass over equal stages, where F keeps 2 and I keeps 1, and the limit counts what F keeps."""
    terms = terms_of(
        num_ranks,
        num_microbatches,
        costs=StageCosts(*times, activation_bytes=2, deferred_bytes=1),
        cluster=Cluster.uniform(num_ranks, latency_seconds=transfer),
        memory_limit=None if limit is None else 2 * limit,
    )
    return placed(terms, rules, slack=(slack,) * num_ranks)


def letters(clock: Clock, rank: int) -> str:
    """Returns the order of a rank, with small letters for the stage that forwards reach last."""
    return "".join(op.kind.name if op.stage == rank else op.kind.name.lower() for op in clock.orders[rank])


@pytest.mark.parametrize("rules", GRID)
def test_the_clock_is_that_of_the_simulator(rules: Rules) -> None:
    for num_ranks, num_microbatches, transfer in product((1, 2, 3, 4), (1, 3, 8), (0, 2)):
        clock = walk(num_ranks, num_microbatches, rules, times=(5, 6, 4), transfer=transfer)
        ranks = tuple(map(tuple, clock.orders))
        schedule = Schedule("walk", Placement.v_shaped(num_ranks), num_microbatches, ranks)
        cluster = Cluster.uniform(num_ranks, latency_seconds=transfer)
        timeline = simulate(verify(schedule).program, StageCosts(5, 6, 4), cluster)
        assert clock.worst == timeline.per_rank_span
        assert clock.free == [row[-1].end for row in timeline.by_rank]


def test_each_rank_fills_two_forwards_for_each_rank_below() -> None:
    clock = walk(4, 9, GRID[0])
    assert [letters(clock, rank).index("f") for rank in range(4)] == [7, 5, 3, 1]
    assert [letters(clock, rank).index("i") for rank in range(4)] == [8, 8, 8, 8]


def test_slow_ranks_fill_as_many() -> None:
    """Else the ranks below run out of F in the turns."""
    terms = terms_of(
        3,
        6,
        costs=StageCosts(forward=[9, 1, 1, 1, 1, 1]),
        cluster=Cluster.uniform(3),
        memory_limit=None,
    )
    clock = placed(terms, GRID[0], slack=(0, 0, 0))
    assert [letters(clock, rank).index("f") for rank in range(3)] == [5, 3, 1]


def test_room_is_taken_by_the_ranks_that_still_wait_for_a_microbatch_to_come_back() -> None:
    assert letters(walk(2, 9, GRID[0], transfer=1, limit=4), 0).index("f") == 3
    assert letters(walk(2, 9, GRID[0], transfer=1, limit=5), 0).index("f") == 4
    assert letters(walk(2, 9, GRID[0], transfer=1, limit=9), 0).index("f") == 5  # there is time for no more


def test_memory_calls_for_w_before_anything_else() -> None:
    tight, roomy = (walk(1, 4, GRID[0], limit=limit) for limit in (2, 9))
    assert letters(tight, 0).startswith("FfiwFI")
    assert letters(roomy, 0).startswith("FfiFIf")


def test_a_w_fills_a_gap_that_it_fits_in_and_a_longer_one_where_the_rank_may_idle_no_more() -> None:
    """Rank 0 waits for the gradient of stage 1 while rank 1 runs two I of 1; before, it waited 2 for its second F."""
    for rules in GRID:
        assert letters(walk(2, 1, rules, times=(1, 1, 2), slack=99), 0) == "FfiwIW"
        assert letters(walk(2, 1, rules, times=(1, 1, 3), slack=3), 0) == "FfiwIW"
        assert letters(walk(2, 1, rules, times=(1, 1, 3), slack=4), 0) == "FfiIwW"


@pytest.mark.parametrize("field", Rules._fields)
def test_each_rule_decides_some_pipeline(field: str) -> None:
    cases = product((2, 3), (4, 6), ((5, 6, 4), (2, 2, 3), (10, 12, 8)), (0, 1, 3))
    assert any(
        walk(p, m, Rules(True, True), times=times, transfer=transfer).orders
        != walk(p, m, Rules(True, True)._replace(**{field: False}), times=times, transfer=transfer).orders
        for p, m, times, transfer in cases
    )


def test_ranks_that_may_idle_place_fewer_w_before_gaps() -> None:
    def order(slack: float) -> list[str]:
        clock = walk(3, 6, Rules(True, True), times=(10, 12, 8), slack=slack)
        return [letters(clock, rank) for rank in range(3)]

    assert order(1000) != order(0)
    assert order(1000) == [
        letters(walk(3, 6, Rules(False, False), times=(10, 12, 8), slack=1000), rank) for rank in range(3)
    ]


def test_every_op_is_placed_and_f_and_i_in_turn() -> None:
    clock = walk(3, 5, GRID[-1], times=(5, 6, 4), transfer=2)
    for rank, ops in enumerate(clock.orders):
        assert len(ops) == 6 * 5
        for kind, stage in product((OpKind.F, OpKind.I, OpKind.W), (rank, 5 - rank)):
            assert [op.microbatch for op in ops if (op.kind, op.stage) == (kind, stage)] == list(range(5))
