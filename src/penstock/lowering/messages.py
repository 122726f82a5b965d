"""Which values cross ranks: the messages of a schedule, as columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from penstock.ir.columns import ABSENT, Flags, Ints, codes, first_of, last_of, numbered, sorted_by
from penstock.ir.dependencies import GIVES, TAKES, TRAVELS, ValueKind
from penstock.ir.ops import Channel
from penstock.ir.schedule import Schedule
from penstock.ir.values import Values, value_codes, values_of

_GIVEN = {kind: tuple((value, 0) for value, _ in row) for kind, row in GIVES.items()}
_TAKEN = {kind: tuple((value, offset) for value, offset, _ in row) for kind, row in TAKES.items()}


class Ends(NamedTuple):
    """Sends, or receives, channel by channel, each channel's in the order of its sends.

    Attributes:
        op: the op that makes the value, or takes it.
        value: the kind of value.
        channel: the number of its channel.
        match: of a send the index of the receive that has the same turn on the channel, of a receive that of the send
            of its value; ABSENT where there is none.
    """

    op: Ints
    value: Ints
    channel: Ints
    match: Ints

    def where(self, chosen: Ints) -> Ends:
        """Returns the chosen rows."""
        return Ends(*(column[chosen] for column in self))


class Messages(NamedTuple):
    """What travels between ranks; `channels` are sorted."""

    sends: Ends
    receives: Ends
    channels: list[Channel]


def messages_of(schedule: Schedule) -> Messages:
    """Returns a message for every value that one rank makes and another takes.

    Of a schedule that the verifier refuses: a value that nobody makes is expected from the rank that its stage lies on,
    and of several makers or takers the last counts.
    """
    ops, num_stages = schedule.columns, schedule.num_stages
    gives, takes = (_of_a_stage(values_of(ops, table), num_stages) for table in (_GIVEN, _TAKEN))
    given, taken = value_codes(ops, gives, takes)
    taker, maker = last_of(taken, given), last_of(given, taken)
    at_makers, at_takers = ops.rank[gives.entry], ops.rank[takes.entry]
    targets = np.where(taker == ABSENT, at_makers, np.append(at_takers, 0)[taker])
    sources = np.where(maker == ABSENT, _placed(schedule, takes), np.append(at_makers, 0)[maker])
    sent, received = np.flatnonzero(targets != at_makers), np.flatnonzero(sources != at_takers)

    ends = np.array([
        np.concatenate([at_makers[sent], sources[received]]),
        np.concatenate([targets[sent], at_takers[received]]),
        np.concatenate([gives.kind[sent], takes.kind[received]]),
    ])  # fmt: skip
    _, at, channel = np.unique(codes(*ends), return_index=True, return_inverse=True)
    channels = [
        Channel(source, target, TRAVELS[ValueKind(value)][3]) for source, target, value in ends[:, at].T.tolist()
    ]
    on_sends, on_receives = channel[: len(sent)], channel[len(sent) :]

    order = sorted_by(on_sends)
    sent, on_sends = sent[order], on_sends[order]
    send_of = np.full(len(given) + 1, ABSENT)  # what nobody makes has no send
    send_of[sent] = np.arange(len(sent))
    partner = send_of[maker[received]]
    partner[np.append(on_sends, ABSENT)[partner] != on_receives] = ABSENT
    order = np.lexsort((np.where(partner == ABSENT, len(sent), partner), on_receives))
    received, on_receives, partner = received[order], on_receives[order], partner[order]

    turns = codes(np.concatenate([on_sends, on_receives]), np.concatenate([numbered(on_sends), numbered(on_receives)]))
    turn = first_of(turns[len(sent) :], turns[: len(sent)])
    return Messages(
        Ends(gives.entry[sent], gives.kind[sent], on_sends, turn),
        Ends(takes.entry[received], takes.kind[received], on_receives, partner),
        channels,
    )


def _of_a_stage(values: Values, num_stages: int) -> Values:
    inside: Flags = (values.stage >= 0) & (values.stage < num_stages)
    return values.where(inside)


def _placed(schedule: Schedule, values: Values) -> Ints:
    """Returns the rank whose stage makes each value; of a replica that is nowhere, its taker's."""
    known = (values.replica >= 0) & (values.replica < schedule.placement.num_replicas)
    table = np.array(schedule.placement.table)
    return np.where(known, table[np.where(known, values.replica, 0), values.stage], schedule.columns.rank[values.entry])
