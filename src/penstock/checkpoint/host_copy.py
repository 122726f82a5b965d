"""A copy of tensors on the host, into memory that is kept from one copy to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class HostCopy:
    """Memory for one copy: as much as the tensors have, page-locked for those of an accelerator."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Returns copies, and a function that waits until they are complete.

        What is enqueued afterwards on the current streams comes after the copies, so the tensors may change at once.
        The copies are good until the next `take`.
        """
        copies = {name: self._room(name, tensor.detach()) for name, tensor in tensors.items()}
        self._memory = copies
        devices = set()
        for name, tensor in tensors.items():
            copies[name].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
            if tensor.is_cuda:
                devices.add(tensor.device)
        marks = [torch.cuda.current_stream(device).record_event() for device in devices]

        def ready() -> None:
            for mark in marks:
                mark.synchronize()

        return copies, ready

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._memory.get(name)
        if kept is not None and (kept.shape, kept.dtype) == (tensor.shape, tensor.dtype):
            return kept
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
