"""How much each rank holds at most: activations, deferred weight gradients, receive buffers."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np

from penstock.ir.columns import ABSENT, Ints, codes, last_of, numbered
from penstock.ir.ops import BACKWARD, ORDERED, RECEIVES, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import Schedule


def peak_activations(ops: Collection[Op]) -> int:
    """Returns the most microbatches of one chunk held between F and B or I; 0 where nothing is kept.

    What is offloaded is not held until it is reloaded.
    """
    kinds = _kinds(ops)
    return _peak(_HELD[kinds]) if np.isin(kinds, [*BACKWARD]).any() else 0


def peak_deferred(ops: Collection[Op]) -> int:
    """Returns the most microbatches of one chunk held between I and W."""
    return _peak(_DEFERRED[_kinds(ops)])


def peak_guests(schedule: Schedule) -> tuple[int, ...]:
    """Returns for each rank the most activations it keeps at once for the ranks that offload to it.

    It counts them in the order of each rank that offloads, so it holds whatever the timing.
    """
    guests = [0] * schedule.num_ranks
    for rank, (keeper, ops) in enumerate(zip(schedule.keepers, schedule.ranks, strict=False)):
        if keeper != rank:
            guests[keeper] += _peak(_KEPT[_kinds(ops)])
    return tuple(guests)


def _kinds(ops: Collection[Op]) -> Ints:
    return np.fromiter(map(itemgetter(0), ops), np.int64, len(ops))


def _changes(table: dict[OpKind, int]) -> Ints:
    return np.array([table.get(kind, 0) for kind in OpKind])


_HELD = _changes({OpKind.F: +1, OpKind.B: -1, OpKind.I: -1, OpKind.OFFLOAD: -1, OpKind.RELOAD: +1})
_DEFERRED = _changes({OpKind.I: +1, OpKind.W: -1})
_KEPT = _changes({OpKind.OFFLOAD: +1, OpKind.RELOAD: -1})


def _peak(steps: Ints) -> int:
    return int(np.cumsum(steps).max(initial=0))


def ring_sizes(program: Program) -> dict[Channel, int]:
    """Returns for every channel, in order, how many buffers `receive_slots` fills at once."""
    columns, receives = program.columns, program.links.receives
    ops = np.flatnonzero(np.isin(columns.kind, [*ORDERED]))
    both = np.concatenate([ops, receives.entry])
    work = codes(*(column[both] for column in (columns.rank, columns.stage, columns.replica, columns.microbatch)))
    last = np.append(ops, ABSENT)[last_of(work[: len(ops)], work[len(ops) :])]
    apart = receives.channel * len(columns.kind)
    freed = np.sort((apart + last)[last > receives.entry])
    before = np.searchsorted(freed, apart + receives.entry) - np.searchsorted(freed, apart)
    in_use = numbered(receives.channel) + 1 - before
    _, starts = np.unique(receives.channel, return_index=True)
    peaks = np.maximum.reduceat(in_use, starts).tolist() if len(starts) else []
    places = map(columns.place, receives.entry[starts].tolist())
    return {program.ranks[rank][at].channel: peak for (rank, at), peak in zip(places, peaks, strict=True)}  # type: ignore[union-attr]


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
