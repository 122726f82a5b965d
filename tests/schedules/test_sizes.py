"""Sizes that no schedule is defined for."""

import pytest

from penstock.errors import ScheduleError, UserError
from penstock.schedules import SCHEDULES, named_schedule
from penstock.schedules.sizes import backwards, forwards

BAD = [
    (0, "num_ranks=0; use at least 1, e.g. num_ranks=4"),
    (-1, "num_ranks=-1; use at least 1"),
    (2.5, "num_ranks=2.5 is not a whole number; use e.g. num_ranks=4"),
    (2.0, "num_ranks=2.0 is not a whole number"),
    (True, "num_ranks=True is not a whole number"),
    ("4", "num_ranks='4' is not a whole number"),
    (None, "num_ranks=None is not a whole number"),
    (float("nan"), "num_ranks=nan is not a whole number"),
]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("value", "said"), BAD)
def test_a_size_that_is_no_positive_whole_number_is_refused(name: str, value: int, said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        named_schedule(name, num_ranks=value, num_microbatches=4)
    assert str(refused.value).startswith(f"{name}: {said}")
    with pytest.raises(UserError) as refused:
        named_schedule(name, num_ranks=2, num_microbatches=value)
    assert str(refused.value).startswith(f"{name}: {said.replace('ranks', 'microbatches')}")


def test_the_shorthands_name_one_stage() -> None:
    assert list(map(str, forwards(2, range(1, 3)))) == ["2F1", "2F2"]
    assert list(map(str, backwards(2, range(1, 3)))) == ["2B1", "2B2"]
