"""Plain Python values as JSON and back, exactly: what JSON itself has no word for is an object with one `$` key.

(0.9, 0.98)       {"$tuple": [0.9, 0.98]}        inf              {"$float": "inf"}
{30: 1}           {"$items": [[30, 1]]}          Counter({30: 1}) {"$counter": [[30, 1]]}
b"…"              {"$bytes": "base64"}           tensor           {"$tensor": ["float32", [2], "base64"]}
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from penstock.errors import CheckpointError


def encoded(value: Any, *, where: str) -> Any:
    """Returns `value` as JSON values.

    Args:
        value: None, truth values, numbers, text, bytes, CPU or other tensors; tuples, lists and dicts of such.
        where: what it is called in the error.

    Raises:
        CheckpointError: there is something else in it; says where.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, Mapping):
        return _encoded_mapping(value, where)
    if isinstance(value, list | tuple):
        items = [encoded(item, where=f"{where}[{at}]") for at, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        dtype = str(value.dtype).removeprefix("torch.")
        return {"$tensor": [dtype, list(value.shape), base64.b64encode(flat.numpy().tobytes()).decode()]}
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which cannot be saved without a pickle; "
        "keep numbers, text, lists, dicts or tensors there"
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


def _encoded_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    items = [(key, encoded(item, where=f"{where}[{key!r}]")) for key, item in value.items()]
    if isinstance(value, Counter):
        return {"$counter": [[encoded(key, where=where), item] for key, item in items]}
    if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
        return dict(items)
    return {"$items": [[encoded(key, where=where), item] for key, item in items]}


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
    "$tensor": _tensor,
}
