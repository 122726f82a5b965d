"""Block masks of torch.nn.attention.flex_attention, split into microbatches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch

_MODULE = "torch.nn.attention.flex_attention"


def is_block_mask(value: Any) -> bool:
    """Returns whether `value` is a BlockMask; without importing what takes seconds to import."""
    return type(value).__name__ == "BlockMask" and type(value).__module__ == _MODULE


def split_block_mask(mask: Any, sizes: list[int]) -> list[Any]:
    """Returns the block mask of each microbatch; one for all where the mask has one row for every sample.

    The samples of a microbatch count from 0, those of the mask's own function from the first of the batch.
    """
    if mask.kv_num_blocks.shape[0] == 1:
        return [mask] * len(sizes)
    return [_rows(mask, start, size) for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False)]


def _rows(mask: Any, start: int, size: int) -> Any:
    def rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[start : start + size]

    return type(mask).from_kv_blocks(
        rows(mask.kv_num_blocks),
        rows(mask.kv_indices),
        rows(mask.full_kv_num_blocks),
        rows(mask.full_kv_indices),
        BLOCK_SIZE=mask.BLOCK_SIZE,
        mask_mod=_from(mask.mask_mod, start),
        seq_lengths=mask.seq_lengths,
        compute_q_blocks=mask.q_indices is not None,
    )


def _from(mask_mod: Callable[..., Any], start: int) -> Callable[..., Any]:
    def of_microbatch(sample: Any, head: Any, query: Any, key: Any) -> Any:
        return mask_mod(sample + start, head, query, key)

    return of_microbatch
