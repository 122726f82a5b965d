"""Sends and receives match one to one, in the same order, on every channel."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from penstock.errors import VerificationError
from penstock.ir.columns import Ints
from penstock.ir.dependencies import carried
from penstock.ir.ops import SENDS, Channel, Transfer
from penstock.ir.program import Program


def check_messages(program: Program) -> None:
    """Refuses a program with a send without its receive, or in another order, or of a value not there yet.

    Raises:
        VerificationError: the channel, both ends with their positions, and what differs.
    """
    sends, receives, *_ = program.links
    if not (np.array_equal(sends.channel, receives.channel) and np.array_equal(sends.value, receives.value)):
        for channel in program.channels:
            _check_channel(program, channel)
    for ends, own in ((sends, sends.source), (receives, receives.target)):
        elsewhere = own != program.columns.rank[ends.entry]
        for index in ends.entry[elsewhere][:1].tolist():
            rank, position = program.columns.place(index)
            entry = program.ranks[rank][position]
            assert isinstance(entry, Transfer), "only these have ends"
            channel = entry.channel
            end = channel.source if entry.kind in SENDS else channel.target
            raise VerificationError(
                f"rank {rank} position {position}: {entry} is an end of channel {channel}, which is rank {end}'s"
            )
    _check_sent_after_made(program)


def _check_channel(program: Program, channel: Channel) -> None:
    """Refuses sends and receives of `channel` that differ."""
    sends: list[tuple[int, Transfer]] = []
    receives: list[tuple[int, Transfer]] = []
    for _, position, entry in program.instructions():
        if isinstance(entry, Transfer) and entry.channel == channel:
            (sends if entry.kind in SENDS else receives).append((position, entry))
    for index, (sent, received) in enumerate(zip_longest(sends, receives)):
        if sent is None or received is None or carried(sent[1]) != carried(received[1]):
            send = f"position {sent[0]} sends {sent[1]}" if sent else "sends nothing more"
            receive = f"position {received[0]} receives {received[1]}" if received else "receives nothing more"
            raise VerificationError(
                f"channel {channel}, message {index}: rank {channel.source} {send}, but rank {channel.target} {receive}"
            )


def _check_sent_after_made(program: Program) -> None:
    """Refuses a send of a value not made before it, an op whose input is not received, a second receive."""
    links, rank = program.links, program.columns.rank
    lacking = links.lacking
    placed = np.array(program.schedule.placement.table)[lacking.replica, lacking.stage]
    faults: list[tuple[Ints, str]] = [
        (links.unmade, "sends what no earlier op of the rank has made"),
        (links.repeated, "receives what an earlier receive of the rank takes"),
        (lacking.entry[placed != rank[lacking.entry]], "has no receive posted before it"),
    ]
    first = min(((int(entries.min()), fault) for entries, fault in faults if len(entries)), default=None)
    if first is not None:
        at, position = program.columns.place(first[0])
        raise VerificationError(f"rank {at} position {position}: {program.ranks[at][position]} {first[1]}")
