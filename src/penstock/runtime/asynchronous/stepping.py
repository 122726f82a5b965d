"""Optimizer steps inside the program: which weights every op computes with, and what an S does.

All of it is read from the program when it is bound: `penstock.verifier.weights` says which version each microbatch
uses, which steps find an old version still needed, and after which backward it is not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from penstock.errors import ModelError, ScheduleError
from penstock.ir.ops import Op, OpKind
from penstock.ir.schedule import Schedule, WeightRule
from penstock.ir.steps import SYNCHRONOUS, optimizer_steps, rounds
from penstock.runtime.asynchronous.discrepancy import Discrepancy
from penstock.runtime.asynchronous.weight_versions import WeightVersions
from penstock.runtime.stage_work import StageWork
from penstock.verifier.weights import Key, Weights, WeightUse, weights_of

OptimizerFunction = Callable[[Sequence[nn.Parameter]], Optimizer]
"""The trained parameters of one stage -> the optimizer that steps them."""

SchedulerFunction = Callable[[Optimizer, int], LRScheduler]
"""An optimizer and the number of its stage -> what sets its learning rate; it steps after each optimizer step."""


class InsideOptimizer(NamedTuple):
    """What the user gives a schedule that steps inside.

    Attributes:
        make: a stage's trained parameters -> its optimizer.
        make_scheduler: its learning rate; None leaves that to the optimizer.
        discrepancy_decay: D of PipeMare's discrepancy correction; None leaves it out.
    """

    make: OptimizerFunction | None = None
    make_scheduler: SchedulerFunction | None = None
    discrepancy_decay: float | None = None


_BACKWARD_USE = frozenset({OpKind.B, OpKind.I, OpKind.W})
_USES = _BACKWARD_USE | {OpKind.F}


class SteppedStage:
    """One stage of this rank, its weight versions and its optimizer.

    Attributes:
        versions: the memory of its weights.
        optimizer: None where the stage has no trained parameter.
        scheduler: None where none was given.
        discrepancy: None where backwards take the weights that are there.
    """

    def __init__(
        self,
        stage: int,
        work: StageWork,
        *,
        inside: InsideOptimizer,
        correction: tuple[float, int] | None,
    ) -> None:
        self.versions = WeightVersions(work)
        masters = self.versions.masters
        self.optimizer = inside.make(masters) if inside.make and masters else None
        self.scheduler: LRScheduler | None = None
        if inside.make_scheduler and self.optimizer:
            self.scheduler = inside.make_scheduler(self.optimizer, stage)
        self.discrepancy: Discrepancy | None = None
        if correction and masters:
            decay, staleness = correction
            self.discrepancy = Discrepancy(masters, decay=decay, staleness=staleness)

    def step(self, *, keep: bool, divisor: float) -> None:
        """Makes the next version from the module's gradients, divided by `divisor`."""
        self.versions.take_grads()
        self.versions.advance(keep=keep)
        if self.optimizer is None:
            return
        for master in self.versions.masters if divisor != 1 else ():
            if master.grad is not None:
                master.grad /= divisor
        if self.discrepancy:
            self.discrepancy.before_step()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.discrepancy:
            self.discrepancy.after_step()
        if self.scheduler:
            self.scheduler.step()


class StepTable(NamedTuple):
    """What a program says about one rank's weights.

    Attributes:
        uses: (stage, microbatch) -> the versions it meets there.
        changes: S -> +1 where the version before it is still needed, backward -> -1 where a version goes after it.
        applied: S -> the microbatches that it applies, those of the stage's other owners included.
        latest: whether every op takes the weights that are there.
    """

    uses: Mapping[Key, WeightUse]
    changes: Mapping[Op, int]
    applied: Mapping[Op, tuple[int, ...]]
    latest: bool


def step_table(schedule: Schedule, rank: int, *, weights: Weights | None = None) -> StepTable:
    """Returns the table of `rank` in `schedule`; `weights` are the schedule's, where they are known."""
    found = weights or weights_of(schedule)
    latest = schedule.weight_rule is WeightRule.LATEST
    return StepTable(found.uses, found.changes[rank], _applied(schedule, rank), latest)


class Stepping:
    """The weight versions and optimizer steps of this rank's program.

    Args:
        schedule: one with optimizer steps.
        stages: this rank's stages, by number.
        rank: this rank.
        inside: makes each stage's optimizer.

    Attributes:
        stages: this rank's stages with their optimizers, by number.
    """

    def __init__(
        self,
        schedule: Schedule,
        stages: Mapping[int, StageWork],
        *,
        rank: int,
        inside: InsideOptimizer,
    ) -> None:
        weights = weights_of(schedule)
        self._table = step_table(schedule, rank, weights=weights)
        self.stages = {
            stage: SteppedStage(
                stage,
                work,
                inside=inside,
                correction=_correction(inside.discrepancy_decay, weights, stage),
            )
            for stage, work in stages.items()
        }

    def over(self, table: StepTable) -> Stepping:
        """Returns the same stages and optimizers under another program, that of `table`."""
        other = copy.copy(self)
        other._table = table
        return other

    def begin(self) -> None:
        """Starts a step of the pipeline."""
        for stage in self.stages.values():
            stage.versions.begin()

    def rest(self) -> None:
        """Leaves the modules with the newest weights: between two parts of a program, or after one that failed."""
        for stage in self.stages.values():
            stage.versions.show(stage.versions.newest)

    def renumber(self, by: Mapping[int, int]) -> None:
        """Adds to the numbers of all versions of each stage what `by` has for it."""
        for number, stage in self.stages.items():
            stage.versions.renumber(by[number])

    def bound(self, op: Op, call: Callable[[], None]) -> Callable[[], None]:
        """Returns `call`, the op bound to its handler, with the weights around it that the op computes with."""
        if op.kind not in _USES or op.stage not in self.stages:
            return call
        stage, use = self.stages[op.stage], self._table.uses[op.stage, op.microbatch]
        if self._table.latest:
            moved = use.backward - use.forward
            if stage.discrepancy is None or op.kind not in _BACKWARD_USE or not moved:
                return call
            return partial(_corrected, stage.discrepancy, moved, call)
        version = use.backward if op.kind in _BACKWARD_USE else use.forward
        return partial(_with_version, stage.versions, version, call, forget=self._table.changes.get(op) == -1)

    def step(self, op: Op, divisors: Sequence[float]) -> None:
        """Does what the optimizer step `op` of the program says; the stage's gradients are summed.

        Args:
            op: an S.
            divisors: microbatch -> its part of what the gradients are divided by; empty for nothing.
        """
        divisor = sum(divisors[i] for i in self._table.applied[op]) if divisors else 1.0
        self.stages[op.stage].step(keep=self._table.changes.get(op) == +1, divisor=divisor or 1.0)


def check_optimizer(schedule: Schedule, inside: InsideOptimizer) -> None:
    """Refuses an optimizer where the loop steps, and none where the schedule does.

    Raises:
        ScheduleError: no optimizer for a schedule with optimizer steps.
        ModelError: an optimizer that would never step, or a correction out of range.
    """
    name, (optimizer, _, correction) = schedule.name, inside
    if schedule.weight_rule in SYNCHRONOUS:
        arguments = ("optimizer", "lr_scheduler", "discrepancy_decay")
        extra = next((name for name, value in zip(arguments, inside, strict=True) if value is not None), None)
        if extra:
            raise ModelError(
                f"{extra}= is for schedules that step inside, such as pipedream; {name} leaves the step to the loop: "
                "call optimizer.step() after pipe.step()"
            )
        return
    if optimizer is None:
        raise ScheduleError(
            f"{name} steps the weights inside the schedule; pass optimizer= to Pipeline, a function from a stage's "
            "parameters to its optimizer, e.g. optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
        )
    if not callable(optimizer):
        raise ModelError(
            f"optimizer is a {type(optimizer).__name__}; give a function from a stage's parameters to its optimizer, "
            "e.g. optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
        )
    if correction is not None and not 0 < correction < 1:
        raise ModelError(f"discrepancy_decay={correction}; use a number between 0 and 1, e.g. 0.135")
    if correction is not None and schedule.weight_rule is not WeightRule.LATEST:
        raise ModelError(
            f"discrepancy_decay= corrects backwards that meet newer weights than their forward; under {name} (weight "
            f"rule {schedule.weight_rule.value}) none does, leave it out"
        )


def _correction(decay: float | None, weights: Weights, stage: int) -> tuple[float, int] | None:
    """Returns D and the most steps between a forward and its backward; None where there is nothing to correct."""
    if decay is None:
        return None
    moved = max(use.backward - use.forward for (at, _), use in weights.uses.items() if at == stage)
    return (decay, moved) if moved else None


def _applied(schedule: Schedule, rank: int) -> dict[Op, tuple[int, ...]]:
    """Returns for every S of `rank` the microbatches that it applies, those of the stage's other owners included."""
    steps = optimizer_steps(schedule)
    return {
        step.op: tuple(i for other in together for i in other.microbatches)
        for stage in schedule.placement.held(rank)
        for together in rounds(schedule, stage, steps)
        for step in together
        if step.rank == rank
    }


def _with_version(versions: WeightVersions, version: int, call: Callable[[], None], *, forget: bool) -> None:
    versions.show(version)
    call()
    if forget:
        versions.forget(version)


def _corrected(discrepancy: Discrepancy, steps: int, call: Callable[[], None]) -> None:
    discrepancy.before_backward(steps)
    try:
        call()
    finally:
        discrepancy.after_backward()
