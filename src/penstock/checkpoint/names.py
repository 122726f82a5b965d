"""The one name under which a tensor is stored, whatever the layout: tied parameters are saved once.

here                         stored
embed.weight                 embed.weight
head.weight (tied)           embed.weight
block._orig_mod.weight       block.weight        what torch.compile puts between is no part of the model
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from penstock.runtime import Pipeline
from penstock.runtime.spread import memory_of

_COMPILED = "_orig_mod."
"""What `torch.compile(module)` puts before the names of the module's parameters."""


def original(name: str) -> str:
    """Returns the name of a parameter as it is where nothing is compiled."""
    return name.replace(_COMPILED, "")


def aliases_of(pipe: Pipeline) -> dict[str, str]:
    """Returns other name -> first name, for every tie of the model and for what shares memory on this rank.

    The first name is so in the model's order. A tie between stages is known on every rank, one within a stage
    on the ranks that hold it.
    """
    aliases = {
        name: tie.holders[0][1] for tie in pipe.plan.ties for _, name in tie.holders if name != tie.holders[0][1]
    }
    first: dict[object, str] = {}
    for name, tensor in pipe.state_dict().items():
        memory = memory_of(tensor) if isinstance(tensor, Tensor) else None
        if memory is not None:
            stored = first.setdefault(memory, aliases.get(name, name))
            if stored != name:
                aliases.setdefault(name, stored)
    return aliases


def saved_here(pipe: Pipeline, aliases: Mapping[str, str], *, elsewhere: frozenset[str]) -> dict[str, Tensor]:
    """Returns the parameters and buffers that this rank saves: over all ranks of a pipeline each of them once.

    A module that runs on stages of two ranks has the same names on both: the first saves.

    Args:
        pipe: what is saved.
        aliases: its ties.
        elsewhere: names of buffers that another rank saves.
    """
    stages, placement = pipe.plan.parameter_stages, pipe.plan.placement
    return {
        name: value
        for name, value in pipe.state_dict().items()
        if name not in aliases
        and name not in elsewhere
        and (name not in stages or placement.owners(stages[name])[0] == pipe.rank)
    }


def buffers_elsewhere(pipe: Pipeline) -> frozenset[str]:
    """Returns the names of buffers that a rank before this one holds too, and saves. Every rank calls it."""
    own = [name for name in pipe.state_dict() if name not in pipe.plan.parameter_stages]
    rows = [json.loads(reply) for reply in pipe.exchange(json.dumps(own).encode())]
    return frozenset(name for row in rows[: pipe.rank] for name in row).intersection(own)


def stored_name(name: str, aliases: Mapping[str, str], known: Mapping[str, object], *, saved: Mapping[str, str]) -> str:
    """Returns what a checkpoint calls the parameter or buffer `name`.

    Args:
        name: in this model.
        aliases: ties of this model.
        known: what the checkpoint stores, by the names of the model.
        saved: ties of the model that was saved, which may be others.
    """
    for candidate in (original(aliases.get(name, name)), original(name)):
        found = saved.get(candidate, candidate)
        if found in known:
            return found
    return original(aliases.get(name, name))


def config_of(pipe: Pipeline) -> dict[str, Any] | None:
    """Returns what config.json says of a Hugging Face model, None for other models."""
    origin = pipe._origin
    if origin is None:
        return None
    config: dict[str, Any] = json.loads(origin.config.to_json_string(use_diff=True))
    return config | {"architectures": [origin.kind.__name__]}
