"""Data-parallel replicas of one rank's stages: sums over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed as dist
from torch import nn


class Replicas:
    """The ranks that hold the same stages as this one, in other data-parallel replicas."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    @property
    def size(self) -> int:
        """Number of replicas, this one included."""
        return dist.get_world_size(self._group)

    def sum_grads(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sums the gradients over the replicas; one that is not there counts as zeros."""
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=self._group)

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Returns the sum of each number over the replicas."""
        totals = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(totals, group=self._group)
        return list(totals.tolist())

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of a tensor over the replicas."""
        dist.all_reduce(tensor, group=self._group)
        return tensor
