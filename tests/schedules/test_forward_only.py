"""forward_only: evaluation."""

import pytest
from tests.schedules.grids import drawing_in, rows

from penstock import Placement, StageCosts, WeightRule, simulate
from penstock.errors import ScheduleError
from penstock.schedules import forward_only


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(forward_only) == rows(forward_only(Placement.looped(3), 4))


def test_each_rank_takes_its_stages_in_model_order() -> None:
    schedule = forward_only(Placement.replicas((0, 1, 1, 0)), 2)
    assert [" ".join(map(str, ops)) for ops in schedule.ranks] == ["0F0 0F1 3F0 3F1", "1F0 1F1 2F0 2F1"]


def test_only_the_first_direction_runs() -> None:
    schedule = forward_only(Placement.replicas((0, 1), (1, 0)), 1)
    assert [" ".join(map(str, ops)) for ops in schedule.ranks] == ["0F0", "1F0"]


def test_weights_are_frozen_and_nothing_is_kept() -> None:
    schedule = forward_only(Placement.looped(2), 3)
    assert schedule.weight_rule is WeightRule.FROZEN
    timeline = simulate(schedule, StageCosts(activation_bytes=8, parameter_bytes=5))
    assert timeline.peak_activations == (0, 0)
    assert timeline.peak_memory == (5, 5)


@pytest.mark.parametrize("forward", [1, 3])
def test_the_makespan_of_an_evaluation_is_that_of_a_fill(forward: int) -> None:
    for num_ranks in range(1, 6):
        for num_microbatches in range(1, 8):
            timeline = simulate(
                forward_only(Placement.looped(num_ranks), num_microbatches), StageCosts(forward=forward)
            )
            assert timeline.makespan == (num_microbatches + num_ranks - 1) * forward


def test_no_microbatch_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"forward_only: num_microbatches=0; use at least 1"):
        forward_only(Placement.looped(2), 0)
