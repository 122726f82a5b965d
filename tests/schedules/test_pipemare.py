"""PipeMare's order: twice the microbatches of 1F1B in flight, one weight version."""

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import StageCosts, WeightRule, pipemare, simulate, verify
from penstock.errors import ScheduleError
from penstock.ir import OpKind

GRIDS = {
    (1, 2, 1): "rank 0: F0 B0 S0 F1 B1 S1",
    (2, 4, 1): """
        rank 0: F0 F1 F2 B0 S0 F3 B1 S1 .  B2 S2 .  B3 S3
        rank 1: .  F0 B0 S0 F1 B1 S1 F2 B2 S2 F3 B3 S3 .
    """,
    (3, 2, 1): """
        rank 0: F0 F1 .  .  .  B0 S0 .  B1 S1
        rank 1: .  F0 F1 .  B0 S0 .  B1 S1 .
        rank 2: .  .  F0 B0 S0 F1 B1 S1 .  .
    """,
    (3, 6, 2): """
        rank 0: F0 F1 F2 F3 F4 B0 F5 B1 S1 .  B2 .  B3 S3 .  B4 .  B5 S5
        rank 1: .  F0 F1 F2 B0 F3 B1 S1 F4 B2 F5 B3 S3 .  B4 .  B5 S5 .
        rank 2: .  .  F0 B0 F1 B1 S1 F2 B2 F3 B3 S3 F4 B4 F5 B5 S5 .  .
    """,
}


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "per_version"), GRIDS)
def test_pipemare_is_drawn_so(num_ranks: int, num_microbatches: int, per_version: int) -> None:
    schedule = pipemare(num_ranks, num_microbatches, microbatches_per_version=per_version)
    assert rows(schedule) == drawn(GRIDS[num_ranks, num_microbatches, per_version])
    assert schedule.weight_rule is WeightRule.LATEST


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(pipemare) == rows(pipemare(3, 6, microbatches_per_version=2))


def test_a_step_takes_one_microbatch_where_nothing_is_said() -> None:
    steps = [op.microbatch for op in pipemare(2, 5).ranks[0] if op.kind is OpKind.S]
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("forward", "backward", "step"), [(1, 1, 0), (1, 2, 1), (3, 2, 5), (0, 1, 2)])
def test_the_closed_forms_of_pipemare_hold_exactly(forward: int, backward: int, step: int) -> None:
    costs = StageCosts(forward=forward, backward=backward, optimizer_step=step)
    for p in range(1, 5):
        for n in range(1, 4):
            for versions in range(1, 6):
                m = n * versions
                schedule = pipemare(p, m, microbatches_per_version=n)
                timeline = simulate(schedule, costs)
                assert timeline.makespan == (m + p - 1) * (forward + backward) + versions * step
                assert timeline.peak_activations == tuple(min(2 * (p - 1 - rank) + 1, m) for rank in range(p))
                assert verify(schedule).weight_versions == (1,) * p


@pytest.mark.parametrize(
    ("num_microbatches", "per_version", "said"),
    [
        (5, 2, "num_microbatches=5 leaves the last version short of the 2 microbatches that each is made of; use a "
               "multiple, e.g. num_microbatches=6"),
        (4, 0, "microbatches_per_version=0; use at least 1"),
        (4, None, "microbatches_per_version=None is not a whole number"),
    ],
)  # fmt: skip
def test_versions_that_do_not_come_out_even_are_refused(num_microbatches: int, per_version: int, said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        pipemare(3, num_microbatches, microbatches_per_version=per_version)
    assert str(refused.value).startswith(f"pipemare: {said}")
