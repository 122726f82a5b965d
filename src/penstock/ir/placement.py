"""Placement: which rank holds which stage, for every pipeline direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from penstock.errors import ScheduleError, check_type


@dataclass(frozen=True)
class Placement:
    """For each replica, the rank of every stage in model order.

    Looped, V-shaped, wave and bidirectional placements are all just this table: `((0, 1, 0, 1),)` is two
    ranks with two chunks each in a loop, `((0, 1, 1, 0),)` the V, `((0, 1), (1, 0))` two directions.

    So are replicated stages. A rank that stands for a stage in several rows holds that stage once and serves all
    of these rows: `((0, 2), (1, 2))` is a stage 0 on ranks 0 and 1 before a stage 1 on rank 2. Ranks that stand for
    a stage in different rows hold copies of it, whose gradients are summed (`REDUCE_GRAD`) before they step.

    Raises:
        ScheduleError: a table that is empty, ragged between replicas, or leaves a rank without a stage.
    """

    table: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not all(isinstance(row, Sequence) for row in self.table):
            raise ScheduleError(f"placement has rows {self.table!r}; a row is a tuple of ranks, e.g. ((0, 1),)")
        if not self.table or not self.table[0]:
            raise ScheduleError("placement is empty; it needs a rank for at least one stage, e.g. ((0,),)")
        if len({len(row) for row in self.table}) != 1:
            lengths = [len(row) for row in self.table]
            raise ScheduleError(f"placement has replicas of {lengths} stages; all replicas hold the same stages")
        used = {rank for row in self.table for rank in row}
        if used != set(range(len(used))):
            raise ScheduleError(
                f"placement uses ranks {sorted(used)}; ranks count from 0 without a gap and each holds a "
                f"stage, here {list(range(len(used)))}"
            )

    @staticmethod
    def looped(num_ranks: int, num_chunks: int = 1) -> Placement:
        """Returns stage s on rank s mod p: `0 1 2 0 1 2` for p=3, v=2."""
        check_type("num_ranks", num_ranks, int, example="e.g. 4")
        check_type("num_chunks", num_chunks, int, example="e.g. 2")
        return Placement((tuple(stage % num_ranks for stage in range(num_ranks * num_chunks)),))

    @staticmethod
    def v_shaped(num_ranks: int) -> Placement:
        """Returns stages i and 2p-1-i on rank i: `0 1 2 2 1 0` for p=3."""
        return Placement.wave(num_ranks)

    @staticmethod
    def wave(num_ranks: int, num_waves: int = 1) -> Placement:
        """Returns the stages in zig-zags down and up the ranks: `0 1 1 0 0 1 1 0` for p=2 and two waves."""
        check_type("num_ranks", num_ranks, int, example="e.g. 4")
        check_type("num_waves", num_waves, int, example="e.g. 1")
        return Placement(((*range(num_ranks), *reversed(range(num_ranks))) * num_waves,))

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
        """Number of rows: pipeline directions, or one for each way through replicated stages."""
        return len(self.table)

    @cached_property
    def num_chunks(self) -> int:
        """The largest number of stages that one rank holds in one replica, v."""
        return max(row.count(rank) for row in self.table for rank in row)

    def rank_of(self, stage: int, replica: int = 0) -> int:
        """Returns the rank that holds `stage` of `replica`."""
        return self.table[replica][stage]

    def owners(self, stage: int) -> tuple[int, ...]:
        """Returns the ranks that hold a copy of `stage`, in the order of their first rows."""
        return tuple(dict.fromkeys(row[stage] for row in self.table))

    def stages_of(self, rank: int, replica: int = 0) -> tuple[int, ...]:
        """Returns the stages of `replica` that `rank` holds, in model order."""
        return tuple(stage for stage, holder in enumerate(self.table[replica]) if holder == rank)

    def held(self, rank: int) -> tuple[int, ...]:
        """Returns the stages that `rank` holds, each once, in model order."""
        return tuple(stage for stage, holders in enumerate(zip(*self.table, strict=True)) if rank in holders)
