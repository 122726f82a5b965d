"""Where receives are posted: one message ahead on each channel, earlier where a sender would block."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import chain

from penstock.ir.dependencies import Value, carried, consumed, produced
from penstock.ir.ops import Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction
from penstock.ir.schedule import Schedule
from penstock.ir.steps import awaited_gradients, contributed


@dataclass(frozen=True)
class Incoming:
    """The receives of one channel in the order of its sends, each with the position of its taker (or its pair)."""

    channel: Channel
    receives: tuple[tuple[int, Transfer], ...]


@dataclass
class _Rank:
    """How far the walk has come on one rank."""

    entries: list[Instruction]
    due: deque[tuple[int, Channel, int]]  # (position of the op before which to post, channel, how many-th)
    pairs: frozenset[int]  # positions of the ops that start a pair
    out: list[Instruction] = field(default_factory=list)
    at: int = 0
    ops_done: int = 0
    own: set[Value] = field(default_factory=set)


class _Walk:
    """One walk over all ranks under rendezvous semantics, writing each rank's program as it goes."""

    def __init__(self, schedule: Schedule, sending: list[list[Instruction]], incoming: list[list[Incoming]]) -> None:
        self.num_stages = schedule.num_stages
        self.unposted = {
            lane.channel: deque(receive for _, receive in lane.receives) for row in incoming for lane in row
        }
        self.posted = dict.fromkeys(self.unposted, 0)
        self.sent = dict.fromkeys(self.unposted, 0)
        self.arrived: set[Value] = set()
        self.taken = {carried(receive) for lane in self.unposted.values() for receive in lane}
        self.awaited = awaited_gradients(schedule)
        self.taken.update(chain.from_iterable(self.awaited.values()))
        pairs = [frozenset(starts) for starts in schedule.overlapped] or [frozenset[int]()] * len(sending)
        self.ranks = [
            _Rank(entries, _due(lanes), starts) for entries, lanes, starts in zip(sending, incoming, pairs, strict=True)
        ]

    def run(self) -> None:
        awake = deque(range(len(self.ranks)))
        while awake:
            while awake:
                self.advance(awake.popleft(), awake)
            self.unblock(awake)
        for rank in self.ranks:
            while rank.at < len(rank.entries):
                self.step(rank)

    def advance(self, index: int, awake: deque[int]) -> None:
        """Moves one rank on until it blocks; wakes the ranks that wait for what it did."""
        rank = self.ranks[index]
        while rank.at < len(rank.entries):
            entry = rank.entries[rank.at]
            if isinstance(entry, Transfer):
                if self.posted.get(entry.channel, 0) <= self.sent.get(entry.channel, 0):
                    return
            else:
                awake.extend(self.post_due(rank))
                if not self.ready(rank, entry):
                    return
            self.step(rank)
            if isinstance(entry, Transfer):
                awake.append(entry.channel.target)
            elif self.awaited and entry.kind == OpKind.REDUCE_GRAD:
                awake.extend(range(len(self.ranks)))

    def step(self, rank: _Rank) -> None:
        entry = rank.entries[rank.at]
        rank.at += 1
        if isinstance(entry, Transfer):
            self.sent[entry.channel] = self.sent.get(entry.channel, 0) + 1
            self.arrived.add(carried(entry))
        elif entry.kind == OpKind.REDUCE_GRAD:
            self.arrived.add(contributed(entry))
        else:
            self.post_due(rank)
            rank.ops_done += 1
            rank.own.update(produced(entry))
        rank.out.append(entry)

    def ready(self, rank: _Rank, op: Op) -> bool:
        if op.kind == OpKind.REDUCE_GRAD:
            return True
        needs = [*consumed(op, self.num_stages), *self.awaited.get(op, ())]
        if rank.ops_done in rank.pairs:
            second = rank.entries[rank.at + 1]
            assert isinstance(second, Op)
            needs += consumed(second, self.num_stages)
        return all(value in (self.arrived if value in self.taken else rank.own) for value in needs)

    def post_due(self, rank: _Rank) -> list[int]:
        """Posts the receives due before the op that `rank` is at; returns the ranks that send them."""
        woken = []
        while rank.due and rank.due[0][0] <= rank.ops_done:
            _, channel, index = rank.due.popleft()
            if self.posted[channel] <= index:
                self.post(rank, channel)
                woken.append(channel.source)
        return woken

    def post(self, rank: _Rank, channel: Channel) -> None:
        rank.out.append(self.unposted[channel].popleft())
        self.posted[channel] += 1

    def unblock(self, awake: deque[int]) -> None:
        """Posts, for every sender that waits for it, the receive where its receiver stands."""
        for index, rank in enumerate(self.ranks):
            entry = rank.entries[rank.at] if rank.at < len(rank.entries) else None
            if isinstance(entry, Transfer) and self.unposted.get(entry.channel):
                self.post(self.ranks[entry.channel.target], entry.channel)
                awake.append(index)


def post_receives(
    schedule: Schedule, sending: list[list[Instruction]], incoming: list[list[Incoming]]
) -> tuple[tuple[Instruction, ...], ...]:
    """Returns the programs of all ranks: `sending` with the receives of `incoming` posted in between.

    Args:
        schedule: the order of compute ops, and which of them run as pairs.
        sending: per rank its compute ops, sends and reductions.
        incoming: per rank its receives by channel.
    """
    walk = _Walk(schedule, sending, incoming)
    walk.run()
    return tuple(tuple(rank.out) for rank in walk.ranks)


def _due(lanes: list[Incoming]) -> deque[tuple[int, Channel, int]]:
    """Returns when each receive is due: at the op that takes the channel's message before, or sooner."""
    due: list[tuple[int, Channel, int]] = []
    for lane in lanes:
        takes = [position for position, _ in lane.receives]
        want = [min(before, own) for before, own in zip([0, *takes], takes, strict=False)]
        for index in range(len(want) - 2, -1, -1):
            want[index] = min(want[index], want[index + 1])
        due.extend((position, lane.channel, index) for index, position in enumerate(want))
    return deque(sorted(due))
