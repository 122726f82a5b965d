"""How the instructions of a program hang together: which receive meets which send, which op takes what where.

Instructions are numbered through as in `Program.columns`. Activations that another rank keeps are left out: what is
offloaded is there until its microbatch's OFFLOAD and after its RELOAD.
"""

from __future__ import annotations

from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from penstock.ir.columns import ABSENT, Flags, Ints, codes, first_of, numbered, sorted_by
from penstock.ir.dependencies import ValueKind
from penstock.ir.ops import COMPUTE, SENDS
from penstock.ir.steps import SYNCHRONOUS
from penstock.ir.values import CARRIED, MADE, NEEDED, Values, value_codes, values_of
from penstock.ir.waiting import NEVER

if TYPE_CHECKING:
    from penstock.ir.program import Program

_MADE, _NEEDED = ({kind: table[kind] for kind in sorted(COMPUTE)} for table in (MADE, NEEDED))
_USEFUL = {kind: tuple(row for row in rows if row[0] != ValueKind.WEIGHT_GRAD) for kind, rows in _MADE.items()}


class Ends(NamedTuple):
    """Sends, or receives, channel by channel, each channel's in order.

    Attributes:
        entry: the instruction.
        source: the rank from which its channel leads.
        target: the rank to which its channel leads.
        channel: a number of its channel; numbers ascend as the channels do.
        value: a number of the value that it carries.
    """

    entry: Ints
    source: Ints
    target: Ints
    channel: Ints
    value: Ints


class Links(NamedTuple):
    """What belongs together in a program, right or wrong.

    Attributes:
        sends: all sends.
        receives: all receives; channels and values have the same numbers as there.
        meets: for each receive the index of the send that has the same turn on its channel, or ABSENT.
        taker: ops that take a message whose receive lies before their start on their rank.
        takes: for each of them the index of the receive.
        lacking: what ops need that is neither made nor received on their rank before they start.
        maker: for each of these the instruction of the rank that makes it too late, or ABSENT.
        unmade: sends of what no op before them on their rank has made.
        repeated: receives of what another receive before them on their rank takes.
    """

    sends: Ends
    receives: Ends
    meets: Ints
    taker: Ints
    takes: Ints
    lacking: Values
    maker: Ints
    unmade: Ints
    repeated: Ints


def links_of(program: Program) -> Links:
    """Returns how the instructions of `program` hang together."""
    columns, num_stages = program.columns, program.schedule.num_stages
    carried = values_of(columns, CARRIED)
    sending = np.isin(columns.kind[carried.entry], [*SENDS])
    sends, receives = _ends(program, carried, sending)
    turns = codes(
        *(
            np.concatenate(each)
            for each in ((sends.channel, receives.channel), (numbered(sends.channel), numbered(receives.channel)))
        )
    )
    meets = first_of(turns[: len(sends.entry)], turns[len(sends.entry) :])

    needed = values_of(columns, _NEEDED)
    needed = needed.where((needed.stage >= 0) & (needed.stage < num_stages))
    made = values_of(columns, _MADE if program.schedule.weight_rule not in SYNCHRONOUS else _USEFUL)
    need, make, carry = value_codes(columns, needed, made, carried, on_rank=True)
    sent, received = carried.where(sending), carried.where(~sending)
    starts = needed.entry - program.ends_pair[needed.entry]
    maker = np.append(made.entry, ABSENT)[first_of(make, need)]
    receive = np.append(received.entry, ABSENT)[first_of(carry[~sending], need)]
    here = (maker != ABSENT) & (maker < starts)
    brought = ~here & (receive != ABSENT) & (receive < starts)
    index_of = np.full(len(columns.kind), ABSENT)
    index_of[receives.entry] = np.arange(len(receives.entry))
    lacking = ~(here | brought)
    made_before = np.append(made.entry, NEVER)[first_of(make, carry[sending])]
    first_receive = received.entry[first_of(carry[~sending], carry[~sending])]
    return Links(
        sends, receives, meets, needed.entry[brought], index_of[receive[brought]],
        needed.where(lacking), maker[lacking],
        sent.entry[made_before > sent.entry], received.entry[first_receive < received.entry],
    )  # fmt: skip


def _ends(program: Program, carried: Values, sending: Flags) -> tuple[Ends, Ends]:
    """Returns sends and receives."""
    everything = list(chain.from_iterable(program.ranks))
    channels = list(map(itemgetter(4), map(everything.__getitem__, carried.entry.tolist())))
    source, target, kind = (
        np.fromiter(map(itemgetter(field), channels), np.int64, len(channels)) for field in range(3)
    )
    (value,) = value_codes(program.columns, carried)
    ends = Ends(carried.entry, source, target, codes(source, target, kind), value)
    arranged = []
    for side in (sending, ~sending):
        rows = np.flatnonzero(side)
        rows = rows[sorted_by(ends.channel[rows])]
        arranged.append(Ends(*(column[rows] for column in ends)))
    return arranged[0], arranged[1]
