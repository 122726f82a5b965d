"""Tensors that are spread over processes, DTensors, told from others and made whole."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_spread(value: object) -> bool:
    """Returns whether `value` is a DTensor. Importing their module takes a third as long as torch itself."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def whole(value: Tensor) -> Tensor:
    """Returns a tensor itself, or all of one that is spread: every process that has a part of it calls this."""
    found: Any = value
    tensor: Tensor = found.full_tensor() if is_spread(value) else value
    return tensor


def part_like(value: Tensor, like: object) -> Tensor:
    """Returns a whole tensor itself, or spread as `like` is: every process that has a part calls this."""
    if not is_spread(like):
        return value
    own: Any = like
    tensor: Tensor = sys.modules["torch.distributed.tensor"].distribute_tensor(
        value.to(own.device_mesh.device_type, copy=True), own.device_mesh, own.placements
    )
    return tensor


def memory_of(tensor: Tensor) -> object | None:
    """Returns what two tensors have in common that are the same memory seen alike, None for one without memory."""
    form = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    if is_spread(tensor):  # a part may be empty, and the answer must be the same where it is not
        own: Any = tensor.detach()
        local = own.to_local()
        return local.untyped_storage()._cdata, local.storage_offset(), form
    return (tensor.data_ptr(), form) if tensor.numel() else None
