"""Sends and receives match one to one, in the same order, on every channel."""

from __future__ import annotations

from collections import defaultdict

from penstock.errors import VerificationError
from penstock.ir.dependencies import GIVES, MESSAGE, TAKES, Key
from penstock.ir.ops import ORDERED, SENDS, Channel, Transfer
from penstock.ir.program import Program

Ends = dict[Channel, list[Key]]
"""What is sent, or received, on each channel, in order."""


def check_messages(program: Program) -> None:
    """Refuses a program with a send without its receive, or in another order, or of a value not there yet.

    Raises:
        VerificationError: the channel, both ends with their positions, and what differs.
    """
    sends, receives = _ends(program)
    if sends != receives:
        for channel in program.channels:
            _check_channel(program, channel, sends.get(channel, []), receives.get(channel, []))
    for rank, entries in enumerate(program.ranks):
        for position, entry in enumerate(entries):
            if isinstance(entry, Transfer):
                end = entry.channel[0 if entry[0] in SENDS else 1]
                if end != rank:
                    raise VerificationError(
                        f"rank {rank} position {position}: {entry} is an end of channel {entry.channel}, which "
                        f"is rank {end}'s"
                    )
    for rank in range(program.num_ranks):
        _check_sent_after_made(program, rank)


def _ends(program: Program) -> tuple[Ends, Ends]:
    sends: Ends = defaultdict(list)
    receives: Ends = defaultdict(list)
    for entries in program.ranks:
        for entry in entries:
            if isinstance(entry, Transfer):
                kind, stage, microbatch, replica, channel = entry
                value, offset = MESSAGE[kind]
                (sends if kind in SENDS else receives)[channel].append((value, stage + offset, microbatch, replica))
    return sends, receives


def _check_channel(program: Program, channel: Channel, sends: list[Key], receives: list[Key]) -> None:
    for index in range(max(len(sends), len(receives))):
        if sends[index : index + 1] == receives[index : index + 1]:
            continue
        places: tuple[list[str], list[str]] = ([], [])
        for _, position, entry in program.instructions():
            if isinstance(entry, Transfer) and entry.channel == channel:
                verb = "sends" if entry.kind in SENDS else "receives"
                places[entry.kind not in SENDS].append(f"position {position} {verb} {entry}")
        send = places[0][index] if index < len(sends) else "sends nothing more"
        receive = places[1][index] if index < len(receives) else "receives nothing more"
        raise VerificationError(
            f"channel {channel}, message {index}: rank {channel.source} {send}, but rank {channel.target} {receive}"
        )


def _check_sent_after_made(program: Program, rank: int) -> None:
    """Refuses a send of a value not made before it, an op whose input is not received, a second receive."""
    made: set[Key] = set()
    posted: set[Key] = set()
    num_stages, table = program.schedule.num_stages, program.schedule.placement.table
    for position, entry in enumerate(program.ranks[rank]):
        kind, stage, microbatch, replica, *_ = entry
        fault = ""
        if isinstance(entry, Transfer):
            value, offset = MESSAGE[kind]
            key = (value, stage + offset, microbatch, replica)
            if kind in SENDS:
                fault = "" if key in made else "sends what no earlier op of the rank has made"
            else:
                fault = "receives what an earlier receive of the rank takes" if key in posted else ""
                posted.add(key)
        elif kind in ORDERED:
            for value, offset, _ in TAKES[kind]:
                maker = stage + offset
                remote = 0 <= maker < num_stages and table[replica][maker] != rank
                if remote and (value, maker, microbatch, replica) not in posted:
                    fault = "has no receive posted before it"
            for value, _ in GIVES[kind]:
                made.add((value, stage, microbatch, replica))
        if fault:
            raise VerificationError(f"rank {rank} position {position}: {entry} {fault}")
