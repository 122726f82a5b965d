"""What one call of the pipeline works on: microbatches in, losses or outputs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class StepBatch:
    """The data of one call on one rank; a rank without the first or last stage leaves its parts empty.

    Where several ranks hold the first or last stage (replicas of the placement), each has the whole batch and uses the
    microbatches of its own ops.

    Attributes:
        training: whether backwards follow.
        first: number in the program of the first microbatch that is new in this call; others are in flight already.
        step: number of this training step, the key of its random numbers.
        inputs: one a microbatch, on the rank of the first stage.
        targets: one a microbatch, on the rank of the last stage; empty where outputs are wanted instead.
        scales: w_i / Σ w over all microbatches and data-parallel replicas, on the rank of the last stage.
        starts: what each microbatch's backward starts from, likewise: its share of the step that applies it.
        divisors: microbatch -> its part of what an optimizer step divides by, on every rank; empty where none does.
        losses: microbatch -> its loss, filled on the rank of the last stage.
        outputs: microbatch -> the last stage's output, filled there where there are no targets.
    """

    training: bool
    step: int = 0
    first: int = 0
    inputs: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    divisors: list[float] = field(default_factory=list)
    losses: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)

    def note_loss(self, microbatch: int, loss: torch.Tensor) -> None:
        """Keeps a loss; a copy where it stands in the memory of more, such as the output's terms of mse_loss."""
        self.losses[microbatch] = loss.clone() if loss.untyped_storage().nbytes() > loss.nbytes else loss

    def mean_loss(self) -> torch.Tensor:
        """Returns Σ loss_i · w_i / Σ w in fp64, on the device of the losses, without waiting for it.

        A microbatch of weight 0 counts for nothing, also where its loss is the mean of nothing, which is no number.
        """
        losses = torch.cat([self._loss(i).reshape(1) for i in range(len(self.scales))]).double()
        return (losses * torch.tensor(self.scales, dtype=torch.float64).to(losses.device, non_blocking=True)).sum()

    def own_terms(self, num_microbatches: int) -> torch.Tensor:
        """Returns loss_i · w_i / Σ w in fp64 on the CPU for every microbatch; 0 where it ran on another rank."""
        terms = torch.zeros(num_microbatches, dtype=torch.float64)
        for i in self.losses:
            terms[i] = self._term(i)
        return terms

    def _loss(self, i: int) -> torch.Tensor:
        """Returns the loss of the i-th microbatch of this call."""
        loss = self.losses[self.first + i]
        return loss if self.scales[i] else torch.zeros_like(loss)

    def _term(self, i: int) -> torch.Tensor:
        return self._loss(i).double().reshape(()) * self.scales[i]
