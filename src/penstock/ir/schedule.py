"""Schedule: per rank the order of its compute ops. Order only; no times, no communication."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import itemgetter

import numpy as np

from penstock.errors import ScheduleError, check_type
from penstock.ir.columns import Columns, Ints, columns_of
from penstock.ir.ops import ORDERED, Op, OpKind
from penstock.ir.placement import Placement

_PAIRS = {frozenset({OpKind.F, OpKind.B}), frozenset({OpKind.F, OpKind.I})}
"""The kinds of two ops that may overlap."""


class WeightRule(StrEnum):
    """Which weights a forward and its backward use; `penstock.verifier.weights` states each rule exactly."""

    FLUSH = "flush"  # one version: the optimizer steps after the schedule has drained
    STASH = "stash"  # the version that the microbatch's forward used (PipeDream)
    VERTICAL_SYNC = "vertical_sync"  # on every stage the version that the input stage used (PipeDream, optional)
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
        ranks: per rank its compute ops (`F B I W S`) in order, with `OFFLOAD` and `RELOAD` between them.
        weight_rule: which weights a backward uses.
        overlapped: per rank the positions i, sorted, of a forward and a backward that run as one pair: op i and op
            i + 1. Empty: none anywhere.
        keepers: per rank the rank that keeps the activations it offloads; its own number stands for its host's memory.
            Empty: nothing is offloaded.

    Raises:
        ScheduleError: sizes that contradict each other, an op that only lowering may add, or a pair that is not one
            forward and one backward.
    """

    name: str
    placement: Placement
    num_microbatches: int
    ranks: tuple[tuple[Op, ...], ...]
    weight_rule: WeightRule = WeightRule.FLUSH
    overlapped: tuple[tuple[int, ...], ...] = ()
    keepers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_type("name", self.name, str, example='e.g. "gpipe"')
        check_type("placement", self.placement, Placement, example="e.g. penstock.Placement.looped(4)")
        check_type("num_microbatches", self.num_microbatches, int, example="e.g. 8")
        check_type("weight_rule", self.weight_rule, WeightRule, example="e.g. penstock.WeightRule.FLUSH")
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
            for op in ops[:1]:
                check_type(f"an op of rank {rank}", op, Op, example="e.g. penstock.Op(penstock.OpKind.F, 0, 0)")
                check_type("the kind of an op", op.kind, OpKind, example="e.g. penstock.OpKind.F")
            if not ORDERED.issuperset(map(itemgetter(0), ops)):
                foreign = next(op for op in ops if op.kind not in ORDERED)
                raise ScheduleError(
                    f"rank {rank} of {self.name} holds {foreign}; a schedule holds compute ops "
                    "(F, B, I, W, S), OFFLOAD and RELOAD only; penstock.lower adds communication"
                )
        if not any(self.overlapped):
            object.__setattr__(self, "overlapped", ())  # one spelling, so that equal schedules compare equal
        self._check_overlapped()
        self._check_keepers()

    def _check_overlapped(self) -> None:
        if self.overlapped and len(self.overlapped) != self.num_ranks:
            raise ScheduleError(
                f"{self.name} has pairs for {len(self.overlapped)} ranks of {self.num_ranks}; give one list of "
                "positions a rank, empty where the rank has none"
            )
        for rank, (ops, pairs) in enumerate(zip(self.ranks, self.overlapped, strict=False)):
            free = 0
            for at in pairs:
                pair = ops[at : at + 2] if at >= free else ()
                if frozenset(op.kind for op in pair) not in _PAIRS:
                    raise ScheduleError(
                        f"rank {rank} of {self.name}: no pair at position {at}; positions ascend, each pair is one "
                        "forward and one backward (B or I) side by side, and no op is in two"
                    )
                free = at + 2

    def _check_keepers(self) -> None:
        if self.keepers and len(self.keepers) != self.num_ranks:
            raise ScheduleError(
                f"{self.name} has keepers for {len(self.keepers)} ranks of {self.num_ranks}; give one rank a rank"
            )
        foreign = [keeper for keeper in self.keepers if not 0 <= keeper < self.num_ranks]
        if foreign:
            raise ScheduleError(
                f"{self.name} has keeper {foreign[0]} among {self.num_ranks} ranks; use a rank from 0 to "
                f"{self.num_ranks - 1}"
            )

    @property
    def num_ranks(self) -> int:
        """Number of ranks, p."""
        return self.placement.num_ranks

    @property
    def num_stages(self) -> int:
        """Number of stages, s."""
        return self.placement.num_stages

    @cached_property
    def columns(self) -> Columns:
        """All ops as columns."""
        return columns_of(self.ranks)

    @cached_property
    def starts_pair(self) -> Ints:
        """For every op 1 if it starts an overlapped pair, else 0."""
        starts = np.zeros(len(self.columns.kind), np.int64)
        for first, positions in zip(self.columns.first, self.overlapped, strict=False):
            starts[first + np.array(positions, np.int64)] = 1
        return starts

    @cached_property
    def ends_pair(self) -> Ints:
        """For every op 1 if it ends an overlapped pair, else 0."""
        return np.roll(self.starts_pair, 1)

    def ops(self) -> Iterator[tuple[int, int, Op]]:
        """Yields `(rank, position, op)` for every op, rank by rank."""
        for rank, ops in enumerate(self.ranks):
            for position, op in enumerate(ops):
                yield rank, position, op

    def __str__(self) -> str:
        from penstock.notation.grid import draw_grid

        return draw_grid(self)
