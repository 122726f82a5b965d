"""Data-parallel replicas of one rank's stages: sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import distributed as dist
from torch import nn

if TYPE_CHECKING:
    from penstock.runtime.pipeline import Pipeline


class Replicas:
    """The ranks that hold the same stages as this one, in other data-parallel replicas."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    @property
    def size(self) -> int:
        """Number of replicas, this one included."""
        return dist.get_world_size(self._group)

    @property
    def index(self) -> int:
        """Which replica this one is, from 0."""
        return dist.get_rank(self._group)

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        """Returns the payloads of all replicas, of any lengths, by replica. Every replica calls it."""
        lengths = self._gather(torch.tensor([len(payload)]))
        row = torch.zeros(max(1, *(int(length) for length in lengths)), dtype=torch.uint8)
        if payload:
            row[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return [bytes(row[: int(length)].numpy()) for row, length in zip(self._gather(row), lengths, strict=True)]

    def _gather(self, row: torch.Tensor) -> list[torch.Tensor]:
        rows = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(rows, row, group=self._group)
        return rows

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


def replicas_of(pipe: Pipeline) -> Replicas | None:
    """Returns the data-parallel replicas of this rank, None where there are none."""
    return pipe._replicas
