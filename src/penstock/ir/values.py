"""What the entries of a schedule or program make and need, as columns: the tables of `ir/dependencies.py` at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from penstock.ir.columns import Columns, Flags, Ints, codes
from penstock.ir.dependencies import CONSUMES, MESSAGE, PRODUCES
from penstock.ir.ops import OpKind

MADE = {kind: tuple((value, 0) for value in row) for kind, row in PRODUCES.items()}
NEEDED = CONSUMES
CARRIED = {kind: (row,) for kind, row in MESSAGE.items()}
"""Kind of entry -> (kind of value, stage of its maker relative to the entry's): made, needed, carried by a transfer."""


class Values(NamedTuple):
    """Values, each with the number of the entry that makes, needs or carries it, in the order of the entries."""

    entry: Ints
    kind: Ints
    stage: Ints
    microbatch: Ints
    replica: Ints

    def where(self, chosen: Flags | Ints) -> Values:
        """Returns the chosen rows."""
        return Values(*(column[chosen] for column in self))


def values_of(columns: Columns, table: Mapping[OpKind, Sequence[tuple[int, int]]]) -> Values:
    """Returns for every entry the values of its kind's row in `table`, one of those above or a part of it."""
    found = []
    for kind, row in table.items():
        at = np.flatnonzero(columns.kind == kind)
        for value, offset in row:
            found.append((at, np.full(len(at), int(value)), columns.stage[at] + offset))
    entry, value_kind, stage = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(entry, kind="stable")
    entry = entry[order]
    return Values(entry, value_kind[order], stage[order], columns.microbatch[entry], columns.replica[entry])


def value_codes(columns: Columns, *values: Values, on_rank: bool = False) -> list[Ints]:
    """Returns one code a value, comparable between all of `values`; `on_rank`: of the value on the entry's rank."""
    joined = Values(*(np.concatenate(column) for column in zip(*values, strict=True)))
    ranks = [columns.rank[joined.entry]] if on_rank else []
    code = codes(*ranks, joined.stage, joined.kind, joined.replica, joined.microbatch)
    return np.split(code, np.cumsum([len(each.entry) for each in values])[:-1])
