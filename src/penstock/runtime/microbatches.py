"""Splitting a batch into microbatches, by one rule: tensors along their first dimension, plain values copied."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from penstock.errors import BatchError

_PLAIN = (bool, int, float, str, type(None))


def batch_size(batch: Any, *, name: str) -> int:
    """Returns the first dimension that all tensors of the tree `batch` share.

    Raises:
        BatchError: no tensor, a tensor without dimensions, different sizes, or a value of an unknown kind.
    """
    sizes: dict[str, int] = {}

    def visit(tensor: torch.Tensor, path: str) -> torch.Tensor:
        if tensor.dim() == 0:
            raise BatchError(f"{path} is a tensor without dimensions; give it the batch as its first dimension")
        sizes[path] = tensor.shape[0]
        return tensor

    _map(batch, visit, name)
    if not sizes:
        raise BatchError(f"{name} holds no tensor; give a tensor with the batch as its first dimension")
    if len(set(sizes.values())) > 1:
        raise BatchError(f"{name} mixes batch sizes {sizes}; the first dimension is the batch in all of them")
    size = next(iter(sizes.values()))
    if size == 0:
        raise BatchError(f"{name} is empty (batch size 0); give at least one sample")
    return size


def split(batch: Any, sizes: list[int], *, name: str) -> list[Any]:
    """Returns the microbatches of these sizes, as views of `batch`; plain values go to every microbatch."""
    bounds = list(zip(accumulate(sizes, initial=0), sizes, strict=False))
    if isinstance(batch, torch.Tensor):  # the common case, without a walk for each
        return [batch[start : start + size] for start, size in bounds]
    return [_map(batch, partial(_narrow, start=start, size=size), name) for start, size in bounds]


def even_sizes(size: int, num_microbatches: int) -> list[int]:
    """Returns num_microbatches equal sizes.

    Raises:
        BatchError: `size` is not a multiple of num_microbatches; the message gives values that work.
    """
    each, rest = divmod(size, num_microbatches)
    if rest or each == 0:
        up = -(-size // num_microbatches) * num_microbatches
        down = size - rest
        batch = f"{down} or {up}" if down else f"{up}"
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        nearest = min(divisors, key=lambda n: (abs(n - num_microbatches), n))
        raise BatchError(
            f"a batch of {size} samples does not divide into num_microbatches={num_microbatches}; use a batch of "
            f"{batch}, or num_microbatches={nearest}"
        )
    return [each] * num_microbatches


def ragged_sizes(size: int, num_microbatches: int) -> list[int]:
    """Returns up to num_microbatches sizes that differ by at most one and leave no microbatch empty."""
    count = min(size, num_microbatches)
    each, longer = divmod(size, count)
    return [each + (index < longer) for index in range(count)]


def to_device(batch: Any, device: torch.device) -> Any:
    """Returns `batch` with its tensors on `device`."""
    return _map(batch, lambda tensor, _: tensor.to(device, non_blocking=True), "batch")


def _narrow(tensor: torch.Tensor, _: str, *, start: int, size: int) -> torch.Tensor:
    return tensor[start : start + size]


def _map(value: Any, function: Callable[[torch.Tensor, str], torch.Tensor], path: str) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value, path)
    if type(value) in (tuple, list):
        return type(value)(_map(item, function, f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict):
        return {key: _map(item, function, f'{path}["{key}"]') for key, item in value.items()}
    if type(value) in _PLAIN:
        return value
    raise BatchError(
        f"{path} is a {type(value).__name__}, for which there is no rule how to split it; tensors are split along "
        "their first dimension, None, bool, int, float and str go to every microbatch"
    )
