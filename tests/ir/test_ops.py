"""Ops and transfers as text and as values."""

import pytest

from penstock import Op, OpKind
from penstock.ir import BACKWARD, COMPUTE, NO_MICROBATCH, ORDERED, RECEIVES, SENDS, Channel, Transfer


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (Op(OpKind.F, 2, 0), "2F0"),
        (Op(OpKind.I, 0, 13), "0I13"),
        (Op(OpKind.W, 1, 4, replica=1), "1W4@1"),
        (Op(OpKind.REDUCE_GRAD, 3, NO_MICROBATCH), "3REDUCE_GRAD"),
        (Transfer(OpKind.SEND_F, 0, 5, 0, Channel(0, 1, OpKind.F)), "0SEND_F5"),
        (Transfer(OpKind.RECV_B, 1, 5, 1, Channel(0, 1, OpKind.B)), "1RECV_B5@1"),
    ],
)
def test_an_op_is_written_as_stage_kind_microbatch(op: Op | Transfer, text: str) -> None:
    assert str(op) == text


def test_a_channel_is_written_as_an_arrow() -> None:
    assert str(Channel(2, 1, OpKind.B)) == "2→1 B"


def test_kinds_of_op_fall_into_groups_that_do_not_overlap() -> None:
    assert BACKWARD < COMPUTE < ORDERED
    assert not ORDERED & SENDS and not ORDERED & RECEIVES and not SENDS & RECEIVES


def test_the_letters_are_those_of_torch() -> None:
    assert {kind.name for kind in COMPUTE} - {"S"} == {"F", "B", "I", "W"}
