"""Costs per stage, and those that are refused."""

from fractions import Fraction
from statistics import fmean

import numpy as np
import pytest

from penstock import Op, OpKind, StageCosts, Timeline
from penstock.costs import measured_costs
from penstock.errors import UserError
from penstock.timeline import Span


def test_one_number_is_that_of_every_stage() -> None:
    assert StageCosts(forward=3).per_stage("forward", 4) == (3, 3, 3, 3)


def test_a_list_is_one_number_a_stage() -> None:
    assert StageCosts(forward=[1, 2.5, 3]).per_stage("forward", 3) == (1, 2.5, 3)


def test_a_full_backward_is_both_halves_unless_it_was_measured() -> None:
    halves = StageCosts(input_grad=[1, 2], weight_grad=Fraction(1, 2))
    assert halves.seconds(2)[OpKind.B] == (Fraction(3, 2), Fraction(5, 2))
    assert StageCosts(input_grad=1, weight_grad=1, backward=1.5).seconds(2)[OpKind.B] == (1.5, 1.5)


def test_a_pair_takes_what_its_ops_take_unless_it_was_measured() -> None:
    assert StageCosts(forward=[1, 2], backward=5).per_stage("overlapped", 2) == (6, 7)
    assert StageCosts(forward=[1, 2], backward=5).overlap_saves(2) == (0, 0)
    assert StageCosts(forward=[1, 2], backward=5, overlapped=5.5).overlap_saves(2) == (0.5, 1.5)


def test_every_timed_kind_has_its_seconds() -> None:
    costs = StageCosts(forward=1, backward=2, input_grad=3, weight_grad=4, optimizer_step=5, reduce_grad=6, unshard=7)
    assert {kind.name: seconds for kind, seconds in costs.seconds(1).items()} == {
        "F": (1,), "B": (2,), "I": (3,), "W": (4,), "S": (5,), "REDUCE_GRAD": (6,), "UNSHARD": (7,)
    }  # fmt: skip


def test_whole_numbers_and_fractions_stay_what_they_are() -> None:
    (seconds,) = StageCosts(forward=Fraction(1, 3)).per_stage("forward", 1)
    assert isinstance(seconds, Fraction)
    assert isinstance(StageCosts(forward=2).per_stage("forward", 1)[0], int)


def test_measured_numbers_of_numpy_are_numbers() -> None:
    assert StageCosts(forward=np.float64(0.5)).per_stage("forward", 2) == (0.5, 0.5)


def test_equal_costs_are_equal_and_hash_alike() -> None:
    assert StageCosts(forward=[1, 2]) == StageCosts(forward=(1, 2))
    assert hash(StageCosts(forward=[1, 2])) == hash(StageCosts(forward=(1, 2)))


FIELDS = ["forward", "backward", "overlapped", "parameter_bytes", "boundary_bytes"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-1, "=-1; a cost is finite and not negative, e.g. {field}=1.0"),
        (float("nan"), "=nan; a cost is finite"),
        (float("inf"), "=inf; a cost is finite"),
        ([1, -0.5], "=-0.5; a cost is finite"),
        ("2", "='2' is not a number; give seconds or bytes, e.g. {field}=1.0"),
        # Symptom: accepted, and told of later as "0 values". Cause: a word is a sequence.
        ("", "='' is not a number"),
        ("fast", "='fast' is not a number"),
        ([1, "2"], "='2' is not a number"),
        (True, "=True is not a number"),
        ([1, None], "=None is not a number"),
        (1j, "=1j is not a number"),
        ({}, "={} is not a number"),
    ],
)
def test_a_cost_that_is_no_amount_is_refused(field: str, value: object, said: str) -> None:
    with pytest.raises(UserError) as refused:
        StageCosts(**{field: value})  # type: ignore[arg-type]
    said = said.replace("{field}", field)
    assert str(refused.value).startswith(f"{field}{said}")


def test_only_the_backward_may_be_left_to_its_halves() -> None:
    """Symptom: forward=None cost as much as a backward. Cause: None meant I + W for every field."""
    with pytest.raises(UserError, match="forward=None is not a number"):
        StageCosts(forward=None)  # type: ignore[arg-type]


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(UserError) as refused:
        StageCosts(forward=[1, 2], backward=[1, 2, 3])
    assert "{'forward': 2, 'backward': 3}; give one number a stage" in str(refused.value)


@pytest.mark.parametrize("value", [[1, 2, 3], []])
def test_a_list_of_another_length_than_the_stages_is_refused(value: list[float]) -> None:
    with pytest.raises(UserError) as refused:
        StageCosts(forward=value).per_stage("forward", 2)
    assert str(refused.value) == (f"forward has {len(value)} values for 2 stages; give one number a stage")


def measured(*seconds: float) -> Timeline:
    """One forward of stage 1 after another, and one backward of stage 0."""
    forwards = [Span(1, Op(OpKind.F, 1, number), 0, each) for number, each in enumerate(seconds)]
    return Timeline(2, (Span(0, Op(OpKind.B, 0, 0), 4, 9), *forwards))


def test_measured_costs_are_medians_over_all_steps() -> None:
    costs = measured_costs([measured(2, 3, 1), measured(30)])
    assert (costs.forward, costs.backward) == ((0, 2.5), (5, 0))


def test_measured_costs_by_the_mean_count_what_is_rare() -> None:
    assert measured_costs([measured(2, 3, 1), measured(30)], average=fmean).forward == (0, 9)


def test_nothing_measured_has_no_costs() -> None:
    with pytest.raises(UserError, match="run a step first"):
        measured_costs([Timeline(2, ())])
