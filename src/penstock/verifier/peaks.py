"""How much each rank holds at most: activations, deferred weight gradients, receive buffers."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from penstock.ir.ops import BACKWARD, ORDERED, RECEIVES, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import Schedule


def peak_activations(ops: Iterable[Op]) -> int:
    """Returns the most microbatches of one chunk held between F and B or I; 0 where nothing is kept.

    What is offloaded is not held until it is reloaded.
    """
    ops = tuple(ops)
    if not any(op.kind in BACKWARD for op in ops):
        return 0
    return _peak(_HELD.get(op.kind, 0) for op in ops)


def peak_guests(schedule: Schedule) -> tuple[int, ...]:
    """Returns for each rank the most activations it keeps at once for the ranks that offload to it.

    It counts them in the order of each rank that offloads, so it holds whatever the timing.
    """
    guests = [0] * schedule.num_ranks
    for keeper, ops in zip(schedule.keepers, schedule.ranks, strict=False):
        guests[keeper] += _peak(_KEPT.get(op.kind, 0) for op in ops)
    return tuple(guests)


def peak_deferred(ops: Iterable[Op]) -> int:
    """Returns the most microbatches of one chunk held between I and W."""
    return _peak(_DEFERRED.get(op.kind, 0) for op in ops)


_HELD = {OpKind.F: +1, OpKind.B: -1, OpKind.I: -1, OpKind.OFFLOAD: -1, OpKind.RELOAD: +1}
_DEFERRED = {OpKind.I: +1, OpKind.W: -1}
_KEPT = {OpKind.OFFLOAD: +1, OpKind.RELOAD: -1}


def _peak(steps: Iterable[int]) -> int:
    return max(accumulate(steps, initial=0))


@dataclass
class Slots:
    """The receive ring of one channel.

    Attributes:
        capacity: how many buffers are in use at once, at most.
        slot: position of each RECV in its rank's program -> the buffer it receives into.
    """

    capacity: int = 0
    slot: dict[int, int] = field(default_factory=dict)


def receive_slots(program: Program) -> dict[Channel, Slots]:
    """Returns for every channel its ring: each receive gets the lowest buffer free when it is posted.

    A buffer is taken from the post until the last op of its stage and microbatch on that rank has run: a
    forward's input is kept for the backward, an output gradient for the weight gradient.
    """
    rings: dict[Channel, Slots] = defaultdict(Slots)
    for entries in program.ranks:
        _assign(entries, rings)
    return dict(rings)


def _assign(entries: tuple[Instruction, ...], rings: dict[Channel, Slots]) -> None:
    last = {entry[1:4]: position for position, entry in enumerate(entries) if entry[0] in ORDERED}
    free: dict[Channel, list[int]] = defaultdict(list)
    release: dict[int, list[tuple[Channel, int]]] = defaultdict(list)
    for position, entry in enumerate(entries):
        if entry[0] in RECEIVES and isinstance(entry, Transfer):
            channel = entry.channel
            ring, idle = rings[channel], free[channel]
            if idle:
                slot = heapq.heappop(idle)
            else:
                slot, ring.capacity = ring.capacity, ring.capacity + 1
            ring.slot[position] = slot
            release[last.get(entry[1:4], len(entries))].append((channel, slot))
        if position in release:
            for channel, slot in release.pop(position):
                heapq.heappush(free[channel], slot)
