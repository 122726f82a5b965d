"""Grids of repeated building blocks: a row a rank, a cell a slot; a cell is a pass and its microbatch, or None."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum


class Pass(IntEnum):
    """What runs on a rank of the V, in the order in which a microbatch comes by: down, up, down, up."""

    F_FIRST = 0
    F_SECOND = 1
    I_SECOND = 2
    I_FIRST = 3
    W = 4  # of either stage


Cell = tuple[Pass, int]
Row = list[Cell | None]
Grid = list[Row]

PERIOD = 6
"""Slots from one microbatch of a block to the next: F, I and W of two stages."""

FORWARDS = frozenset({Pass.F_FIRST, Pass.F_SECOND})
INPUT_GRADS = frozenset({Pass.I_SECOND, Pass.I_FIRST})
_DOWN = frozenset({Pass.F_FIRST, Pass.I_SECOND})


def cells(grid: Grid) -> Iterator[tuple[int, int, Cell]]:
    """Yields `(slot, rank, cell)` in the order of time; ops may meanwhile move to slots that have gone by."""
    for slot in range(max(map(len, grid))):
        for rank, row in enumerate(grid):
            cell = row[slot] if slot < len(row) else None
            if cell is not None:
                yield slot, rank, cell


def needs(rank: int, cell: Cell, num_ranks: int) -> list[tuple[int, Pass, int]]:
    """Returns the ops, as rank, pass and microbatch, that come before this one; for a W only the W before it."""
    kind, microbatch = cell
    neighbour = rank - 1 if kind in _DOWN else rank + 1
    found: list[tuple[int, Pass, int]] = []
    if kind != Pass.W and 0 <= neighbour < num_ranks:
        found.append((neighbour, kind, microbatch))
    if Pass.F_FIRST < kind < Pass.W:
        found.append((rank, Pass(kind - 1), microbatch))
    if microbatch:
        found.append((rank, kind, microbatch - 1))
    return found


def eager(grid: Grid) -> Grid:
    """Returns the grid in which every op starts as early as the order of its rank allows."""
    rows: Grid = [[] for _ in grid]
    end: dict[tuple[int, Pass, int], int] = {}
    for _, rank, cell in cells(grid):
        row = rows[rank]
        ready = max((end[need] for need in needs(rank, cell, len(grid))), default=0)
        row.extend([None] * (ready - len(row)))
        row.append(cell)
        end[rank, *cell] = len(row)
    return rows


def repeated(slots: Sequence[int], num_microbatches: int) -> Row:
    """Returns the row with the four passes of microbatch 0 in these slots, of each later one a period later."""
    row: Row = [None] * (max(slots) + PERIOD * (num_microbatches - 1) + 1)
    for kind, first in zip(Pass, slots, strict=False):
        for microbatch in range(num_microbatches):
            row[first + PERIOD * microbatch] = (kind, microbatch)
    return row


def with_weights(row: Row) -> Row:
    """Returns the row with a W for each I in the first free slot after it, or at the end."""
    filled: Row = []
    waiting = done = 0
    for cell in row:
        if cell is None and waiting:
            filled.append((Pass.W, done))
            waiting, done = waiting - 1, done + 1
        else:
            filled.append(cell)
            waiting += cell is not None and cell[0] in INPUT_GRADS
    return filled + [(Pass.W, done + number) for number in range(waiting)]


def without_weights(row: Row) -> Row:
    """Returns the row with its W taken out; their slots are free."""
    return [None if cell is None or cell[0] == Pass.W else cell for cell in row]
