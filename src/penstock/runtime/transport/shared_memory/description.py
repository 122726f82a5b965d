"""What a frame says of its tensor, so that a receiver into another shape or dtype is told and reads nothing."""

from __future__ import annotations

import struct
from functools import lru_cache

import torch

from penstock.errors import ModelError

MAX_DIMENSIONS = 64
BYTES = 8 + 8 * MAX_DIMENSIONS
"""The longest description."""

RING = b"\xff" * 8
"""In place of a description: the next ring follows over the connection."""

_DTYPES = sorted(
    {value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=lambda dtype: str(dtype)
)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


@lru_cache(maxsize=4096)
def describe(shape: torch.Size, dtype: torch.dtype) -> bytes:
    """Returns shape and dtype as bytes; two tensors have the same bytes if and only if they are alike.

    Raises:
        ModelError: more dimensions than a frame has room for.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise ModelError(
            f"a tensor of {len(shape)} dimensions cannot pass between stages; use at most {MAX_DIMENSIONS}"
        )
    return struct.pack(f"<II{len(shape)}Q", _CODES[dtype], len(shape), *shape)


def told(slot: bytes) -> str:
    """Returns in words what the description at the beginning of `slot` says."""
    code, dimensions = struct.unpack_from("<II", slot)
    if code >= len(_DTYPES) or dimensions > MAX_DIMENSIONS:
        return "something else"
    return f"{struct.unpack_from(f'<{dimensions}Q', slot, 8)} {_DTYPES[code]}"
