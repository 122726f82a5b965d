"""The tree of errors."""

import inspect

import pytest

from penstock import errors
from penstock.errors import PenstockError, RankFailedError, UserError, VerificationError, nearest


def test_every_error_is_a_penstock_error() -> None:
    classes = inspect.getmembers(errors, inspect.isclass)
    found = [value for _, value in classes if value.__module__ == errors.__name__]
    assert len(found) > 10
    assert all(issubclass(value, PenstockError) for value in found)
    assert {value for value in found if not issubclass(value, UserError)} == {PenstockError, RankFailedError}


def test_a_refusal_is_the_users_to_put_right() -> None:
    assert issubclass(VerificationError, errors.ScheduleError)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpip", ' Did you mean "gpipe"?'),
        ("GPIPE", ' Did you mean "gpipe"?'),
        ("1f1b", ' Did you mean "1F1B"?'),
        ("unlike", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_found_whatever_its_case(name: str, said: str) -> None:
    assert nearest(name, ["gpipe", "1F1B"]) == said
