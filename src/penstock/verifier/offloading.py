"""What is offloaded comes back before it is needed, and its keeper takes part in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from penstock.errors import VerificationError
from penstock.ir.ops import BACKWARD, GUESTS, MOVES, Op, OpKind
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule

_PARTNERS = {
    OpKind.OFFLOAD: OpKind.HOST,
    OpKind.HOST: OpKind.OFFLOAD,
    OpKind.RELOAD: OpKind.RETURN,
    OpKind.RETURN: OpKind.RELOAD,
}
"""What happens at the other end."""


def check_offloading(schedule: Schedule) -> None:
    """Refuses a schedule that offloads what is not there, or needs what is away.

    On each rank a microbatch's activations are there from its F to its B or I. OFFLOAD takes them away, to another
    rank, RELOAD brings them back, each at most once.

    Raises:
        VerificationError: the op with its rank and position, and what is wrong with it.
    """
    moving = np.isin(schedule.columns.kind, [*MOVES])
    for rank in sorted(set(schedule.columns.rank[moving].tolist())):  # np.unique would import all of numpy.ma
        ops = schedule.ranks[rank]
        if not schedule.keepers:
            at, op = next((at, op) for at, op in enumerate(ops) if op.kind in MOVES)
            raise VerificationError(
                f"rank {rank} position {at}: {op} has nowhere to put the activations; name in keepers another rank, or "
                f"{rank} for its host's memory"
            )
        for at, op, problem in _faults(ops):
            raise VerificationError(f"rank {rank} position {at}: {op} {problem}")


def check_guests(program: Program) -> None:
    """Refuses a program in which a keeper does not take in and send back exactly what another rank offloads to it.

    Between two ranks what is offloaded arrives in the order of OFFLOAD and HOST, and comes back in that of RETURN and
    RELOAD, so these have to be equal; a guest is sent back after it has been taken in.

    Raises:
        VerificationError: the instruction with its rank, and its partner.
    """
    if not np.isin(program.columns.kind, [*MOVES, *GUESTS]).any():
        return
    keepers, placement = program.schedule.keepers, program.schedule.placement
    moved: dict[tuple[OpKind, int, int], list[Op]] = defaultdict(list)
    for rank, entries in enumerate(program.ranks):
        taken: set[tuple[object, ...]] = set()
        for entry in entries:
            if entry.kind in MOVES and keepers[rank] != rank:
                moved[entry.kind, rank, keepers[rank]].append(Op(*entry[:4]))
            elif entry.kind in GUESTS:
                known = entry.replica < placement.num_replicas and entry.stage < placement.num_stages
                guest = placement.rank_of(entry.stage, entry.replica) if known else rank
                if guest == rank:
                    raise VerificationError(f"rank {rank}: {entry} is of no other rank's stage")
                if entry.kind == OpKind.RETURN and entry[1:] not in taken:
                    raise VerificationError(f"rank {rank}: {entry} comes before the activations have been taken in")
                taken.add(entry[1:])
                moved[entry.kind, guest, rank].append(Op(*entry[:4]))
    for (kind, guest, keeper), ops in moved.items():
        partner, far = _PARTNERS[kind], keeper if kind in MOVES else guest
        others = [op._replace(kind=kind) for op in moved.get((partner, guest, keeper), ())]
        if others != ops:
            at = next((i for i, pair in enumerate(zip(ops, others, strict=False)) if pair[0] != pair[1]), None)
            at = min(len(ops), len(others)) if at is None else at
            mine = ops[at] if at < len(ops) else "nothing"
            theirs = others[at]._replace(kind=partner) if at < len(others) else "nothing"
            raise VerificationError(
                f"between rank {guest} and its keeper {keeper}: number {at} of {kind.name} is {mine}, of "
                f"{partner.name} on rank {far} {theirs}"
            )


def _faults(ops: tuple[Op, ...]) -> Iterator[tuple[int, Op, str]]:
    """Yields position, op and what is wrong with it."""
    there: set[tuple[int, int, int]] = set()
    away: dict[tuple[int, int, int], int] = {}
    for at, op in enumerate(ops):
        key = op[1:4]
        if op.kind == OpKind.RELOAD:
            if key not in away:
                yield at, op, "reloads what has not been offloaded"
            away.pop(key, None)
            there.add(key)
        elif op.kind == OpKind.OFFLOAD:
            if key not in there:
                yield at, op, "offloads what is not there" + _since(key, away)
            there.discard(key)
            away[key] = at
        elif op.kind == OpKind.F:
            there.add(key)
        elif op.kind in BACKWARD:
            if key in away:
                yield at, op, "needs what is not there" + _since(key, away)
            there.discard(key)


def _since(key: tuple[int, int, int], away: dict[tuple[int, int, int], int]) -> str:
    return f"; it was offloaded at position {away[key]} and not reloaded since" if key in away else ""
