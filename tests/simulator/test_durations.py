"""How long an op takes, or each op of a pair."""

from fractions import Fraction

import pytest

from penstock.ir.ops import Op, OpKind
from penstock.simulator.durations import durations

SECONDS = {OpKind.F: (4, 10), OpKind.B: (8, 20), OpKind.I: (5, 12), OpKind.W: (3, 8)}


def pair(*texts: str, saved: tuple[float, float]) -> tuple[float, ...]:
    ops = [Op(OpKind[text[1]], int(text[0]), number) for number, text in enumerate(texts)]
    return durations(ops, SECONDS, saved=saved)


def test_an_op_alone_takes_its_seconds_and_an_unknown_kind_none() -> None:
    assert pair("1B", saved=(1, 1)) == (20,)
    assert durations([Op(OpKind.REDUCE_GRAD, 0, -1)], SECONDS, saved=(0, 0)) == (0,)


def test_a_pair_that_saves_nothing_takes_what_its_ops_take() -> None:
    assert pair("0F", "1B", saved=(0, 0)) == (4, 20)


def test_what_a_pair_takes_is_split_as_its_ops_take_alone() -> None:
    assert pair("0F", "0B", saved=(3, 0)) == (3, 6)
    assert pair("0B", "0F", saved=(3, 0)) == (6, 3)
    assert pair("1F", "1B", saved=(0, 10)) == (Fraction(20, 3), Fraction(40, 3)), "exact, so that idle is exact too"


def test_a_pair_of_two_stages_saves_the_mean_of_both() -> None:
    assert sum(pair("0F", "1B", saved=(2, 5))) == 24 - 3.5


def test_a_pair_with_an_input_gradient_saves_as_much() -> None:
    assert sum(pair("0F", "0I", saved=(3, 0))) == 6


def test_a_pair_never_takes_less_than_its_longer_op() -> None:
    assert sum(pair("0F", "0I", saved=(7, 0))) == 5
    assert sum(pair("0F", "1B", saved=(99, 99))) == 20


def test_a_pair_may_take_longer_than_its_ops() -> None:
    assert sum(pair("0F", "0B", saved=(-6, 0))) == 18


def test_ops_that_take_no_time_share_what_is_added() -> None:
    free = {OpKind.F: (0,), OpKind.B: (0,)}
    assert durations([Op(OpKind.F, 0, 0), Op(OpKind.B, 0, 1)], free, saved=(-2,)) == (0, 2)


@pytest.mark.parametrize("number", [float, Fraction])
def test_floats_stay_floats_and_fractions_exact(number: type) -> None:
    seconds = {OpKind.F: (number("0.1"),), OpKind.B: (number("0.2"),)}
    first, second = durations([Op(OpKind.F, 0, 0), Op(OpKind.B, 0, 1)], seconds, saved=(number("0.03"),))
    assert type(first) is type(second) is number
    assert first + second == pytest.approx(0.27)
