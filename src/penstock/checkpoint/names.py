"""The one name under which a tensor is stored, whatever the layout: tied parameters are saved once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from penstock.runtime import Pipeline


def aliases_of(pipe: Pipeline) -> dict[str, str]:
    """Returns other name -> stored name, for every tie of the model and for what shares memory on this rank.

    The stored name is the first in the model's order. A tie between stages is known on every rank, one within a stage
    on the ranks that hold it.
    """
    aliases = {
        name: tie.holders[0][1] for tie in pipe.plan.ties for _, name in tie.holders if name != tie.holders[0][1]
    }
    first: dict[object, str] = {}
    for name, tensor in pipe.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.numel():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            stored = first.setdefault(place, aliases.get(name, name))
            if stored != name:
                aliases.setdefault(name, stored)
    return aliases


def stored_name(name: str, aliases: Mapping[str, str], known: Mapping[str, object], *, saved: Mapping[str, str]) -> str:
    """Returns what a checkpoint calls the parameter or buffer `name`.

    Args:
        name: in this model.
        aliases: ties of this model.
        known: what the checkpoint stores, by the names of the model.
        saved: ties of the model that was saved, which may be others.
    """
    for candidate in (aliases.get(name, name), name):
        found = saved.get(candidate, candidate)
        if found in known:
            return found
    return aliases.get(name, name)


def config_of(pipe: Pipeline) -> dict[str, Any] | None:
    """Returns what config.json says of a Hugging Face model, None for other models."""
    origin = pipe._origin
    if origin is None:
        return None
    config: dict[str, Any] = json.loads(origin.config.to_json_string(use_diff=True))
    return config | {"architectures": [origin.kind.__name__]}
