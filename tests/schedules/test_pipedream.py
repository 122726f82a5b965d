"""PipeDream: 1F1B without flush, a step behind every backward, replicated stages."""

from fractions import Fraction
from itertools import pairwise

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import StageCosts, WeightRule, one_f_one_b, pipedream, simulate, verify
from penstock.errors import ScheduleError
from penstock.ir import OpKind

GRIDS = {
    (1, 2): "rank 0: F0 B0 S0 F1 B1 S1",
    (3, 1): """
        rank 0: F0 .  .  .  .  B0 S0
        rank 1: .  F0 .  .  B0 S0 .
        rank 2: .  .  F0 B0 S0 .  .
    """,
    (3, 4): """
        rank 0: F0 F1 F2 .  .  B0 S0 F3 B1 S1 .  B2 S2 .  B3 S3
        rank 1: .  F0 F1 .  B0 S0 F2 B1 S1 F3 B2 S2 .  B3 S3 .
        rank 2: .  .  F0 B0 S0 F1 B1 S1 F2 B2 S2 F3 B3 S3 .  .
    """,
    (4, 5): """
        rank 0: F0 F1 F2 F3 .  .  .  B0 S0 F4 B1 S1 .  B2 S2 .  B3 S3 .  B4 S4
        rank 1: .  F0 F1 F2 .  .  B0 S0 F3 B1 S1 F4 B2 S2 .  B3 S3 .  B4 S4 .
        rank 2: .  .  F0 F1 .  B0 S0 F2 B1 S1 F3 B2 S2 F4 B3 S3 .  B4 S4 .  .
        rank 3: .  .  .  F0 B0 S0 F1 B1 S1 F2 B2 S2 F3 B3 S3 F4 B4 S4 .  .  .
    """,
}

REPLICATED = {
    ((2, 1), 4): """
        rank 0: F0   F2   .  B0 .    .    .    S0   .  B2 .    .    .    S2
        rank 1: F1@1 F3@1 .  .  .    .    B1@1 S1@1 .  .  .    .    B3@1 S3@1
        rank 2: .    F0   B0 S0 F1@1 B1@1 S1@1 F2   B2 S2 F3@1 B3@1 S3@1 .
    """,
    ((1, 2), 4): """
        rank 0: F0 F1@1 F2   B0   S0   F3@1 B1@1 S1@1 B2   S2 B3@1 S3@1
        rank 1: .  F0   B0   .    S0   F2   B2   .    S2   .  .    .
        rank 2: .  .    F1@1 B1@1 S1@1 .    F3@1 B3@1 S3@1 .  .    .
    """,
}

COSTS = [(1, 1, 0), (1, 2, 0), (3, 2, 1), (0, 1, 2), (2, 5, Fraction(1, 3))]


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_pipedream_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(pipedream(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


@pytest.mark.parametrize(("replicas", "num_microbatches"), REPLICATED)
def test_replicated_stages_take_turns_and_step_together(replicas: tuple[int, ...], num_microbatches: int) -> None:
    schedule = pipedream(sum(replicas), num_microbatches, replicas=replicas)
    assert rows(schedule) == drawn(REPLICATED[replicas, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(pipedream) == rows(pipedream(3, 4))


@pytest.mark.parametrize("num_ranks", range(1, 6))
def test_without_its_steps_it_is_1f1b(num_ranks: int) -> None:
    for num_microbatches in range(1, 10):
        kept = tuple(
            tuple(op for op in ops if op.kind is not OpKind.S) for ops in pipedream(num_ranks, num_microbatches).ranks
        )
        assert kept == one_f_one_b(num_ranks, num_microbatches).ranks


@pytest.mark.parametrize("vertical_sync", [False, True])
def test_a_step_follows_every_backward(vertical_sync: bool) -> None:
    for ops in pipedream(4, 7, vertical_sync=vertical_sync).ranks:
        for backward, step in pairwise(ops):
            assert (backward.kind is OpKind.B) == (step == backward._replace(kind=OpKind.S))


def test_vertical_sync_is_a_rule_for_the_same_order() -> None:
    straight, synced = pipedream(3, 5), pipedream(3, 5, vertical_sync=True)
    assert straight.ranks == synced.ranks
    assert (straight.weight_rule, synced.weight_rule) == (WeightRule.STASH, WeightRule.VERTICAL_SYNC)


@pytest.mark.parametrize(("forward", "backward", "step"), COSTS)
def test_the_closed_forms_of_pipedream_hold_exactly(forward: int, backward: int, step: int) -> None:
    costs = StageCosts(forward=forward, backward=backward, optimizer_step=step)
    for p in range(1, 7):
        for m in range(1, 12):
            timeline = simulate(pipedream(p, m), costs)
            assert timeline.makespan == (m + p - 1) * (forward + backward) + m * step
            assert timeline.peak_activations == tuple(min(p - rank, m) for rank in range(p))


def test_the_bubble_of_a_microbatch_vanishes_where_a_flush_leaves_it() -> None:
    """(p-1)/m of the work, once: flushes of n microbatches each leave (p-1)/n of it for good."""
    costs = StageCosts(forward=1, backward=2)
    for p in range(1, 6):
        for m in (1, 10, 100):
            assert simulate(pipedream(p, m), costs).bubble_ratio == (p - 1) / m
            assert simulate(one_f_one_b(p, 10), costs).bubble_ratio == (p - 1) / 10


@pytest.mark.parametrize(
    ("replicas", "idle"),
    [((1, 1), 0), ((1, 1, 1, 1), 0), ((2, 1), 0), ((3, 1), 0), ((2, 2, 1), 0), ((15, 1), 0),
     ((1, 2), Fraction(1, 5)), ((1, 3), Fraction(1, 4)), ((3, 2), Fraction(1, 7)), ((1, 3, 2), Fraction(1, 3))],
)  # fmt: skip
def test_balanced_stages_stand_still_in_their_steady_state_only_where_ranks_of_a_later_one_wait_for_each_other(
    replicas: tuple[int, ...], idle: Fraction
) -> None:
    """Stage k costs as much as it has ranks. Between the quarters of a long run, the last rank is idle so long."""
    costs = StageCosts(forward=replicas, backward=[2 * count for count in replicas])
    row = simulate(pipedream(sum(replicas), 240, replicas=replicas), costs).by_rank[-1]
    starts = [span.start for span in row if span.op.kind is OpKind.F]
    quarter = len(starts) // 4
    work = 2 * quarter * 3 * replicas[-1]
    assert work == (starts[3 * quarter] - starts[quarter]) * (1 - idle)


def test_the_input_stage_has_ranks_over_replicas_microbatches_in_flight() -> None:
    for replicas in [(1,), (1, 1), (3, 1), (2, 3), (2, 1, 1), (5, 1), (1, 4)]:
        num_ranks = sum(replicas)
        kinds = [op.kind for op in pipedream(num_ranks, 60, replicas=replicas).ranks[0]]
        assert kinds.index(OpKind.B) == -(-num_ranks // replicas[0])


def test_microbatches_go_to_the_ranks_of_a_stage_in_turn() -> None:
    schedule = pipedream(5, 12, replicas=(3, 2))
    served = [[op.microbatch for op in ops if op.kind is OpKind.F] for ops in schedule.ranks]
    assert served == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11], [0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert schedule.placement.table == ((0, 3), (1, 4), (2, 3), (0, 4), (1, 3), (2, 4))


@pytest.mark.parametrize("replicas", [(1,), (2,), (2, 1), (1, 2), (2, 3), (3, 2), (1, 3, 1), (2, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_replicated_stages_are_proven(replicas: tuple[int, ...], rounds: int) -> None:
    rows = pipedream(sum(replicas), 12, replicas=replicas).placement.num_replicas
    verify(pipedream(sum(replicas), rows * rounds, replicas=replicas))


@pytest.mark.parametrize(
    ("replicas", "num_ranks", "num_microbatches", "said"),
    [
        ((2, 2), 3, 4, "replicas=(2, 2) are 4 ranks, not num_ranks=3; give a number for each stage that add up to it"),
        ((), 1, 4, "replicas=() are 0 ranks, not num_ranks=1"),
        ((3, 0), 3, 3, "replicas[1]=0; use at least 1"),
        ((2, 1.0), 3, 4, "replicas[1]=1.0 is not a whole number"),
        ((2, 1), 3, 5, "num_microbatches=5 gives the ranks of a stage of replicas=(2, 1) unequally many; use a "
                       "multiple of 2, e.g. num_microbatches=6"),
        ((3, 2), 5, 9, "use a multiple of 6, e.g. num_microbatches=12"),
    ],
)  # fmt: skip
def test_replicas_that_do_not_fit_are_refused(
    replicas: tuple[int, ...], num_ranks: int, num_microbatches: int, said: str
) -> None:
    with pytest.raises(ScheduleError) as refused:
        pipedream(num_ranks, num_microbatches, replicas=replicas)
    assert str(refused.value).startswith("pipedream: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("replicas", [(1, 2), (3, 2), (2, 1, 4)])
def test_vertical_sync_is_refused_where_a_stage_lacks_the_versions_of_the_input_stage(
    replicas: tuple[int, ...],
) -> None:
    with pytest.raises(ScheduleError) as refused:
        pipedream(sum(replicas), 12, replicas=replicas, vertical_sync=True)
    works = (sum(replicas) - 1, 1)
    assert str(refused.value).endswith(f"its number divides the first, as in {works}")
    verify(pipedream(sum(replicas), 12 * works[0], replicas=works, vertical_sync=True))


@pytest.mark.parametrize("replicas", [(1, 1), (2, 1), (2, 2), (4, 2, 1), (3, 1, 3)])
def test_vertical_sync_of_replicated_stages_is_proven(replicas: tuple[int, ...]) -> None:
    proof = verify(pipedream(sum(replicas), 12, replicas=replicas, vertical_sync=True))
    flight = -(-sum(replicas) // replicas[0])
    assert proof.staleness[0] == min(flight - 1, 12 // replicas[0] - 1)
