"""A second opinion on programs: carries them out in random order, message by message, and looks what came of it.

It shares no code with the verifier: what a message carries is decided here by what its sender has in hand.
"""

import math
from random import Random

from tests.random_schedules import B, F, I, W

from penstock.ir import Channel, Op, OpKind, Program, Transfer

Label = tuple[str, int, int, int]
"""(what, stage, microbatch, replica): "out", "saved", "grad" or "deferred"."""


class Wrong(Exception):
    """The run did something that a correct program never does."""


class Run:
    """One execution. A channel takes `capacity` messages before their receives are posted; 0 is rendezvous."""

    def __init__(self, program: Program, *, capacity: float, seed: int) -> None:
        self.program, self.capacity, self.random = program, capacity, Random(seed)
        self.at = [0] * program.num_ranks
        self.store: list[set[Label]] = [set() for _ in program.ranks]
        self.expected: list[dict[Label, bool]] = [{} for _ in program.ranks]  # posted -> arrived
        self.sent: dict[Channel, list[Label]] = {}
        self.posted: dict[Channel, list[tuple[int, Label]]] = {}
        self.gradients: dict[tuple[int, int], int] = {}
        self.reduced: dict[tuple[int, int], int] = {}

    def finishes(self) -> bool:
        """Runs until nobody can go on; whether all are at their end, with no message left over."""
        try:
            while movable := [rank for rank in range(len(self.at)) if self.can_move(rank)]:
                self.move(self.random.choice(movable))
        except Wrong:
            return False
        ended = all(at == len(row) for at, row in zip(self.at, self.program.ranks, strict=True))
        paired = all(
            len(self.sent.get(channel, ())) == len(self.posted.get(channel, ())) for channel in self.program.channels
        )
        return ended and paired

    def can_move(self, rank: int) -> bool:
        if self.at[rank] == len(self.program.ranks[rank]):
            return False
        entry = self.program.ranks[rank][self.at[rank]]
        if isinstance(entry, Transfer):
            if entry.kind in (OpKind.RECV_F, OpKind.RECV_B):
                return True
            waiting = len(self.sent.get(entry.channel, ())) - len(self.posted.get(entry.channel, ()))
            return waiting < self.capacity if self.capacity else waiting < 0
        return all(self.has(rank, label) for label in self.inputs(entry))

    def inputs(self, op: Op) -> list[Label]:
        _, stage, microbatch, replica = op
        last = self.program.schedule.num_stages - 1
        out, grad = ("out", stage - 1, microbatch, replica), ("grad", stage + 1, microbatch, replica)
        if op.kind == F:
            return [out] if stage else []
        if op.kind in (B, I):
            return [("saved", stage, microbatch, replica), *([grad] if stage < last else [])]
        return [("deferred", stage, microbatch, replica)] if op.kind == W else []

    def has(self, rank: int, label: Label) -> bool:
        if label in self.expected[rank]:
            return self.expected[rank][label]
        return label in self.store[rank]

    def move(self, rank: int) -> None:
        entry = self.program.ranks[rank][self.at[rank]]
        self.at[rank] += 1
        if isinstance(entry, Transfer):
            self.transfer(rank, entry)
        elif entry.kind == OpKind.REDUCE_GRAD:
            key = (entry.stage, entry.replica)
            if key in self.reduced:
                raise Wrong("reduced twice")
            self.reduced[key] = rank
        else:
            self.compute(rank, entry)

    def compute(self, rank: int, op: Op) -> None:
        key = (op.stage, op.replica)
        if op.kind in (B, W) and key in self.reduced:
            raise Wrong("gradient after its reduction")
        made = {F: ("out", "saved"), B: ("grad",), I: ("grad", "deferred"), W: ()}[op.kind]
        self.store[rank].update((what, *op[1:4]) for what in made)

    def transfer(self, rank: int, entry: Transfer) -> None:
        channel, (stage, microbatch, replica) = entry.channel, entry[1:4]
        forward = entry.kind in (OpKind.SEND_F, OpKind.RECV_F)
        if entry.kind in (OpKind.SEND_F, OpKind.SEND_B):
            label = ("out" if forward else "grad", stage, microbatch, replica)
            if channel.source != rank or label not in self.store[rank]:
                raise Wrong("sends what it has not got")
            self.sent.setdefault(channel, []).append(label)
            index = len(self.sent[channel]) - 1
        else:
            label = ("out" if forward else "grad", stage + (-1 if forward else 1), microbatch, replica)
            if channel.target != rank or label in self.expected[rank]:
                raise Wrong("receives elsewhere, or twice")
            self.expected[rank][label] = False
            self.posted.setdefault(channel, []).append((rank, label))
            index = len(self.posted[channel]) - 1
        sent, posted = self.sent.get(channel, []), self.posted.get(channel, [])
        if index < len(sent) and index < len(posted):
            target, wanted = posted[index]
            if sent[index] != wanted:
                raise Wrong("another message than the one received")
            self.expected[target][wanted] = True


def correct(program: Program, *, capacity: float = 0, seed: int = 0) -> bool:
    """Whether `program` runs as it should in one random interleaving, and was complete to begin with."""
    compute = [tuple(entry for entry in row if entry.kind in (F, B, I, W)) for row in program.ranks]
    if tuple(compute) != program.schedule.ranks or not _complete(program):
        return False
    run = Run(program, capacity=capacity, seed=seed)
    if not run.finishes():
        return False
    placement = program.schedule.placement
    owners = {
        (stage, replica): placement.rank_of(stage, replica)
        for replica in range(placement.num_replicas)
        for stage in range(placement.num_stages)
    }
    return run.reduced == owners or (not run.reduced and placement.num_replicas == 1)


def _complete(program: Program) -> bool:
    schedule = program.schedule
    placed = [(rank, op) for rank, ops in enumerate(schedule.ranks) for op in ops]
    seen: dict[tuple[int, int], list[tuple[OpKind, int]]] = {}
    for rank, op in placed:
        if not (0 <= op.stage < schedule.num_stages and 0 <= op.microbatch < schedule.num_microbatches):
            return False
        if op.replica >= len(schedule.placement.table):
            return False
        if schedule.placement.table[op.replica][op.stage] != rank:
            return False
        seen.setdefault((op.stage, op.microbatch), []).append((op.kind, op.replica))
    for stage in range(schedule.num_stages):
        for microbatch in range(schedule.num_microbatches):
            found = sorted(kind for kind, _ in seen.get((stage, microbatch), []))
            if found not in ([F, B], [F, I, W]):
                return False
    for microbatch in range(schedule.num_microbatches):
        if len({op.replica for _, op in placed if op.microbatch == microbatch}) != 1:
            return False
    return True


CAPACITIES = (0, 1, math.inf)
