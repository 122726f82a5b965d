"""One unit of work of one rank: what it does, for which stage, microbatch and replica.

The letters are those of torch.distributed.pipelining, so that text is interchangeable: `2F0` is the
forward of stage 2 on microbatch 0. A replica other than 0 is written behind it: `2F0@1`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

NO_MICROBATCH = -1
"""The microbatch of an op that belongs to a stage as a whole, such as `REDUCE_GRAD`."""


class OpKind(IntEnum):
    """The kinds of op; integers, so that a million of them compare and hash at C speed."""

    F = 0  # forward
    B = 1  # full backward: input gradient and weight gradient at once
    I = 2  # input gradient only (the zero-bubble paper's B)  # noqa: E741
    W = 3  # weight gradient only, of a microbatch whose I has run
    S = 4  # optimizer step inside the program (asynchronous schedules), named after the last microbatch it applies
    SEND_F = 5  # a stage's output leaves for the next stage
    RECV_F = 6  # the receive of a stage's input is posted
    SEND_B = 7  # a stage's input gradient leaves for the previous stage
    RECV_B = 8  # the receive of a stage's output gradient is posted
    REDUCE_GRAD = 9  # a stage's gradients are summed over its data-parallel replicas
    UNSHARD = 10  # a stage's parameters are gathered from the data-parallel replicas that share them
    RESHARD = 11  # they are let go, but for this replica's share
    RECOMPUTE = 12
    OFFLOAD = 13  # a microbatch's activations leave for the rank that keeps them
    RELOAD = 14  # they come back, before the backward that needs them
    HOST = 15  # the receive of activations that another rank offloads is posted on the rank that keeps them
    RETURN = 16  # they leave for the rank that reloads them


COMPUTE = frozenset({OpKind.F, OpKind.B, OpKind.I, OpKind.W, OpKind.S})
"""The kinds that compute."""

ORDERED = COMPUTE | {OpKind.OFFLOAD, OpKind.RELOAD}
"""The kinds a Schedule may hold, whose order lowering keeps; all others are added by lowering."""

NEEDS_PARAMETERS = frozenset({OpKind.F, OpKind.B, OpKind.I, OpKind.W})
"""The kinds that run only while their stage's parameters are gathered, where replicas share them."""

BACKWARD = frozenset({OpKind.B, OpKind.I})
"""The kinds that yield the gradient of a stage's input."""

MOVES = frozenset({OpKind.OFFLOAD, OpKind.RELOAD})
"""The kinds that move a rank's own activations."""

GUESTS = frozenset({OpKind.HOST, OpKind.RETURN})
"""The kinds by which their keeper takes part in it; added by lowering."""

SENDS = frozenset({OpKind.SEND_F, OpKind.SEND_B})
RECEIVES = frozenset({OpKind.RECV_F, OpKind.RECV_B})


class Op(NamedTuple):
    """One op that stays on its rank.

    `stage` and `microbatch` count from 0 in model order and batch order; `replica` is the pipeline
    direction, 0 except in bidirectional schedules.
    """

    kind: OpKind
    stage: int
    microbatch: int
    replica: int = 0

    def __str__(self) -> str:
        return _text(self)


class Channel(NamedTuple):
    """A directed pair of ranks and what travels there (`F` outputs, `B` gradients), first in first out."""

    source: int
    target: int
    kind: OpKind

    def __str__(self) -> str:
        return f"{self.source}→{self.target} {self.kind.name}"


class Transfer(NamedTuple):
    """One end of a message: a send or the posting of a receive, on an explicit channel.

    `stage` is the stage of this end: the producer's for a send, the consumer's for a receive.
    """

    kind: OpKind
    stage: int
    microbatch: int
    replica: int
    channel: Channel

    def __str__(self) -> str:
        return _text(self)


def _text(op: Op | Transfer) -> str:
    microbatch = "" if op.microbatch == NO_MICROBATCH else str(op.microbatch)
    replica = f"@{op.replica}" if op.replica else ""
    return f"{op.stage}{op.kind.name}{microbatch}{replica}"
