"""Schedules and programs as columns of integers, for passes over a million ops.

Entries are numbered through, rank after rank. Two entries, values or channels are compared as their *codes*: one
integer a row, equal exactly where the rows are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from penstock.errors import ScheduleError

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_Row = TypeVar("_Row", bound=tuple[Any, ...])

ABSENT = -1
"""Where an index is expected and nothing is there."""


class Columns(NamedTuple):
    """The entries of all ranks, numbered through; `first` has the number of each rank's first, and behind them the end.

    `position` counts on each rank from 0.
    """

    kind: Ints
    stage: Ints
    microbatch: Ints
    replica: Ints
    rank: Ints
    position: Ints
    first: Ints

    def place(self, index: int) -> tuple[int, int]:
        """Returns rank and position of entry `index`."""
        return int(self.rank[index]), int(self.position[index])


def columns_of(ranks: Sequence[Sequence[tuple[object, ...]]]) -> Columns:
    """Returns the entries of all `ranks` as columns.

    Raises:
        ScheduleError: a number that takes more than 64 bits.
    """
    lengths = [len(entries) for entries in ranks]
    first = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    total = int(first[-1])
    try:
        kind, stage, microbatch, replica = (
            np.fromiter(map(itemgetter(field), chain.from_iterable(ranks)), np.int64, total) for field in range(4)
        )
    except OverflowError as error:
        raise ScheduleError("an op has a stage, microbatch or replica beyond 64 bits; count from 0") from error
    rank = np.repeat(np.arange(len(lengths)), lengths)
    return Columns(kind, stage, microbatch, replica, rank, np.arange(total) - first[rank], first)


def rows_of(made: type[_Row], *columns: Iterable[object]) -> list[_Row]:
    """Returns named tuples with these fields: `made._make` of every row, in half the time."""
    return list(map(partial(tuple.__new__, made), zip(*columns, strict=True)))


def codes(*columns: Ints) -> Ints:
    """Returns one integer a row, from 0 without large gaps; equal where the rows are, and in the same order."""
    code, size = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        if len(column):
            low = int(column.min())
            width = int(column.max()) - low + 1
            code, size = code * width + (column - low), size * width
        if size > _GAPS * (len(code) + 1):
            code, size = _closed_up(code, size)
    return code


_GAPS, _TABLE = 4, 32
"""How many times as many integers as rows codes may span, and may span for a table to be faster than sorting."""


def _closed_up(code: Ints, size: int) -> tuple[Ints, int]:
    """Returns `code` renumbered without gaps, in the same order, and how many different ones there are."""
    if size > _TABLE * (len(code) + 1):
        found, code = np.unique(code, return_inverse=True)
        return code, len(found)
    there = np.zeros(size, np.bool_)
    there[code] = True
    found = np.flatnonzero(there)
    numbers = np.empty(size, np.int64)
    numbers[found] = np.arange(len(found))
    return numbers[code], len(found)


def first_of(found: Ints, wanted: Ints) -> Ints:
    """Returns for each code of `wanted` the index of the first in `found` that equals it, or ABSENT."""
    return _looked_up(found[::-1], np.arange(len(found))[::-1], wanted)


def last_of(found: Ints, wanted: Ints) -> Ints:
    """Returns for each code of `wanted` the index of the last in `found` that equals it, or ABSENT."""
    return _looked_up(found, np.arange(len(found)), wanted)


def _looked_up(found: Ints, index: Ints, wanted: Ints) -> Ints:
    table = np.full(1 + max(found.max(initial=0), wanted.max(initial=0)), ABSENT)
    table[found] = index  # where a code comes twice, the later stays
    return table[wanted]


def sorted_by(code: Ints) -> Ints:
    """Returns the order in which `code` ascends, equal ones as they stand."""
    small = code.astype(np.int16) if code.min(initial=0) >= 0 and code.max(initial=0) < 1 << 15 else code
    return np.argsort(small, kind="stable")  # by radix where the numbers are small


def numbered(code: Ints) -> Ints:
    """Returns for each how many of the same code come before it."""
    order = sorted_by(code)
    ordered = code[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    numbers = np.empty(len(code), np.int64)
    numbers[order] = np.arange(len(code)) - np.repeat(starts, np.diff(starts, append=len(code)))
    return numbers
