"""Where a rank that keeps another's activations takes part: HOST posts the receive, RETURN sends them back.

Both stand where the plan with F = W = 1 and B = 2 (I = 1), and messages that take no time, has the keeper when its
guest's rank offloads or reloads:

    guest   F2 OFFLOAD2 │ F3          …        B1 RELOAD2 │ F5       B2
    keeper  F0 ─────────┤ HOST2 B0    …        ───────────┤ RETURN2 F4

1. HOST follows the keeper's last op that starts before the guest's F ends. It waits for nothing.
2. RETURN precedes the keeper's first op that starts once the guest has posted its RELOAD.

All instructions then lie on one line of time in the order in which they depend on one another, so nobody waits in a
circle, whatever the buffering; the verifier proves it again from the program alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from penstock.ir.dependencies import CONSUMES, PRODUCES, Key
from penstock.ir.ops import COMPUTE, MOVES, Op, OpKind
from penstock.ir.program import Instruction
from penstock.ir.schedule import Schedule

_SLOTS = {OpKind.B: 2}
"""What an op takes in the plan, where it is not 1."""


def with_guests(schedule: Schedule, ranks: tuple[tuple[Instruction, ...], ...]) -> tuple[tuple[Instruction, ...], ...]:
    """Returns the programs of all ranks with a HOST and a RETURN on the keeper of everything that is offloaded."""
    if not schedule.keepers or not any(op.kind in MOVES for ops in schedule.ranks for op in ops):
        return ranks
    starts = _starts(schedule)
    hosts: list[dict[int, list[Op]]] = [{} for _ in ranks]
    returns: list[dict[int, list[Op]]] = [{} for _ in ranks]
    for _, guest, position, op in sorted(_moves(schedule, starts)):
        keeper = schedule.keepers[guest]
        if keeper == guest:
            continue  # the host's memory takes no part
        at = _first_from(schedule, starts, keeper, starts[guest][position])
        if op.kind == OpKind.OFFLOAD:
            hosts[keeper].setdefault(at, []).append(op._replace(kind=OpKind.HOST))
        else:
            returns[keeper].setdefault(at, []).append(op._replace(kind=OpKind.RETURN))
    return tuple(_inserted(entries, hosts[rank], returns[rank]) for rank, entries in enumerate(ranks))


def _moves(schedule: Schedule, starts: list[list[int]]) -> list[tuple[int, int, int, Op]]:
    """Returns (slot, rank, position, op) of every OFFLOAD and RELOAD."""
    return [(starts[rank][position], rank, position, op) for rank, position, op in schedule.ops() if op.kind in MOVES]


def _starts(schedule: Schedule) -> list[list[int]]:
    """Returns per rank the slot in which each op starts; what takes no time starts where the op before it ends.

    An op that cannot start, of a schedule that the verifier refuses, starts at the end.
    """
    made: dict[Key, int] = {}
    starts: list[list[int]] = [[] for _ in schedule.ranks]
    clocks = [0] * schedule.num_ranks
    waiting: dict[Key, int] = {}
    awake = deque(range(schedule.num_ranks))
    while awake:
        rank = awake.popleft()
        ops, done = schedule.ranks[rank], starts[rank]
        while len(done) < len(ops):
            kind, stage, microbatch, replica = ops[len(done)]
            if kind in COMPUTE:
                needs = [
                    (value, stage + offset, microbatch, replica)
                    for value, offset in CONSUMES[kind]
                    if 0 <= stage + offset < schedule.num_stages
                ]
                missing = next((key for key in needs if key not in made), None)
                if missing is not None:
                    waiting[missing] = rank
                    break
                clocks[rank] = max([clocks[rank], *(made[key] for key in needs)])
            done.append(clocks[rank])
            clocks[rank] += _SLOTS.get(kind, 1) if kind in COMPUTE else 0
            for value in PRODUCES[kind]:
                key = (value, stage, microbatch, replica)
                made.setdefault(key, clocks[rank])
                if key in waiting:
                    awake.append(waiting.pop(key))
    end = max(clocks)
    return [done + [end] * (len(ops) - len(done)) for done, ops in zip(starts, schedule.ranks, strict=True)]


def _first_from(schedule: Schedule, starts: list[list[int]], rank: int, slot: int) -> int:
    """Returns the place among the compute ops of `rank` of the first that starts in `slot` or later, pairs whole."""
    compute = [at for at, op in enumerate(schedule.ranks[rank]) if op.kind in COMPUTE]
    place = bisect_left([starts[rank][at] for at in compute], slot)
    seconds = {start + 1 for start in schedule.overlapped[rank]} if schedule.overlapped else set()
    return place + 1 if place < len(compute) and compute[place] in seconds else place


def _inserted(
    entries: tuple[Instruction, ...], hosts: dict[int, list[Op]], returns: dict[int, list[Op]]
) -> tuple[Instruction, ...]:
    """Returns `entries` with the guests' instructions around the compute op of each place."""
    found: list[Instruction] = []
    place = 0
    found.extend(hosts.get(0, ()))
    for entry in entries:
        if entry.kind in COMPUTE:
            found.extend(returns.get(place, ()))
            place += 1
        found.append(entry)
        if entry.kind in COMPUTE:
            found.extend(hosts.get(place, ()))
    return (*found, *returns.get(place, ()))
