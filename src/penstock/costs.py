"""What layers and stages cost: seconds of compute, bytes of memory and of what crosses a boundary.

Times are kept as given (int, float or Fraction), so that a simulation in whole numbers is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from operator import add, sub
from statistics import median

from penstock.errors import UserError
from penstock.ir.ops import OpKind
from penstock.timeline import Timeline

PerStage = float | Sequence[float]
"""One number for all stages, or one a stage."""


@dataclass(frozen=True)
class StageCosts:
    """The cost of one microbatch on each stage; every field is one number or one a stage.

    Attributes:
        forward: seconds of F.
        input_grad: seconds of I.
        weight_grad: seconds of W.
        backward: seconds of B; None means input_grad + weight_grad.
        overlapped: seconds of F and B of the stage as an overlapped pair; None means forward + backward. Between two
            stages a pair saves the mean of what it saves on each, and it never takes less than its longer op.
        optimizer_step: seconds of S.
        reduce_grad: seconds of the stage's gradient reduction.
        parameter_bytes: the stage's parameters, one version of them.
        gradient_bytes: the stage's weight gradients.
        optimizer_bytes: the optimizer's state for the stage.
        activation_bytes: what F keeps for B or I, beside its input, which stays in its receive buffer.
        deferred_bytes: what I keeps for W.
        unshard: seconds of gathering the stage's parameters from the replicas that share them.
        sharded_bytes: what a rank holds of the stage's parameters while they are not gathered.
        boundary_bytes: the stage's output, which is also the size of the gradient that comes back.

    Raises:
        UserError: a cost that is negative, infinite or not a number, or lists of different lengths.
    """

    forward: PerStage = 1
    input_grad: PerStage = 1
    weight_grad: PerStage = 1
    backward: PerStage | None = None
    optimizer_step: PerStage = 0
    reduce_grad: PerStage = 0
    parameter_bytes: PerStage = 0
    activation_bytes: PerStage = 0
    deferred_bytes: PerStage = 0
    boundary_bytes: PerStage = 0
    gradient_bytes: PerStage = 0
    optimizer_bytes: PerStage = 0
    overlapped: PerStage | None = None
    unshard: PerStage = 0
    sharded_bytes: PerStage = 0

    def __post_init__(self) -> None:
        lengths = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in _SUMS:
                continue
            if isinstance(value, Sequence) and not isinstance(value, str | bytes):
                object.__setattr__(self, field.name, tuple(value))
                lengths[field.name] = len(value)
                for number in value:
                    _check(field.name, number)
            else:
                _check(field.name, value)
        if len(set(lengths.values())) > 1:
            raise UserError(f"costs are given for different numbers of stages: {lengths}; give one number a stage")

    def per_stage(self, field: str, num_stages: int) -> tuple[float, ...]:
        """Returns the named cost of each of `num_stages` stages.

        Raises:
            UserError: the cost is a list of another length.
        """
        value = getattr(self, field)
        if value is None:
            first, second = _SUMS[field]
            return tuple(map(add, self.per_stage(first, num_stages), self.per_stage(second, num_stages)))
        if not isinstance(value, tuple):
            return (value,) * num_stages
        if len(value) != num_stages:
            raise UserError(f"{field} has {len(value)} values for {num_stages} stages; give one number a stage")
        return value

    def seconds(self, num_stages: int) -> dict[OpKind, tuple[float, ...]]:
        """Returns for each kind of op that takes time its seconds on every stage."""
        return {kind: self.per_stage(field, num_stages) for kind, field in _SECONDS.items()}

    def overlap_saves(self, num_stages: int) -> tuple[float, ...]:
        """Returns for each stage the seconds that F and B save by running as an overlapped pair."""
        apart = map(add, self.per_stage("forward", num_stages), self.per_stage("backward", num_stages))
        return tuple(map(sub, apart, self.per_stage("overlapped", num_stages)))


_SUMS = {"backward": ("input_grad", "weight_grad"), "overlapped": ("forward", "backward")}
"""Costs that may be None -> the two costs whose sum they are then."""

_SECONDS = {
    OpKind.F: "forward",
    OpKind.B: "backward",
    OpKind.I: "input_grad",
    OpKind.W: "weight_grad",
    OpKind.S: "optimizer_step",
    OpKind.REDUCE_GRAD: "reduce_grad",
    OpKind.UNSHARD: "unshard",
}


def _check(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(f"{field}={value!r} is not a number; give seconds or bytes, e.g. {field}=1.0")
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{field}={value}; a cost is finite and not negative, e.g. {field}=1.0")


def measured_costs(
    timelines: Sequence[Timeline], *, average: Callable[[Sequence[float]], float] = median
) -> StageCosts:
    """Returns the seconds of each kind of op on each stage over these measured timelines.

    Kinds that did not run cost nothing; a full backward counts as `backward`.

    Args:
        timelines: measured ones.
        average: seconds of all ops of one kind on one stage -> what one of them costs. The mean also counts what is
            rare.

    Raises:
        UserError: no timeline, or one without a single op.
    """
    seconds: dict[tuple[OpKind, int], list[float]] = {}
    for timeline in timelines:
        for span in timeline.spans:
            seconds.setdefault((span.op.kind, span.op.stage), []).append(span.end - span.start)
    if not seconds:
        raise UserError("no measured op to take costs from; run a step first")
    num_stages = 1 + max(stage for _, stage in seconds)
    fields = {
        field: tuple(average(seconds.get((kind, stage), [0.0])) for stage in range(num_stages))
        for kind, field in _SECONDS.items()
    }
    return StageCosts(**fields)
