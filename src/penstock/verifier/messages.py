"""Sends and receives match one to one, in the same order, on every channel."""

from __future__ import annotations

from collections import defaultdict

from penstock.errors import VerificationError
from penstock.ir.dependencies import TRAVELS, Value, carried, consumed, produced
from penstock.ir.ops import ORDERED, SENDS, Channel, Transfer
from penstock.ir.program import Program

Ends = dict[Channel, list[tuple[int, Transfer]]]


def check_messages(program: Program) -> None:
    """Refuses a program with a send without its receive, or in another order, or of a value not there yet.

    Raises:
        VerificationError: the channel, both ends with their positions, and what differs.
    """
    sends, receives = _ends(program)
    for channel in program.channels:
        _check_channel(channel, sends[channel], receives[channel])
    for rank, position, entry in program.instructions():
        if isinstance(entry, Transfer):
            end = entry.channel.source if entry.kind in SENDS else entry.channel.target
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
    for _, position, entry in program.instructions():
        if isinstance(entry, Transfer):
            (sends if entry.kind in SENDS else receives)[entry.channel].append((position, entry))
    return sends, receives


def _check_channel(channel: Channel, sends: list[tuple[int, Transfer]], receives: list[tuple[int, Transfer]]) -> None:
    for index in range(max(len(sends), len(receives))):
        send = sends[index] if index < len(sends) else None
        receive = receives[index] if index < len(receives) else None
        if send and receive and carried(send[1]) == carried(receive[1]):
            continue
        raise VerificationError(
            f"channel {channel}, message {index}: {_end(channel.source, send, 'sends')}, but "
            f"{_end(channel.target, receive, 'receives')}"
        )


def _end(rank: int, end: tuple[int, Transfer] | None, verb: str) -> str:
    if end is None:
        return f"rank {rank} {verb} nothing more"
    return f"rank {rank} position {end[0]} {verb} {end[1]}"


def _check_sent_after_made(program: Program, rank: int) -> None:
    """Refuses a send of a value not made before it, an op whose input is not received, a second receive."""
    made: set[Value] = set()
    posted: set[Value] = set()
    num_stages = program.schedule.num_stages
    for position, entry in enumerate(program.ranks[rank]):
        where = f"rank {rank} position {position}: {entry}"
        if isinstance(entry, Transfer):
            if entry.kind not in SENDS:
                if carried(entry) in posted:
                    raise VerificationError(f"{where} receives what an earlier receive of the rank takes")
                posted.add(carried(entry))
            elif carried(entry) not in made:
                raise VerificationError(f"{where} sends what no earlier op of the rank has made")
        elif entry.kind in ORDERED:
            for value in consumed(entry, num_stages):
                remote = value.kind in TRAVELS and _maker(program, value) != rank
                if remote and value not in posted:
                    raise VerificationError(f"{where} has no receive posted before it")
            made.update(produced(entry))


def _maker(program: Program, value: Value) -> int:
    return program.schedule.placement.rank_of(value.stage, value.replica)
