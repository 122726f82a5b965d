"""Backwards in two halves, I and W: which of them run as one after all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from penstock.ir.ops import OpKind
from penstock.ir.program import Instruction


def whole_backwards(entries: Sequence[Instruction]) -> Iterator[int]:
    """Yields the positions of a rank's I with their own W right behind them: such a pair runs as one full backward."""
    for position, (entry, following) in enumerate(pairwise(entries)):
        if entry.kind == OpKind.I and following.kind == OpKind.W and following[1:] == entry[1:]:
            yield position
