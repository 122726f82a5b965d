"""The sum of a stage's gradients over all that hold it: the pipeline's other owners, then data-parallel replicas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from penstock.runtime.shared_weights.owners import Owners
from penstock.runtime.shared_weights.replicas import Replicas
from penstock.runtime.stage_work import StageWork


class Reduction:
    """What REDUCE_GRAD does on one rank.

    A stage of this rank alone is summed over the replicas at once. What other owners contribute is waited for where it
    is needed: before an optimizer step of the program, else at its end.

    The gradients of earlier steps that are still in `.grad` are set aside meanwhile, so that only the step's own are
    summed, and added back.

    Args:
        stages: this rank's stages, by number.
        owners: the copies of its stages in this pipeline.
        replicas: data-parallel replicas of this rank; None if there are none.
    """

    def __init__(self, stages: Mapping[int, StageWork], owners: Owners, replicas: Replicas | None) -> None:
        self._stages, self._owners, self._replicas = stages, owners, replicas
        self._earlier: dict[nn.Parameter, torch.Tensor] = {}
        self._posted: list[int] = []

    def begin(self) -> None:
        """Starts a training step: puts the gradients that are there away until their stage has been summed."""
        self._owners.begin()
        self._posted.clear()
        self._earlier.clear()
        for work in self._stages.values():
            for parameter in work.module.parameters():
                if parameter.grad is not None:
                    self._earlier[parameter] = parameter.grad
                    parameter.grad = None

    def post(self, stage: int) -> None:
        """Hands this rank's gradients of `stage` on: they are complete."""
        self._posted.append(stage)
        if stage in self._owners.shared:
            self._owners.post(stage)
        else:
            self.complete(stage)

    def complete(self, stage: int) -> None:
        """Waits until `.grad` of `stage` is the sum over all that hold it, if it was handed on and is not yet."""
        if stage not in self._posted:
            return
        self._posted.remove(stage)
        if stage in self._owners.shared:
            self._owners.complete(stage)
        if self._replicas is not None:
            self._replicas.sum_grads(self._owners.trained(stage))
        self._add_earlier(self._stages[stage].module.parameters())

    def abandon(self) -> None:
        """Puts the gradients of earlier steps back, after a step that did not finish."""
        for parameter, earlier in self._earlier.items():
            parameter.grad = earlier
        self._earlier.clear()

    def _add_earlier(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            earlier = self._earlier.pop(parameter, None)
            if earlier is not None:
                parameter.grad = earlier if parameter.grad is None else parameter.grad.add_(earlier)

    def finish(self) -> None:
        """Completes what was handed on, in that order, and waits until everything sent has left."""
        for stage in list(self._posted):
            self.complete(stage)
        self._owners.finish()
