"""What is offloaded comes back before it is needed."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.errors import VerificationError
from penstock.ir.ops import BACKWARD, Op, OpKind
from penstock.ir.schedule import Schedule

_MOVES = frozenset({OpKind.OFFLOAD, OpKind.RELOAD})


def check_offloading(schedule: Schedule) -> None:
    """Refuses a schedule that offloads what is not there, or needs what is away.

    On each rank a microbatch's activations are there from its F to its B or I. OFFLOAD takes them away, to another
    rank, RELOAD brings them back, each at most once.

    Raises:
        VerificationError: the op with its rank and position, and what is wrong with it.
    """
    for rank, ops in enumerate(schedule.ranks):
        if not any(op.kind in _MOVES for op in ops):
            continue
        if not schedule.keepers or schedule.keepers[rank] == rank:
            at, op = next((at, op) for at, op in enumerate(ops) if op.kind in _MOVES)
            raise VerificationError(
                f"rank {rank} position {at}: {op} has no rank to keep the activations; name another rank in keepers"
            )
        for at, op, problem in _faults(ops):
            raise VerificationError(f"rank {rank} position {at}: {op} {problem}")


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
