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
from penstock.ir.dependencies import CONSUMES, MESSAGE, Key, Value, ValueKind, carried, produced
from penstock.ir.ops import GUESTS, MOVES, ORDERED, RECEIVES, SENDS, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.steps import awaited_gradients, contributed, useful_products

_COPIES = MOVES | GUESTS


class _Place(NamedTuple):
    rank: int
    position: int


class _State:
    """How far every rank has come, and what exists there."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.num_stages = program.schedule.num_stages
        self.at = [0] * program.num_ranks
        self.exists: list[set[Key]] = [set() for _ in range(program.num_ranks)]
        self.posted: dict[Channel, int] = defaultdict(int)  # receives that no send has met yet
        self.awaited = awaited_gradients(program.schedule)
        self.blocked_by: list[Key | Channel | None] = [None] * program.num_ranks
        self.made_by = useful_products(program.schedule)
        self.awake = deque(range(program.num_ranks))

    def advance(self, rank: int) -> None:
        """Carries out what `rank` may run; wakes the ranks that wait for it."""
        entries, pairs, exists = self.program.ranks[rank], self.program.pairs[rank], self.exists[rank]
        for at in range(self.at[rank], len(entries)):
            entry = entries[at]
            self.at[rank] = at
            if isinstance(entry, Transfer):
                if not self.travel(entry):
                    self.blocked_by[rank] = entry.channel
                    return
            elif entry[0] in _COPIES:
                self.blocked_by[rank] = self.copy(entry)
                if self.blocked_by[rank] is not None:
                    return
            elif entry[0] in ORDERED:
                missing = self.missing(rank, entry, paired=at in pairs)
                if missing is not None:
                    self.blocked_by[rank] = missing
                    return
                kind, stage, microbatch, replica = entry
                for value in self.made_by[kind]:
                    exists.add((value, stage, microbatch, replica))
            elif entry.kind == OpKind.REDUCE_GRAD:
                for owner in self.program.schedule.placement.owners(entry.stage):
                    self.give(owner, contributed(entry))
        self.at[rank] = len(entries)

    def travel(self, entry: Transfer) -> bool:
        """Posts a receive, or sends if a receive is posted; returns whether that is so."""
        kind, stage, microbatch, replica, channel = entry
        source, target, _ = channel
        if kind in RECEIVES:
            self.posted[channel] += 1
            if self.blocked_by[source] == channel:
                self.wake(source)
            return True
        if self.posted[channel] <= 0:
            return False
        self.posted[channel] -= 1
        value, offset = MESSAGE[kind]
        self.give(target, (value, stage + offset, microbatch, replica))
        return True

    def copy(self, entry: Op) -> Key | Channel | None:
        """Moves activations between a rank and its keeper, or posts a receive; returns what it has to wait for."""
        kind, stage, microbatch, replica = entry
        guest = self.program.schedule.placement.rank_of(stage, replica)
        keeper = self.program.schedule.keepers[guest]
        away, back = Channel(guest, keeper, OpKind.OFFLOAD), Channel(keeper, guest, OpKind.RELOAD)
        saved: Key = (ValueKind.SAVED, stage, microbatch, replica)
        offloaded: Key = (ValueKind.OFFLOADED, stage, microbatch, replica)
        if kind in (OpKind.HOST, OpKind.RELOAD):
            channel = away if kind == OpKind.HOST else back
            self.posted[channel] += 1
            if self.blocked_by[channel.source] == channel:
                self.wake(channel.source)
            return None
        channel, target, value = (away, keeper, offloaded) if kind == OpKind.OFFLOAD else (back, guest, saved)
        if kind == OpKind.RETURN and offloaded not in self.exists[keeper]:
            return offloaded
        if self.posted[channel] <= 0:
            return channel
        self.posted[channel] -= 1
        if kind == OpKind.OFFLOAD:
            self.exists[guest].discard(saved)
        self.give(target, value)
        return None

    def give(self, rank: int, value: Key) -> None:
        self.exists[rank].add(value)
        if self.blocked_by[rank] == value:
            self.wake(rank)

    def wake(self, rank: int) -> None:
        self.blocked_by[rank] = None
        self.awake.append(rank)

    def missing(self, rank: int, op: Op, *, paired: bool) -> Key | None:
        """Returns what `op`, at which `rank` stands, still needs; if it starts a pair, what both ops need."""
        exists = self.exists[rank]
        awaited = self.awaited.get(op, ()) if self.awaited else ()
        for each in (op, self.program.ranks[rank][self.at[rank] + 1]) if paired else (op,):
            kind, stage, microbatch, replica, *_ = each
            for value, offset in CONSUMES[kind]:
                maker = stage + offset
                if 0 <= maker < self.num_stages:
                    key = (value, maker, microbatch, replica)
                    if key not in exists:
                        return key
            for key in awaited if each is op else ():
                if key not in exists:
                    return key
        return None


def check_progress(program: Program) -> None:
    """Refuses a program in which ranks end up waiting for one another.

    Raises:
        VerificationError: the cycle: each op with rank and position, and the op it waits for.
    """
    state = _State(program)
    while state.awake:
        state.advance(state.awake.popleft())
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
    blocked_by = state.blocked_by[rank]
    if isinstance(blocked_by, Channel):
        partner = Op(OpKind.HOST if entry.kind == OpKind.OFFLOAD else OpKind.RELOAD, *entry[1:4])
        return _Place(blocked_by.target, program.ranks[blocked_by.target].index(partner)), str(partner)
    assert blocked_by is not None, "a rank that stands at an op lacks a value"
    value = Value(ValueKind(blocked_by[0]), *blocked_by[1:])
    for other_rank, position, other in program.instructions():
        ran = position < state.at[other_rank]
        if isinstance(other, Transfer):
            makes = other.kind in SENDS and carried(other) == value
        elif other.kind == OpKind.REDUCE_GRAD:
            makes = contributed(other) == value
        elif other.kind in _COPIES:
            gives = {OpKind.OFFLOAD: ValueKind.OFFLOADED, OpKind.RETURN: ValueKind.SAVED}.get(other.kind)
            makes = (gives, *other[1:]) == value
        else:
            makes = other.kind in ORDERED and value in produced(other)
        if makes and not ran:  # what has run is not waited for, but its send is
            return _Place(other_rank, position), str(other)
    what = f"{value.kind.name.lower()} of stage {value.stage} microbatch {value.microbatch}"
    return None, f"the {what}, never made"
