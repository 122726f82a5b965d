"""The dependency table, against one written out by hand for two stages."""

import pytest
from hypothesis import given
from tests.random_schedules import needs_of, valid_schedules

from penstock import Op, OpKind, Schedule
from penstock.ir import Value, ValueKind, carried, consumed, message, produced

OUT, SAVED, GRAD, DEFERRED, WEIGHT, OFFLOADED = ValueKind


@pytest.mark.parametrize(
    ("op", "takes", "makes"),
    [
        ("0F", [], [(OUT, 0), (SAVED, 0)]),
        ("1F", [(OUT, 0)], [(OUT, 1), (SAVED, 1)]),
        ("1B", [(SAVED, 1)], [(GRAD, 1), (WEIGHT, 1)]),
        ("0B", [(SAVED, 0), (GRAD, 1)], [(GRAD, 0), (WEIGHT, 0)]),
        ("0I", [(SAVED, 0), (GRAD, 1)], [(GRAD, 0), (DEFERRED, 0)]),
        ("0W", [(DEFERRED, 0)], [(WEIGHT, 0)]),
        ("0S", [(WEIGHT, 0)], []),
        ("1OFFLOAD", [(SAVED, 1)], [(OFFLOADED, 1)]),
        ("1RELOAD", [(OFFLOADED, 1)], [(SAVED, 1)]),
    ],
)
def test_what_an_op_takes_and_makes(
    op: str, takes: list[tuple[ValueKind, int]], makes: list[tuple[ValueKind, int]]
) -> None:
    made = Op(OpKind[op[1:]], int(op[0]), 7, replica=1)
    assert consumed(made, 2) == [Value(kind, stage, 7, 1) for kind, stage in takes]
    assert produced(made) == [Value(kind, stage, 7, 1) for kind, stage in makes]


@given(schedule=valid_schedules())
def test_values_bind_the_same_ops_as_the_dependencies_do(schedule: Schedule) -> None:
    ops = {op for _, _, op in schedule.ops()}
    makers = {value: op for op in ops for value in produced(op)}
    for op, needs in needs_of(ops).items():
        assert {makers[value] for value in consumed(op, schedule.num_stages)} == set(needs)


def test_an_output_travels_down_and_a_gradient_up() -> None:
    send, receive = message(Value(OUT, 1, 4, 0), maker=2, taker=3)
    assert (str(send), str(receive), str(send.channel)) == ("1SEND_F4", "2RECV_F4", "2→3 F")
    send, receive = message(Value(GRAD, 1, 4, 1), maker=2, taker=0)
    assert (str(send), str(receive), str(send.channel)) == ("1SEND_B4@1", "0RECV_B4@1", "2→0 B")


@pytest.mark.parametrize("kind", [OUT, GRAD])
def test_both_ends_of_a_message_carry_its_value(kind: ValueKind) -> None:
    value = Value(kind, 2, 5, 1)
    send, receive = message(value, maker=0, taker=1)
    assert carried(send) == carried(receive) == value
    assert send.channel == receive.channel
