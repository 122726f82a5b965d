"""Plain Python values as JSON and back, exactly: what JSON itself has no word for is an object with one `$` key.

(0.9, 0.98)       {"$tuple": [0.9, 0.98]}        inf              {"$float": "inf"}
{30: 1}           {"$items": [[30, 1]]}          Counter({30: 1}) {"$counter": [[30, 1]]}
b"…"              {"$bytes": "base64"}           tensor           {"$tensor": ["float32", [2], "base64"]}
numpy array       {"$array": ["<u4", [2], "base64"]}   numpy.int64(3)  {"$scalar": ["<i8", [], "base64"]}
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock.errors import CheckpointError

_NUMBERS = "biufc"
"""Kinds of numpy's types that are plain numbers."""


def encoded(value: Any, *, where: str) -> Any:
    """Returns `value` as JSON values.

    Args:
        value: None, truth values, numbers, text, bytes, numpy's numbers and arrays, CPU or other tensors; tuples,
            lists and dicts of such.
        where: what it is called in the error.

    Raises:
        CheckpointError: there is something else in it; says where.
    """
    for kinds, encode in _ENCODERS:
        if isinstance(value, kinds):
            return encode(value, where)
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which cannot be saved without a pickle; "
        "keep numbers, text, lists, dicts, arrays or tensors there"
    )


def decoded(value: Any) -> Any:
    """Returns what was encoded."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag in _DECODERS:
            return _DECODERS[tag](content)
    return {key: decoded(item) for key, item in value.items()}


def _of_float(value: float, where: str) -> Any:
    return float(value) if math.isfinite(value) else {"$float": str(float(value))}


def _of_items(value: Any, where: str) -> Any:
    items = [encoded(item, where=f"{where}[{at}]") for at, item in enumerate(value)]
    return items if isinstance(value, list) else {"$tuple": items}


def _of_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    items = [(key, encoded(item, where=f"{where}[{key!r}]")) for key, item in value.items()]
    if isinstance(value, Counter):
        return {"$counter": [[encoded(key, where=where), item] for key, item in items]}
    if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
        return dict(items)
    return {"$items": [[encoded(key, where=where), item] for key, item in items]}


def _of_numpy(value: Any, where: str) -> dict[str, Any]:
    if value.dtype.kind not in _NUMBERS:
        raise CheckpointError(f"{where} is an array of {value.dtype}; keep arrays of numbers there")
    row = np.ascontiguousarray(value)
    kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
    return {kind: [value.dtype.str, list(value.shape), base64.b64encode(row.tobytes()).decode()]}


def _of_tensor(value: Tensor, where: str) -> dict[str, Any]:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    dtype = str(value.dtype).removeprefix("torch.")
    return {"$tensor": [dtype, list(value.shape), base64.b64encode(flat.numpy().tobytes()).decode()]}


_ENCODERS: tuple[tuple[Any, Callable[[Any, str], Any]], ...] = (
    ((bool, str, type(None)), lambda value, where: value),
    ((np.generic, np.ndarray), _of_numpy),  # before float, which numpy.float64 is too
    (int, lambda value, where: int(value)),
    (float, _of_float),
    (Mapping, _of_mapping),
    ((list, tuple), _of_items),
    (bytes, lambda value, where: {"$bytes": base64.b64encode(value).decode()}),
    (Tensor, _of_tensor),
)
"""Kinds of values -> (value, where it stands) -> JSON values; the first row that fits is taken."""


def _array(content: Any) -> Any:
    dtype, shape, data = content
    return np.frombuffer(base64.b64decode(data), dtype=np.dtype(dtype)).reshape(shape).copy()


def _tensor(content: Any) -> Tensor:
    dtype, shape, data = content
    flat = torch.frombuffer(bytearray(base64.b64decode(data)) or bytearray(1), dtype=torch.uint8)
    kind: torch.dtype = getattr(torch, dtype)
    return flat[: math.prod(shape) * kind.itemsize].view(kind).reshape(shape)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$tuple": lambda items: tuple(decoded(item) for item in items),
    "$float": float,
    "$items": lambda items: {decoded(key): decoded(item) for key, item in items},
    "$counter": lambda items: Counter({decoded(key): decoded(item) for key, item in items}),
    "$bytes": base64.b64decode,
    "$array": _array,
    "$scalar": lambda content: _array(content)[()],
    "$tensor": _tensor,
}
