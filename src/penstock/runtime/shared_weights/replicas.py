"""Data-parallel replicas of one rank's stages: sums over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist
from torch import nn

from penstock.errors import RankFailedError

if TYPE_CHECKING:
    from penstock.runtime.pipeline import Pipeline


class Replicas:
    """The ranks that hold the same stages as this one, in other data-parallel replicas.

    Args:
        group: these ranks, this one included.
        explain: why a call that all of them make together failed -> what is known about it in the pipeline's terms.
    """

    def __init__(self, group: dist.ProcessGroup, *, explain: Callable[[str], str] = str) -> None:
        self._group, self._explain = group, explain

    @property
    def size(self) -> int:
        """Number of replicas, this one included."""
        return dist.get_world_size(self._group)

    @property
    def index(self) -> int:
        """Which replica this one is, from 0."""
        return dist.get_rank(self._group)

    def named(self, index: int) -> str:
        """Returns a replica's rank in words."""
        return f"rank {dist.get_process_group_ranks(self._group)[index]} of the job (data-parallel replica {index})"

    def gather_json(self, value: Any) -> list[Any]:
        """Returns the plain values of all replicas, by replica. Every replica calls it."""
        return [json.loads(payload) for payload in self.gather_bytes(json.dumps(value).encode())]

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Returns the numbers of all replicas, as many of each, by replica. Every replica calls it."""
        return [row.tolist() for row in self._gather(torch.tensor(numbers, dtype=torch.float64))]

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        """Returns the payloads of all replicas, of any lengths, by replica. Every replica calls it."""
        lengths = self._gather(torch.tensor([len(payload)]))
        row = torch.zeros(max(1, *(int(length) for length in lengths)), dtype=torch.uint8)
        if payload:
            row[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return [bytes(row[: int(length)].numpy()) for row, length in zip(self._gather(row), lengths, strict=True)]

    def _gather(self, row: torch.Tensor) -> list[torch.Tensor]:
        rows = [torch.empty_like(row) for _ in range(self.size)]
        with self._explained():
            dist.all_gather(rows, row, group=self._group)
        return rows

    def sum_grads(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sums the gradients over the replicas; one that is not there counts as zeros."""
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grad = parameter.grad.contiguous()
            self.sum_tensor(grad)
            if grad is not parameter.grad:
                parameter.grad.copy_(grad)

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Returns the sum of each number over the replicas."""
        return list(self.sum_tensor(torch.tensor(numbers, dtype=torch.float64)).tolist())

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of a tensor over the replicas, in its place."""
        with self._explained():
            dist.all_reduce(tensor, group=self._group)
        return tensor

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Tells of a replica that is lost as of any other rank."""
        try:
            yield
        except RuntimeError as error:
            raise RankFailedError(self._explain(str(error).splitlines()[0])) from None


def replicas_of(pipe: Pipeline) -> Replicas | None:
    """Returns the data-parallel replicas of this rank, None where there are none."""
    return pipe._replicas
