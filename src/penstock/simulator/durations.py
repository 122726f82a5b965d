"""How long an op takes, or each op of an overlapped pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Rational

from penstock.ir.ops import Op, OpKind


def durations(
    ops: Sequence[Op], seconds: Mapping[OpKind, Sequence[float]], *, saved: Sequence[float]
) -> tuple[float, ...]:
    """Returns the seconds of each of `ops`: one op, or a pair, whose seconds are split as its ops take them alone.

    Args:
        ops: one op, or a forward and a backward.
        seconds: by kind and stage; a kind that is not there takes no time.
        saved: by stage what a forward and a backward of it save as a pair.
    """
    if len(ops) == 1:  # nearly every call, and simulations make a million of them
        (op,) = ops
        return (seconds[op.kind][op.stage] if op.kind in seconds else 0,)
    alone = tuple(seconds[op.kind][op.stage] if op.kind in seconds else 0 for op in ops)
    saving = _saving(ops, saved)
    if not saving:
        return alone
    whole = sum(alone)
    together = max(whole - saving, *alone)
    first = _share(together, alone[0], whole) if whole else 0
    return (first, together - first)


def _saving(ops: Sequence[Op], saved: Sequence[float]) -> float:
    one, other = (saved[op.stage] for op in ops)
    return one if one == other else (one + other) / 2


def _share(total: float, part: float, whole: float) -> float:
    """Returns total · part / whole, exactly where all three are whole numbers or fractions."""
    if all(isinstance(number, Rational) for number in (total, part, whole)):
        share = Fraction(total) * Fraction(part) / Fraction(whole)
        return int(share) if share.denominator == 1 else share  # type: ignore[return-value]  # a number all the same
    return total * part / whole
