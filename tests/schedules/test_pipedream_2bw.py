"""PipeDream-2BW: versions of p microbatches and more, and no flush between them."""

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import StageCosts, WeightRule, one_f_one_b, pipedream_2bw, simulate, verify
from penstock.errors import ScheduleError
from penstock.ir import OpKind

GRIDS = {
    (1, 2, 1): "rank 0: F0 B0 S0 F1 B1 S1",
    (2, 4, 2): """
        rank 0: F0 F1 .  B0 F2 B1 S1 F3 B2 .  B3 S3
        rank 1: .  F0 B0 F1 B1 S1 F2 B2 F3 B3 S3 .
    """,
    (2, 4, 4): """
        rank 0: F0 F1 .  B0 F2 B1 F3 B2 .  B3 S3
        rank 1: .  F0 B0 F1 B1 F2 B2 F3 B3 S3 .
    """,
    (3, 6, 3): """
        rank 0: F0 F1 F2 .  .  B0 F3 B1 F4 B2 S2 F5 B3 .  B4 .  B5 S5
        rank 1: .  F0 F1 .  B0 F2 B1 F3 B2 S2 F4 B3 F5 B4 .  B5 S5 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 S2 F3 B3 F4 B4 F5 B5 S5 .  .
    """,
}


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "per_version"), GRIDS)
def test_2bw_is_drawn_so(num_ranks: int, num_microbatches: int, per_version: int) -> None:
    schedule = pipedream_2bw(num_ranks, num_microbatches, microbatches_per_version=per_version)
    assert rows(schedule) == drawn(GRIDS[num_ranks, num_microbatches, per_version])
    assert schedule.weight_rule is WeightRule.DOUBLE_BUFFERED


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(pipedream_2bw) == rows(pipedream_2bw(3, 6))


def test_without_its_steps_it_is_one_long_1f1b() -> None:
    for num_ranks in range(1, 6):
        for num_microbatches in range(num_ranks, 14):
            schedule = pipedream_2bw(num_ranks, num_microbatches)
            kept = tuple(tuple(op for op in ops if op.kind is not OpKind.S) for ops in schedule.ranks)
            assert kept == one_f_one_b(num_ranks, num_microbatches).ranks
            verify(schedule)


@pytest.mark.parametrize(("forward", "backward", "step"), [(1, 1, 0), (1, 2, 1), (3, 2, 5), (0, 1, 2)])
def test_the_closed_forms_of_2bw_hold_exactly(forward: int, backward: int, step: int) -> None:
    costs = StageCosts(forward=forward, backward=backward, optimizer_step=step)
    for p in range(1, 5):
        for n in range(p, p + 3):
            for versions in range(1, 5):
                m = n * versions
                timeline = simulate(pipedream_2bw(p, m, microbatches_per_version=n), costs)
                assert timeline.makespan == (m + p - 1) * (forward + backward) + versions * step
                assert timeline.peak_activations == tuple(min(p - rank, m) for rank in range(p))


def test_a_version_takes_the_fewest_microbatches_that_divide_m_and_reach_p() -> None:
    for num_ranks, num_microbatches, per_version in [(4, 12, 4), (4, 10, 5), (4, 7, 7), (1, 6, 1), (3, 8, 4)]:
        ops = pipedream_2bw(num_ranks, num_microbatches).ranks[0]
        steps = [op.microbatch for op in ops if op.kind is OpKind.S]
        assert steps == list(range(per_version - 1, num_microbatches, per_version))


@pytest.mark.parametrize(
    ("num_ranks", "num_microbatches", "per_version", "said"),
    [
        (4, 3, None, "num_microbatches=3 is less than num_ranks=4; a version takes at least one microbatch a rank, "
                     "e.g. num_microbatches=8 for two versions"),
        (4, 12, 3, "microbatches_per_version=3 is less than num_ranks=4; two versions cover what is in flight from one "
                   "microbatch a rank on, use at least 4"),
        (4, 12, 0, "microbatches_per_version=0; use at least 1"),
        (4, 12, 4.0, "microbatches_per_version=4.0 is not a whole number"),
        (4, 12, 5, "num_microbatches=12 leaves the last version short of the 5 microbatches that each is made of; use "
                   "a multiple, e.g. num_microbatches=15"),
    ],
)  # fmt: skip
def test_sizes_for_which_two_versions_do_not_do_are_refused(
    num_ranks: int, num_microbatches: int, per_version: int | None, said: str
) -> None:
    with pytest.raises(ScheduleError) as refused:
        pipedream_2bw(num_ranks, num_microbatches, microbatches_per_version=per_version)
    assert str(refused.value).startswith(f"pipedream_2bw: {said}")
