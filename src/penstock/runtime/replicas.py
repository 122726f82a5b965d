"""Data-parallel replicas of one rank's stages: sums over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed as dist
from torch import nn


class Replicas:
    """The ranks that hold the same stages as this one, in other data-parallel replicas.

    The gradients of earlier steps that are still in `.grad` are set aside for the step under way, so that only
    its own are summed, and added back.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._earlier: dict[nn.Parameter, torch.Tensor] = {}

    @property
    def size(self) -> int:
        """Number of replicas, this one included."""
        return dist.get_world_size(self._group)

    def set_aside(self, parameters: Sequence[nn.Parameter]) -> None:
        """Puts the gradients that are there away until `sum_grads`."""
        self._earlier = {}
        for parameter in parameters:
            if parameter.grad is not None:
                self._earlier[parameter] = parameter.grad
                parameter.grad = None

    def sum_grads(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sums this step's gradients over the replicas, then adds the earlier ones."""
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=self._group)
            earlier = self._earlier.pop(parameter, None)
            if earlier is not None:
                parameter.grad.add_(earlier)

    def sum_number(self, number: float) -> float:
        """Returns the sum of a number over the replicas."""
        total = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.item()

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of a tensor over the replicas."""
        dist.all_reduce(tensor, group=self._group)
        return tensor
