"""The dependency table: what each kind of op consumes and produces.

A new kind of compute op is one row in each of the two tables. Everything that needs to know what must
come before what (the grid, lowering, the verifier, the simulator) reads them here.

    F(s-1) --OUTPUT--> F(s) --OUTPUT--> F(s+1)
                        |
                      SAVED (or SAVED, OFFLOAD, OFFLOADED, RELOAD, SAVED)
                        v
    B(s-1) <-INPUT_GRAD- B(s) or I(s) <-INPUT_GRAD- B(s+1) or I(s+1)
                                 |
                              DEFERRED (I only)
                                 v
                                W(s) --WEIGHT_GRAD--> S(s)
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from penstock.ir.ops import Channel, Op, OpKind, Transfer


class ValueKind(IntEnum):
    """What passes from one op to another."""

    OUTPUT = 0  # a stage's output: the next stage's input
    SAVED = 1  # what a forward keeps for its backward
    INPUT_GRAD = 2  # the gradient of a stage's input: the previous stage's output gradient
    DEFERRED = 3  # what an I keeps for its W
    WEIGHT_GRAD = 4  # the microbatch's contribution to the stage's gradients
    OFFLOADED = 5  # what a forward kept, while another rank keeps it


class Value(NamedTuple):
    """Something one op makes and another needs, named by the stage that makes it."""

    kind: ValueKind
    stage: int
    microbatch: int
    replica: int


Key = tuple[int, int, int, int]
"""A value in an inner loop: the plain tuple that a `Value` equals, in a fifth of the time."""

CONSUMES: dict[OpKind, tuple[tuple[ValueKind, int], ...]] = {
    OpKind.F: ((ValueKind.OUTPUT, -1),),
    OpKind.B: ((ValueKind.SAVED, 0), (ValueKind.INPUT_GRAD, +1)),
    OpKind.I: ((ValueKind.SAVED, 0), (ValueKind.INPUT_GRAD, +1)),
    OpKind.W: ((ValueKind.DEFERRED, 0),),
    OpKind.S: ((ValueKind.WEIGHT_GRAD, 0),),
    OpKind.OFFLOAD: ((ValueKind.SAVED, 0),),
    OpKind.RELOAD: ((ValueKind.OFFLOADED, 0),),
}
"""Kind of op -> (kind of value, stage of its maker relative to the op's)."""

PRODUCES: dict[OpKind, tuple[ValueKind, ...]] = {
    OpKind.F: (ValueKind.OUTPUT, ValueKind.SAVED),
    OpKind.B: (ValueKind.INPUT_GRAD, ValueKind.WEIGHT_GRAD),
    OpKind.I: (ValueKind.INPUT_GRAD, ValueKind.DEFERRED),
    OpKind.W: (ValueKind.WEIGHT_GRAD,),
    OpKind.S: (),
    OpKind.OFFLOAD: (ValueKind.OFFLOADED,),
    OpKind.RELOAD: (ValueKind.SAVED,),
}

MESSAGE: dict[OpKind, tuple[ValueKind, int]] = {
    OpKind.SEND_F: (ValueKind.OUTPUT, 0),
    OpKind.RECV_F: (ValueKind.OUTPUT, -1),
    OpKind.SEND_B: (ValueKind.INPUT_GRAD, 0),
    OpKind.RECV_B: (ValueKind.INPUT_GRAD, +1),
}
"""Kind of transfer -> (the value it carries, stage of its maker relative to this end's)."""

TRAVELS: dict[ValueKind, tuple[int, OpKind, OpKind, OpKind]] = {
    ValueKind.OUTPUT: (+1, OpKind.SEND_F, OpKind.RECV_F, OpKind.F),
    ValueKind.INPUT_GRAD: (-1, OpKind.SEND_B, OpKind.RECV_B, OpKind.B),
}
"""Kind of value that crosses stages -> (stage of its taker, its send, its receive, its channel's kind)."""


TAKES = {
    kind: tuple((value, offset, TRAVELS[value]) for value, offset in row if value in TRAVELS)
    for kind, row in CONSUMES.items()
}
"""Kind of op -> (kind of value, stage of its maker relative to the op's, how it travels), of what may cross stages."""

GIVES = {kind: tuple((value, TRAVELS[value]) for value in row if value in TRAVELS) for kind, row in PRODUCES.items()}
"""Kind of op -> (kind of value, how it travels), of what may cross stages."""


def consumed(op: Op, num_stages: int) -> list[Value]:
    """Returns the values that must exist before `op` may start; ends of the pipeline consume less."""
    _, stage, microbatch, replica = op
    return [
        Value(kind, stage + offset, microbatch, replica)
        for kind, offset in CONSUMES[op.kind]
        if 0 <= stage + offset < num_stages
    ]


def produced(op: Op) -> list[Value]:
    """Returns the values that exist once `op` has ended."""
    _, stage, microbatch, replica = op
    return [Value(kind, stage, microbatch, replica) for kind in PRODUCES[op.kind]]


def carried(transfer: Transfer) -> Value:
    """Returns the value that the message of a send or receive carries."""
    kind, offset = MESSAGE[transfer.kind]
    return Value(kind, transfer.stage + offset, transfer.microbatch, transfer.replica)


def message(value: Value, *, maker: int, taker: int) -> tuple[Transfer, Transfer]:
    """Returns the send and the receive that bring `value` from rank `maker` to rank `taker`."""
    step, send, receive, channel_kind = TRAVELS[value.kind]
    channel = Channel(maker, taker, channel_kind)
    _, stage, microbatch, replica = value
    return (
        Transfer(send, stage, microbatch, replica, channel),
        Transfer(receive, stage + step, microbatch, replica, channel),
    )
