"""Placement: which rank holds which stage, for every pipeline direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from penstock.errors import ScheduleError


@dataclass(frozen=True)
class Placement:
    """For each replica, the rank of every stage in model order.

    Looped, V-shaped, wave and bidirectional placements are all just this table: `((0, 1, 0, 1),)` is two
    ranks with two chunks each in a loop, `((0, 1, 1, 0),)` the V, `((0, 1), (1, 0))` two directions.

    Raises:
        ScheduleError: a table that is empty, ragged between replicas, or leaves a rank without a stage.
    """

    table: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.table or not self.table[0]:
            raise ScheduleError("placement is empty; it needs a rank for at least one stage, e.g. ((0,),)")
        if len({len(row) for row in self.table}) != 1:
            lengths = [len(row) for row in self.table]
            raise ScheduleError(
                f"placement has replicas of {lengths} stages; all replicas hold the same stages"
            )
        used = {rank for row in self.table for rank in row}
        if used != set(range(len(used))):
            raise ScheduleError(
                f"placement uses ranks {sorted(used)}; ranks count from 0 without a gap and each holds a "
                f"stage, here {list(range(len(used)))}"
            )

    @staticmethod
    def looped(num_ranks: int, num_chunks: int = 1) -> Placement:
        """Returns stage s on rank s mod p: `0 1 2 0 1 2` for p=3, v=2."""
        return Placement((tuple(stage % num_ranks for stage in range(num_ranks * num_chunks)),))

    @staticmethod
    def replicas(*rows: Sequence[int]) -> Placement:
        """Returns the placement with these rows, one per replica: `replicas((0, 1), (1, 0))`."""
        return Placement(tuple(tuple(row) for row in rows))

    @cached_property
    def num_ranks(self) -> int:
        """Number of ranks, p."""
        return 1 + max(max(row) for row in self.table)

    @property
    def num_stages(self) -> int:
        """Number of stages, s; the same in every replica."""
        return len(self.table[0])

    @property
    def num_replicas(self) -> int:
        """Number of pipeline directions."""
        return len(self.table)

    @cached_property
    def num_chunks(self) -> int:
        """The largest number of stages that one rank holds in one replica, v."""
        return max(row.count(rank) for row in self.table for rank in row)

    def rank_of(self, stage: int, replica: int = 0) -> int:
        """Returns the rank that holds `stage` of `replica`."""
        return self.table[replica][stage]

    def stages_of(self, rank: int, replica: int = 0) -> tuple[int, ...]:
        """Returns the stages of `replica` that `rank` holds, in model order."""
        return tuple(stage for stage, holder in enumerate(self.table[replica]) if holder == rank)
