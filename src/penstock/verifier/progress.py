"""All ranks reach their end, even when every send blocks until its receive is posted.

An overlapped pair starts only once the inputs of both its ops exist. The optimizer step of a stage that several ranks
hold waits for the reductions of all of them.

Programs are straight lines, so one walk decides: which rank moves first changes nothing about where all of
them end up. A walk that stops short leaves every unfinished rank waiting for one op elsewhere; following
those arrows from any of them runs into a cycle, or into an op that never comes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import NamedTuple

from penstock.errors import VerificationError
from penstock.ir.dependencies import Value, carried, consumed, produced
from penstock.ir.ops import ORDERED, RECEIVES, SENDS, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.steps import awaited_gradients, contributed


class _Place(NamedTuple):
    rank: int
    position: int


class _State:
    """How far every rank has come, and what exists there."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.at = [0] * program.num_ranks
        self.exists: list[set[Value]] = [set() for _ in range(program.num_ranks)]
        self.posted: dict[Channel, int] = defaultdict(int)
        self.sent: dict[Channel, int] = defaultdict(int)
        self.awaited = awaited_gradients(program.schedule)

    def may_run(self, rank: int, entry: Instruction) -> bool:
        if isinstance(entry, Transfer):
            return entry.kind in RECEIVES or self.posted[entry.channel] > self.sent[entry.channel]
        if entry.kind not in ORDERED:
            return True
        exists = self.exists[rank]
        return all(value in exists for value in self.needs(rank, entry))

    def needs(self, rank: int, op: Op) -> list[Value]:
        """Returns what `op`, at which `rank` stands, takes; if it starts a pair, what both ops take."""
        needs = [*consumed(op, self.program.schedule.num_stages), *self.awaited.get(op, ())]
        if self.at[rank] in self.program.pairs[rank]:
            second = self.program.ranks[rank][self.at[rank] + 1]
            assert isinstance(second, Op), "check_order has seen that they stand side by side"
            needs += consumed(second, self.program.schedule.num_stages)
        return needs

    def run(self, rank: int, entry: Instruction) -> tuple[int, ...]:
        """Carries out `entry`; returns the ranks that may wait for it."""
        self.at[rank] += 1
        if not isinstance(entry, Transfer):
            if entry.kind in ORDERED:
                self.exists[rank].update(produced(entry))
            return self.reduce(entry) if entry.kind == OpKind.REDUCE_GRAD else ()
        if entry.kind in RECEIVES:
            self.posted[entry.channel] += 1
            return (entry.channel.source,)
        self.sent[entry.channel] += 1
        self.exists[entry.channel.target].add(carried(entry))
        return (entry.channel.target,)

    def reduce(self, reduced: Op) -> tuple[int, ...]:
        """Gives the owners of a stage what one of them has contributed; returns them."""
        owners = self.program.schedule.placement.owners(reduced.stage)
        for owner in owners:
            self.exists[owner].add(contributed(reduced))
        return owners


def check_progress(program: Program) -> None:
    """Refuses a program in which ranks end up waiting for one another.

    Raises:
        VerificationError: the cycle: each op with rank and position, and the op it waits for.
    """
    state = _State(program)
    awake = deque(range(program.num_ranks))
    while awake:
        rank = awake.popleft()
        entries = program.ranks[rank]
        while state.at[rank] < len(entries) and state.may_run(rank, entries[state.at[rank]]):
            awake.extend(state.run(rank, entries[state.at[rank]]))
    stuck = [rank for rank in range(program.num_ranks) if state.at[rank] < len(program.ranks[rank])]
    if stuck:
        raise VerificationError(_counter_example(program, state, stuck[0]))


def _counter_example(program: Program, state: _State, rank: int) -> str:
    """Returns the cycle that the waits of the stuck ranks run into, one line an op."""
    path: list[int] = []
    lines: dict[int, str] = {}
    following: int | None = rank
    while following is not None and following not in lines:
        path.append(following)
        place = _Place(following, state.at[following])
        entry = program.ranks[following][place.position]
        target, why = _awaited(program, state, following, entry)
        where = "" if target is None else f" (rank {target.rank} position {target.position})"
        text = _text(program, place)
        lines[following] = f"  rank {place.rank} position {place.position}: {text} waits for {why}{where}"
        following = None if target is None else target.rank
    cycle = path[path.index(following) :] if following is not None else path
    name = program.schedule.name
    head = f"{name} deadlocks, in a cycle:" if following is not None else f"{name} cannot go on:"
    return "\n".join([head, *(lines[member] for member in cycle)])


def _text(program: Program, place: _Place) -> str:
    entries = program.ranks[place.rank]
    size = 2 if place.position in program.pairs[place.rank] else 1
    return "+".join(map(str, entries[place.position : place.position + size]))


def _awaited(program: Program, state: _State, rank: int, entry: Instruction) -> tuple[_Place | None, str]:
    """Returns where the thing is that `entry` waits for, and what it is."""
    if isinstance(entry, Transfer):
        peer = entry.channel.target
        for position, other in enumerate(program.ranks[peer]):
            if isinstance(other, Transfer) and other.kind in RECEIVES and carried(other) == carried(entry):
                return _Place(peer, position), f"its receive {other}"
        return None, "a receive that is never posted"
    value = next(value for value in state.needs(rank, entry) if value not in state.exists[rank])
    for other_rank, position, other in program.instructions():
        ran = position < state.at[other_rank]
        if isinstance(other, Transfer):
            makes = other.kind in SENDS and carried(other) == value
        elif other.kind == OpKind.REDUCE_GRAD:
            makes = contributed(other) == value
        else:
            makes = other.kind in ORDERED and value in produced(other)
        if makes and not ran:  # what has run is not waited for, but its send is
            return _Place(other_rank, position), str(other)
    what = f"{value.kind.name.lower()} of stage {value.stage} microbatch {value.microbatch}"
    return None, f"the {what}, never made"
