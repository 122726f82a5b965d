"""Where the random generators of a process stand, as tensors: torch's own, Python's and numpy's.

A pipeline made with `seed=` does not need them. Without one, a run that goes on in the same layout draws on from here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from penstock.checkpoint.plain import decoded, encoded


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """Returns the states by generator; of accelerators that of `device`."""
    python, (kind, keys, *rest) = random.getstate(), np.random.get_state()
    plain = {"python": python, "numpy": (kind, [int(key) for key in keys], *rest)}
    tensors = {"torch": torch.get_rng_state(), "plain": bytes_tensor(plain, where="random state")}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts the generators where they stood."""
    torch.set_rng_state(tensors["torch"].clone())
    plain = plain_value(tensors["plain"])
    random.setstate(plain["python"])
    np.random.set_state(plain["numpy"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].clone(), device)


def bytes_tensor(value: Any, *, where: str) -> Tensor:
    """Returns a plain value as a row of bytes; `where` as for `encoded`."""
    return torch.frombuffer(bytearray(msgspec.json.encode(encoded(value, where=where))), dtype=torch.uint8)


def plain_value(row: Tensor) -> Any:
    """Returns what `bytes_tensor` was given."""
    return decoded(msgspec.json.decode(row.numpy().tobytes()))
