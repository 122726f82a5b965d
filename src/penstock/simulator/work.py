"""A program with what its instructions take, as lists that the event kernel steps through.

Instructions are numbered through as in `Program.columns`. What an op may have to wait for is an *arrival*: first the
messages and copies, sorted by channel and then in order, then reductions, then one that never comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import itemgetter

import numpy as np

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.ir.columns import ABSENT, codes
from penstock.ir.ops import BACKWARD, GUESTS, MOVES, NEEDS_PARAMETERS, RECEIVES, SENDS, Channel, Op, OpKind
from penstock.ir.program import Instruction, Program
from penstock.ir.steps import awaited_gradients, contributed
from penstock.simulator.durations import durations

COMPUTES, POSTS, SENDS_ALONE, COPIES, GATHERS, PASSES = range(6)
"""What an instruction does in a simulation.

POSTS: one end of a message; SENDS_ALONE: one whose rank stands still until it has arrived; PASSES: nothing.
"""


class Work:
    """See the top of this file.

    Attributes:
        entries: all instructions.
        role: what each does.
        brings: the arrival that each helps to bring about, or ABSENT.
        needs: the arrivals that each waits for; the first op of an overlapped pair waits for those of both.
        of_second: arrivals that the second op of a pair waits for.
        seconds: how long each takes.
        travels: the receive, copy or gather behind each arrival but the reductions.
        channels: on which channel each of them travels.
    """

    def __init__(self, program: Program, costs: StageCosts, cluster: Cluster) -> None:
        self.entries: list[Instruction] = list(chain.from_iterable(program.ranks))
        self.seconds = _seconds(program, self.entries, costs, cluster)
        self._arrange(program, overlap=cluster.overlap)
        self.needs: list[tuple[int, ...]] = [()] * len(self.entries)
        self.of_second: set[int] = set()
        self._add_needs(program)
        self._join_pairs(program)

    def _arrange(self, program: Program, *, overlap: bool) -> None:
        """Numbers the arrivals."""
        links, kinds = program.links, program.columns.kind
        role = np.full(len(kinds), COMPUTES)
        role[np.isin(kinds, [*SENDS, *RECEIVES, *GUESTS])] = PASSES
        role[links.receives.entry] = POSTS
        met = links.meets != ABSENT
        senders = links.sends.entry[links.meets[met]]
        role[senders] = POSTS if overlap else SENDS_ALONE
        role[np.isin(kinds, [*MOVES])] = COPIES
        role[kinds == OpKind.UNSHARD] = GATHERS if overlap else COMPUTES
        role[kinds == OpKind.RESHARD] = PASSES
        moves = np.flatnonzero((role == COPIES) | (role == GATHERS)).tolist()
        receives = links.receives.entry.tolist()
        channels = list(map(itemgetter(4), map(self.entries.__getitem__, receives)))
        channels += [_channel_of_move(program, number) for number in moves]
        travels = receives + moves
        if moves:
            order = sorted(range(len(travels)), key=channels.__getitem__)
            travels, channels = ([column[at] for at in order] for column in (travels, channels))
        self.travels: list[int] = travels
        self.channels: list[Channel] = channels
        brings = np.full(len(kinds), ABSENT)
        brings[travels] = np.arange(len(travels))
        brings[senders] = brings[links.receives.entry[met]]
        self.never = len(travels)
        self._reducers: list[int] = []
        if awaited_gradients(program.schedule):
            reductions = np.flatnonzero(kinds == OpKind.REDUCE_GRAD)
            brings[reductions] = self.never + np.arange(len(reductions))
            self.never += len(reductions)
            self._reducers = program.columns.rank[reductions].tolist()
        self.role: list[int] = role.tolist()
        self.brings: list[int] = brings.tolist()

    def source(self, arrival: int, rank: int) -> int:
        """Returns the rank on which `rank` waits for `arrival`."""
        if arrival >= len(self.channels):
            return self._reducers[arrival - len(self.channels)]
        source, target, _ = self.channels[arrival]
        return target if source == rank else source

    def _add_needs(self, program: Program) -> None:
        """Notes what ops wait for, in the order in which the dependency table names it."""
        links, needs, brings = program.links, self.needs, self.brings
        receives = links.receives.entry[links.takes].tolist()
        for taker, receive in zip(links.taker.tolist(), receives, strict=True):
            needs[taker] += (brings[receive],)
        for number in links.lacking.entry.tolist():
            needs[number] += (self.never,)
        for number, moves in _waits_for_copies(program):
            copied = tuple(brings[move] for move in moves)
            back = self.entries[number].kind in BACKWARD
            needs[number] = copied + needs[number] if back else needs[number] + copied
        for number, gather in self._first_after_gathers(program):
            needs[number] += (brings[gather],)
        awaited = awaited_gradients(program.schedule)
        ops = [(at, entry) for at, entry in enumerate(self.entries) if isinstance(entry, Op)] if awaited else []
        given = {contributed(op): brings[at] for at, op in ops if op.kind == OpKind.REDUCE_GRAD}
        for number, op in ops:
            needs[number] += tuple(given.get(value, self.never) for value in awaited.get(op, ()))

    def _first_after_gathers(self, program: Program) -> Iterator[tuple[int, int]]:
        """Yields the first op that needs what is gathered, and the UNSHARD; ops behind it find that there."""
        if GATHERS not in self.role:
            return
        under_way: dict[tuple[int, int], int] = {}
        for number, (rank, _, entry) in enumerate(program.instructions()):
            if entry.kind == OpKind.UNSHARD:
                under_way[rank, entry.stage] = number
            elif entry.kind in NEEDS_PARAMETERS and (rank, entry.stage) in under_way:
                yield number, under_way.pop((rank, entry.stage))

    def _join_pairs(self, program: Program) -> None:
        """Lets the first op of a pair wait for what both need."""
        for second in np.flatnonzero(program.ends_pair).tolist():
            self.of_second.update(self.needs[second])
            self.needs[second - 1] += self.needs[second]
            self.needs[second] = ()


def _channel_of_move(program: Program, number: int) -> Channel:
    """Returns where a copy of activations travels; gathered parameters come to their own rank."""
    rank, position = program.columns.place(number)
    kind = program.ranks[rank][position].kind
    if kind == OpKind.UNSHARD:
        return Channel(rank, rank, kind)
    keeper = program.schedule.keepers[rank]
    return Channel(rank, keeper, kind) if kind == OpKind.OFFLOAD else Channel(keeper, rank, kind)


def _waits_for_copies(program: Program) -> Iterator[tuple[int, list[int]]]:
    """Yields each F with the offloads since the F before it, and each B or I with its microbatch's reload."""
    if not np.isin(program.columns.kind, [*MOVES]).any():
        return
    leaving: dict[int, list[int]] = {}
    reloads: dict[tuple[int, ...], int] = {}
    for number, (rank, _, (kind, *work)) in enumerate(program.instructions()):
        if kind == OpKind.OFFLOAD:
            leaving.setdefault(rank, []).append(number)
        elif kind == OpKind.RELOAD:
            reloads[(rank, *work)] = number
        elif kind == OpKind.F:
            yield number, leaving.pop(rank, [])
        elif kind in BACKWARD and (rank, *work) in reloads:
            yield number, [reloads[(rank, *work)]]


def _seconds(program: Program, entries: list[Instruction], costs: StageCosts, cluster: Cluster) -> list[float]:
    """Returns how long each instruction takes on its rank."""
    columns, num_stages = program.columns, program.schedule.num_stages
    seconds = costs.seconds(num_stages)
    speeds = [device.speed for device in cluster.devices]
    _, first, same = np.unique(codes(columns.kind, columns.stage, columns.rank), return_index=True, return_inverse=True)

    def taken(number: int, alone: float) -> float:
        speed = speeds[columns.rank[number]]
        return alone if speed == 1 else alone / speed

    each = []
    for number in first.tolist():
        kind, stage, *_ = entries[number]
        each.append(taken(number, seconds[kind][stage] if kind in seconds else 0))
    found = list(map(each.__getitem__, same.tolist()))
    saved = costs.overlap_saves(num_stages)
    for second in np.flatnonzero(program.ends_pair).tolist():
        alone = durations(entries[second - 1 : second + 1], seconds, saved=saved)  # type: ignore[arg-type]
        found[second - 1 : second + 1] = (taken(second, part) for part in alone)
    return found
