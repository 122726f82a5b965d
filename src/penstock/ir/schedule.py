"""Schedule: per rank the order of its compute ops. Order only; no times, no communication."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from penstock.errors import ScheduleError
from penstock.ir.ops import COMPUTE, Op
from penstock.ir.placement import Placement


class WeightRule(StrEnum):
    """Which weights a backward uses."""

    FLUSH = "flush"  # one version: the optimizer steps after the schedule has drained
    STASH = "stash"  # the version that the microbatch's forward used (PipeDream)
    DOUBLE_BUFFERED = "double_buffered"  # two versions (PipeDream-2BW)
    LATEST = "latest"  # whatever is there: no stashing (PipeMare)
    FROZEN = "frozen"  # no backward at all: evaluation


@dataclass(frozen=True)
class Schedule:
    """Who does what in which order: a value that can be compared, hashed, printed, saved and executed.

    Attributes:
        name: how it is called in tables and errors; words parted by single spaces.
        placement: stage -> rank, per replica.
        num_microbatches: m, over all replicas.
        ranks: per rank its compute ops (`F B I W S`) in order.
        weight_rule: which weights a backward uses.

    Raises:
        ScheduleError: sizes that contradict each other, or an op that only lowering may add.
    """

    name: str
    placement: Placement
    num_microbatches: int
    ranks: tuple[tuple[Op, ...], ...]
    weight_rule: WeightRule = WeightRule.FLUSH

    def __post_init__(self) -> None:
        if not self.name or " ".join(self.name.split()) != self.name:
            raise ScheduleError(f"schedule name {self.name!r}; use words parted by single spaces, e.g. gpipe")
        if self.num_microbatches < 1:
            raise ScheduleError(f"num_microbatches={self.num_microbatches}; use at least 1")
        if len(self.ranks) != self.placement.num_ranks:
            raise ScheduleError(
                f"{self.name} has ops for {len(self.ranks)} ranks but places stages on "
                f"{self.placement.num_ranks}; give one row of ops a rank"
            )
        for rank, ops in enumerate(self.ranks):
            foreign = next((op for op in ops if op.kind not in COMPUTE), None)
            if foreign is not None:
                raise ScheduleError(
                    f"rank {rank} of {self.name} holds {foreign}; a schedule holds compute ops only "
                    "(F, B, I, W, S); penstock.lower adds communication"
                )

    @property
    def num_ranks(self) -> int:
        """Number of ranks, p."""
        return self.placement.num_ranks

    @property
    def num_stages(self) -> int:
        """Number of stages, s."""
        return self.placement.num_stages

    def ops(self) -> Iterator[tuple[int, int, Op]]:
        """Yields `(rank, position, op)` for every op, rank by rank."""
        for rank, ops in enumerate(self.ranks):
            for position, op in enumerate(ops):
                yield rank, position, op

    def __str__(self) -> str:
        from penstock.notation.grid import draw_grid

        return draw_grid(self)
