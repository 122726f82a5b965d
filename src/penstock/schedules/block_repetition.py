"""How a building block becomes a schedule (Qi et al. 2024, Pipeline Parallelism with Controllable Memory).

1  repeat   A block says in which slot each pass of microbatch 0 runs on each rank; microbatch k runs 6k slots
            later. With F = I = W = 1 a rank has six ops a microbatch; the four of a block leave room for two W.
2  fill     W go into the free slots, as early as they can.
3  squeeze  Ops of the warm-up and the cool-down move to the earliest free slot that what they need allows and
            that keeps the peak of the repeated blocks. The steady phase stays as it is: it lasts from the first
            I of rank 0's first stage to its last F. Then every op starts as early as its order allows.
4  again    W are taken out, the cool-down is squeezed once more while free slots count as W, and W come back.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from penstock.schedules.block_grid import (
    FORWARDS,
    INPUT_GRADS,
    Cell,
    Grid,
    Pass,
    cells,
    eager,
    needs,
    repeated,
    with_weights,
    without_weights,
)


def squeezed_repetition(block: Sequence[Sequence[int]], num_microbatches: int) -> Grid:
    """Returns the grid of a block, repeated and squeezed.

    Args:
        block: per rank the slots of F_FIRST, F_SECOND, I_SECOND and I_FIRST of microbatch 0.
        num_microbatches: m.
    """
    grid = [with_weights(repeated(slots, num_microbatches)) for slots in block]
    _Squeeze(grid, num_microbatches, is_bare=False).run()
    grid = [without_weights(row) for row in eager(grid)]
    _Squeeze(grid, num_microbatches, is_bare=True).run()
    grid = [without_weights(row) for row in eager([with_weights(row) for row in grid])]
    return [with_weights(row) for row in grid]


class _Squeeze:
    """One walk through a grid, slot by slot and rank by rank, that moves ops to earlier slots in place.

    Attributes:
        grid: what is squeezed.
        last: the last microbatch.
        is_bare: whether the grid is without W; then free slots count as W, and the warm-up stays as it is.
        held: per rank, after each slot, how many microbatches of a stage are between F and W, and between I and W.
        peak: the most that any rank may hold.
        slot_of: where the ops that the walk has passed are now.
        input_grads: per rank the slots of the I that the walk has passed, sorted: the n-th W follows the n-th I.
    """

    def __init__(self, grid: Grid, num_microbatches: int, *, is_bare: bool) -> None:
        self.grid = grid
        self.last = num_microbatches - 1
        self.is_bare = is_bare
        self.held = [list(self._states(row, (0, 0))) for row in grid]
        self.peak = max(held for row in self.held for held, _ in row)
        self.slot_of: dict[tuple[int, Pass, int], int] = {}
        self.input_grads: list[list[int]] = [[] for _ in grid]

    def run(self) -> None:
        is_kept, is_steady = self.is_bare, False
        for slot, rank, cell in cells(self.grid):
            if cell[0] == Pass.I_FIRST and rank == 0 and cell[1] == 0:
                is_kept = is_steady = True
            now = slot if is_kept else self._moved(rank, slot, cell)
            if is_steady and cell == (Pass.F_FIRST, self.last):
                is_kept = is_steady = False
            self.slot_of[rank, *cell] = now
            if cell[0] in INPUT_GRADS:
                insort(self.input_grads[rank], now)

    def _moved(self, rank: int, slot: int, cell: Cell) -> int:
        """Moves one op to the earliest slot there is for it; returns that slot."""
        ready = [self.slot_of[need] + 1 for need in needs(rank, cell, len(self.grid))]
        if cell[0] == Pass.W:
            ready.append(self.input_grads[rank][cell[1]] + 1)
        for earlier in range(max(ready, default=0), slot):
            if self.grid[rank][earlier] is None and self._try(rank, slot, earlier):
                return earlier
        return slot

    def _try(self, rank: int, source: int, target: int) -> bool:
        """Moves an op unless the rank would then hold more than the peak; returns whether it did."""
        row, held = self.grid[rank], self.held[rank]
        row[source], row[target] = row[target], row[source]
        changed = []
        states = self._states(islice(row, target, None), held[target - 1] if target else (0, 0))
        for slot, state in enumerate(states, start=target):
            if state[0] > self.peak:
                row[source], row[target] = row[target], row[source]
                return False
            if slot >= source and state == held[slot]:
                break
            changed.append(state)
        held[target : target + len(changed)] = changed
        return True

    def _states(self, cells: Iterable[Cell | None], state: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yields what is held after each of `cells`, from `state` on."""
        held, waiting = state
        for cell in cells:
            if cell is None:
                if self.is_bare and waiting:
                    held, waiting = held - 1, waiting - 1
            elif cell[0] in FORWARDS:
                held += 1
            elif cell[0] == Pass.W:
                held, waiting = held - 1, waiting - 1
            else:
                waiting += 1
            yield held, waiting
