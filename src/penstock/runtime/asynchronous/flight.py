"""Batches that follow one another without a flush: what a rank has in flight between two of them.

    advance  F0 F1 B0 S0 F2 B1 S1 │ F3 B2 S2 F4 B3 S3 F5 B4 S4 │ …        one part of the program a batch
    drain                                                      │ B5 S5    what is in flight then

The programs are proven as a whole; `repeats` says why three of them serve any number of batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from penstock.errors import ScheduleError
from penstock.ir.schedule import Schedule
from penstock.lowering.parts import Parts, lower_in_parts
from penstock.runtime.asynchronous.repeats import STEADY, repeats_of, slots_taken_over, weights_ahead
from penstock.runtime.asynchronous.stepping import StepTable
from penstock.runtime.batch.step_batch import StepBatch
from penstock.runtime.engine import Engine, Part
from penstock.runtime.links import Links
from penstock.runtime.stage_work import StageWork
from penstock.verifier import Proof, Weights, verify

_LONGEST = STEADY + 1
"""Batches of the longest program."""

MakeEngine = Callable[[Proof, StepTable], Engine]


class FlightPlan(NamedTuple):
    """The programs of a schedule that goes on, proven.

    Attributes:
        schedule: of one batch.
        parts: number of batches, from 1 -> the program of so many.
        proofs: likewise.
        weights: of more batches.
    """

    schedule: Schedule
    parts: Mapping[int, Parts]
    proofs: Mapping[int, Proof]
    weights: Weights


def plan_flight(schedule: Schedule, *, reduce_gradients: bool) -> FlightPlan:
    """Returns the programs for any number of batches of `schedule`.

    Raises:
        ScheduleError: the schedule cannot go on without a flush; says why and what can.
    """
    if schedule.placement.num_replicas > 1:
        raise ScheduleError(
            f"{schedule.name} with replicated stages ends each batch with a flush; call step instead of run, or leave "
            "replicas= out"
        )
    counts = range(1, _LONGEST + 1)
    parts = {count: lower_in_parts(schedule, count, reduce_gradients=reduce_gradients) for count in counts}
    proofs = {count: verify(each.program) for count, each in parts.items()}
    longest = parts[_LONGEST]
    for count, each in parts.items():
        for rank, entries in enumerate(each.program.ranks):
            end = each.ends[rank][count - 1]
            if entries[:end] != longest.program.ranks[rank][:end]:
                raise ScheduleError(
                    f"{schedule.name} begins another way where {count} batches follow one another; call step instead"
                )
    return FlightPlan(schedule, parts, proofs, weights_ahead(schedule))


class Flight:
    """This rank's part in batches that follow one another.

    Args:
        plan: the programs.
        rank: this rank.
        stages: its stages, by number.
        links: its messages.
        make_engine: a program and the weights that its ops meet -> its engine.

    Attributes:
        batches: how many have been taken since nothing was in flight.
        engine: runs all but drains.
        previous: the batch that was taken last.
        signature: what decides the shapes of its boundaries.
        last_stage: number of the pipeline's last stage.
    """

    def __init__(
        self,
        plan: FlightPlan,
        rank: int,
        *,
        stages: Mapping[int, StageWork],
        links: Links,
        make_engine: MakeEngine,
    ) -> None:
        self._plan, self._rank = plan, rank
        self._stages, self._links = stages, links
        self._repeats = repeats_of(plan.schedule, rank, plan.weights)
        self._count = plan.schedule.num_microbatches
        self.last_stage = plan.schedule.num_stages - 1
        self._slots = slots_taken_over(plan.parts[_LONGEST], rank)
        self._engines = {
            count: make_engine(plan.proofs[count], self._repeats.tables[count]) for count in range(1, _LONGEST + 1)
        }
        self.engine = self._engines[_LONGEST]
        self.engine.entered = {}
        for engine in self._engines.values():
            engine.take_over(self.engine)
        self.batches = 0
        self.previous = StepBatch(training=True)
        self.signature = 0
        self._given: list[tuple[torch.Tensor, int]] = []

    @property
    def parts(self) -> Parts:
        """The program of `engine`."""
        return self._plan.parts[_LONGEST]

    @property
    def batch_written(self) -> bool:
        """Whether somebody has written into the inputs of the last batch since it was taken."""
        return any(_writes(tensor) != before for tensor, before in self._given)

    @property
    def table(self) -> StepTable:
        """Which weights the ops of `engine` meet."""
        return self._repeats.tables[_LONGEST]

    def advance(self, batch: StepBatch, signature: int) -> StepBatch:
        """Runs what a further batch is to this rank; returns the batch with its losses.

        Args:
            batch: its microbatches, numbered from 0.
            signature: what decides the shapes of its boundaries, the same number on every rank.
        """
        part = min(self.batches, STEADY)
        if self.batches > STEADY:
            self._renumber()
        self._given = [(each, _writes(each)) for each in tree_leaves(batch.inputs) if isinstance(each, torch.Tensor)]
        batch = self._numbered(batch, part * self._count)
        span = self._plan.parts[_LONGEST].span(self._rank, part)
        mixed = _digest(signature, self.signature, part)
        self.engine.run(batch, signature=mixed, part=Part(*span, opens=part == 0, closes=False))
        batch.inputs, batch.targets = [], []  # what is in flight keeps its own
        self.previous, self.signature = batch, signature
        self.batches += 1
        return batch

    def drain(self) -> None:
        """Runs what is left of all batches; nothing is in flight afterwards."""
        count = min(self.batches, _LONGEST)
        batch = self._numbered(StepBatch(training=True, step=self.previous.step), count * self._count)
        span = self._plan.parts[count].span(self._rank, count)
        mixed = _digest(self.signature, -1, count)
        self._engines[count].run(batch, signature=mixed, part=Part(*span, opens=False, closes=True))
        self.batches, self.signature = 0, 0
        self.previous = StepBatch(training=True)

    def _numbered(self, batch: StepBatch, first: int) -> StepBatch:
        """Returns `batch` with its microbatches numbered from `first`, behind those of the batch before."""
        before = self.previous
        moved = before.first + self._count - first
        batch.first = first
        batch.inputs = [None] * first + batch.inputs if batch.inputs else []
        batch.targets = [None] * first + batch.targets if batch.targets else []
        batch.starts = before.starts[len(before.starts) - first :] + batch.starts if first else batch.starts
        batch.losses = {i - moved: loss for i, loss in before.losses.items() if i >= before.first} if first else {}
        return batch

    def _renumber(self) -> None:
        self.engine.renumber(-self._count, {stage: -made for stage, made in self._repeats.versions.items()})
        self._links.renumber(-self._count, self._slots)
        for work in self._stages.values():
            work.renumber(-self._count)


def _writes(tensor: torch.Tensor) -> int:
    """Returns how often autograd has seen a write into `tensor`."""
    return 0 if tensor.is_inference() else tensor._version


def _digest(*numbers: int) -> int:
    text = " ".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
