"""Which weight gradients each optimizer step applies, read from the order of the ops.

An `S` applies what its rank has gathered for its stage since the `S` before: the gradients of all microbatches whose
B or W ran in between, in whichever row of the placement. Its microbatch is the last of them.

Where several ranks hold a stage, their k-th steps belong together: the gradients are summed over these ranks first,
so that all copies become the same version. An `S` therefore waits for what every other owner contributes:

    rank 0: B0 REDUCE_GRAD0 ──┬── S0
    rank 1: B1 REDUCE_GRAD1 ──┴── S1
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from penstock.ir.dependencies import PRODUCES, Value, ValueKind
from penstock.ir.ops import Op, OpKind
from penstock.ir.schedule import Schedule, WeightRule

ADDS_GRADIENT = frozenset({OpKind.B, OpKind.W})
"""The kinds that add to a stage's weight gradients."""

SYNCHRONOUS = frozenset({WeightRule.FLUSH, WeightRule.FROZEN})
"""The weight rules under which a schedule holds no optimizer step."""


class Gradient(NamedTuple):
    """The op that adds a microbatch's weight gradient, and its position on its rank."""

    position: int
    op: Op


class Step(NamedTuple):
    """An optimizer step, where it is, and what it applies, in the order in which that was added."""

    rank: int
    position: int
    op: Op
    gradients: tuple[Gradient, ...]

    @property
    def microbatches(self) -> tuple[int, ...]:
        """The microbatches whose gradients are applied."""
        return tuple(gradient.op.microbatch for gradient in self.gradients)


class Steps(NamedTuple):
    """All optimizer steps of a schedule.

    Attributes:
        taken: (rank, stage) -> its steps in order.
        pending: (rank, stage) -> gradients that no later step applies.
    """

    taken: dict[tuple[int, int], list[Step]]
    pending: dict[tuple[int, int], list[Gradient]]


def optimizer_steps(schedule: Schedule) -> Steps:
    """Returns the optimizer steps of `schedule`, right or wrong; a step may apply nothing."""
    steps = Steps(defaultdict(list), defaultdict(list))
    for rank, position, op in schedule.ops():
        key = (rank, op.stage)
        if op.kind in ADDS_GRADIENT:
            steps.pending[key].append(Gradient(position, op))
        elif op.kind == OpKind.S:
            steps.taken[key].append(Step(rank, position, op, tuple(steps.pending.pop(key, ()))))
    return Steps(dict(steps.taken), {key: left for key, left in steps.pending.items() if left})


def rounds(schedule: Schedule, stage: int, steps: Steps) -> list[tuple[Step, ...]]:
    """Returns the steps of `stage` that make one version together, version by version, one step an owner."""
    owners = schedule.placement.owners(stage)
    return list(zip(*(steps.taken.get((owner, stage), []) for owner in owners), strict=False))


def reduction(step: Op) -> Op:
    """Returns the reduction whose sum the optimizer step `step` applies."""
    return step._replace(kind=OpKind.REDUCE_GRAD)


def contributed(reduced: Op) -> Value:
    """Returns what a rank has given to the other owners of a stage once its reduction `reduced` has run."""
    return Value(ValueKind.WEIGHT_GRAD, *reduced[1:])


def useful_products(schedule: Schedule) -> dict[OpKind, tuple[ValueKind, ...]]:
    """Returns what each kind of op makes that another op of `schedule` may take: no weight gradients without an S."""
    unused = {ValueKind.WEIGHT_GRAD} if schedule.weight_rule in SYNCHRONOUS else set()
    return {kind: tuple(value for value in PRODUCES.get(kind, ()) if value not in unused) for kind in OpKind}


def awaited_gradients(schedule: Schedule) -> dict[Op, tuple[Value, ...]]:
    """Returns, for each S of a stage that several ranks hold, the last gradients that the other owners contribute."""
    if schedule.weight_rule in SYNCHRONOUS or schedule.placement.num_replicas == 1:
        return {}
    steps = optimizer_steps(schedule)
    return {
        step.op: tuple(contributed(reduction(other.op)) for other in together if other is not step)
        for stage in range(schedule.num_stages)
        for together in rounds(schedule, stage, steps)
        if len(together) > 1
        for step in together
    }
