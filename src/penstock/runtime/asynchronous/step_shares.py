"""What each microbatch weighs in the step that applies it.

The gradient of a step is that of Σ loss_i · w_i / Σ w_i over the microbatches that it applies: all of the call where
the weights change after it, those of one optimizer step where the schedule steps inside. Each backward starts from
w_i / Σ w, so that nothing is rescaled later. Only where a stage steps with other microbatches than the next
(replicated stages) there is no such start that is right for both: there a backward starts from w_i / mean(w), and a
step divides what it applies by the sum of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS, optimizer_steps, rounds

Groups = tuple[tuple[int, ...], ...]
"""The microbatches of each step of a stage."""


def step_groups(schedule: Schedule) -> list[Groups]:
    """Returns for every stage the microbatches that each of its steps applies, over all ranks that hold it."""
    if schedule.weight_rule in SYNCHRONOUS:
        return [(tuple(range(schedule.num_microbatches)),)] * schedule.num_stages
    steps = optimizer_steps(schedule)
    return [
        tuple(
            tuple(sorted(chain.from_iterable(step.microbatches for step in together)))
            for together in rounds(schedule, stage, steps)
        )
        for stage in range(schedule.num_stages)
    ]


class StepShares:
    """How a schedule weighs microbatches.

    Attributes:
        num_microbatches: m.
        divides: whether stages step with different microbatches, so that each step divides by what it applies.
    """

    def __init__(self, schedule: Schedule) -> None:
        groups = step_groups(schedule)
        self.num_microbatches = schedule.num_microbatches
        self.divides = len(set(groups)) > 1
        everything = (tuple(range(schedule.num_microbatches)),)
        self._groups: Groups = everything if self.divides else groups[-1]

    def starts(self, weights: Sequence[float], summed: Callable[[Sequence[float]], list[float]]) -> list[float]:
        """Returns what each microbatch's backward starts from.

        Args:
            weights: w_i of every microbatch.
            summed: numbers -> their sums over data-parallel replicas.
        """
        totals = summed([math.fsum(weights[i] for i in group) / self._parts(group) for group in self._groups])
        starts = [0.0] * len(weights)
        for group, total in zip(self._groups, totals, strict=True):
            for i in group:
                starts[i] = weights[i] / total if total else 0.0
        return starts

    def _parts(self, group: Sequence[int]) -> int:
        return len(group) if self.divides else 1
