"""What one call of the pipeline works on: microbatches in, losses or outputs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class StepBatch:
    """The data of one call on one rank; a rank without the first or last stage leaves its parts empty.

    Attributes:
        training: whether backwards follow.
        step: number of this training step, the key of its random numbers.
        inputs: one a microbatch, on the rank of the first stage.
        targets: one a microbatch, on the rank of the last stage; empty where outputs are wanted instead.
        scales: w_i / Σ w over all microbatches and data-parallel replicas, on the rank of the last stage.
        losses: microbatch -> its loss, filled on the rank of the last stage.
        outputs: microbatch -> the last stage's output, filled there where there are no targets.
    """

    training: bool
    step: int = 0
    inputs: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    losses: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)

    def mean_loss(self) -> torch.Tensor:
        """Returns Σ loss_i · w_i / Σ w in fp64, on the device of the losses, without waiting for it."""
        terms = [self.losses[i].double().reshape(()) * scale for i, scale in enumerate(self.scales)]
        return torch.stack(terms).sum()
