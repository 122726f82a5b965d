"""Where receives are posted: one message ahead on each channel, earlier where a sender would block."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from penstock.ir.dependencies import CONSUMES, MESSAGE, Key
from penstock.ir.ops import Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction
from penstock.ir.schedule import Schedule
from penstock.ir.steps import awaited_gradients, contributed, useful_products

_REDUCE_GRAD = OpKind.REDUCE_GRAD  # a look-up in an enum costs more than the rest of an inner loop's line


@dataclass(frozen=True)
class Incoming:
    """The receives of one channel in the order of its sends, each with the position of its taker (or its pair)."""

    channel: Channel
    receives: tuple[tuple[int, Transfer], ...]


@dataclass
class _Lane:
    """How far the messages of one channel have come."""

    receives: tuple[tuple[int, Transfer], ...] = ()
    posted: int = 0
    sent: int = 0


@dataclass
class _Rank:
    """How far the walk has come on one rank."""

    entries: list[Instruction]
    due: deque[tuple[int, Channel, int]]  # (position of the op before which to post, channel, how many-th)
    pairs: frozenset[int]  # positions of the ops that start a pair
    out: list[Instruction] = field(default_factory=list)
    at: int = 0
    ops_done: int = 0
    exists: set[Key] = field(default_factory=set)
    blocked_by: Key | Channel | None = None  # the value that is not there, or where no receive is posted


class _Walk:
    """One walk over all ranks under rendezvous semantics, writing each rank's program as it goes."""

    def __init__(self, schedule: Schedule, sending: list[list[Instruction]], incoming: list[list[Incoming]]) -> None:
        self.num_stages = schedule.num_stages
        self.lanes = {lane.channel: _Lane(lane.receives) for row in incoming for lane in row}
        self.awaited = awaited_gradients(schedule)
        pairs = [frozenset(starts) for starts in schedule.overlapped] or [frozenset[int]()] * len(sending)
        self.ranks = [
            _Rank(entries, _due(lanes), starts) for entries, lanes, starts in zip(sending, incoming, pairs, strict=True)
        ]
        self.awake = deque(self.ranks)
        self.made_by = useful_products(schedule)

    def run(self) -> None:
        while self.awake:
            while self.awake:
                self.advance(self.awake.popleft())
            self.unblock()
        for rank in self.ranks:
            self.finish(rank)

    def advance(self, rank: _Rank) -> None:
        """Moves one rank on until it blocks; wakes the ranks that wait for what it did."""
        entries, due = rank.entries, rank.due
        rank.blocked_by = None
        while rank.at < len(entries):
            entry = entries[rank.at]
            if isinstance(entry, Transfer):
                if not self.send(entry):
                    rank.blocked_by = entry.channel
                    return
            else:
                if due and due[0][0] <= rank.ops_done:
                    self.post_due(rank)
                if entry[0] == _REDUCE_GRAD:
                    for other in self.ranks if self.awaited else ():
                        self.arrive(contributed(entry), other)
                else:
                    rank.blocked_by = self.missing(rank, entry)
                    if rank.blocked_by is not None:
                        return
                    kind, stage, microbatch, replica = entry
                    rank.ops_done += 1
                    for value in self.made_by[kind]:
                        rank.exists.add((value, stage, microbatch, replica))
            rank.out.append(entry)
            rank.at += 1

    def finish(self, rank: _Rank) -> None:
        """Writes what is left of a rank that cannot go on."""
        for entry in rank.entries[rank.at :]:
            if not isinstance(entry, Transfer) and entry.kind != OpKind.REDUCE_GRAD:
                self.post_due(rank)
                rank.ops_done += 1
            rank.out.append(entry)

    def send(self, entry: Transfer) -> bool:
        """Sends, if the receive is posted; returns whether it is."""
        kind, stage, microbatch, replica, channel = entry
        lane = self.lanes.get(channel)
        if lane is None or lane.posted <= lane.sent:
            return False
        lane.sent += 1
        value, offset = MESSAGE[kind]
        self.arrive((value, stage + offset, microbatch, replica), self.ranks[channel.target])
        return True

    def arrive(self, value: Key, target: _Rank) -> None:
        target.exists.add(value)
        if target.blocked_by == value:
            target.blocked_by = None
            self.awake.append(target)

    def missing(self, rank: _Rank, op: Op) -> Key | None:
        """Returns a value that `op`, or the pair that it starts, has to wait for."""
        num_stages, exists = self.num_stages, rank.exists
        awaited = self.awaited.get(op, ()) if self.awaited else ()
        for each in (op, rank.entries[rank.at + 1]) if rank.ops_done in rank.pairs else (op,):
            kind, stage, microbatch, replica, *_ = each
            for value, offset in CONSUMES[kind]:
                maker = stage + offset
                if 0 <= maker < num_stages:
                    key = (value, maker, microbatch, replica)
                    if key not in exists:
                        return key
        return next((value for value in awaited if value not in exists), None)

    def post_due(self, rank: _Rank) -> None:
        """Posts the receives due before the op that `rank` is at."""
        due = rank.due
        while due and due[0][0] <= rank.ops_done:
            _, channel, index = due.popleft()
            if self.lanes[channel].posted <= index:
                self.post(channel)

    def post(self, channel: Channel) -> None:
        """Posts the next receive of `channel`; wakes the sender that waits for it."""
        lane = self.lanes[channel]
        self.ranks[channel.target].out.append(lane.receives[lane.posted][1])
        lane.posted += 1
        source = self.ranks[channel.source]
        if source.blocked_by == channel:
            source.blocked_by = None
            self.awake.append(source)

    def unblock(self) -> None:
        """Posts, for every sender that waits for it, the receive where its receiver stands."""
        for rank in self.ranks:
            entry = rank.entries[rank.at] if rank.at < len(rank.entries) else None
            if isinstance(entry, Transfer):
                lane = self.lanes.get(entry.channel)
                if lane is not None and lane.posted < len(lane.receives):
                    self.post(entry.channel)


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
