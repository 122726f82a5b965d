"""Front-end for models that are a list of layers already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from penstock.errors import ModelError
from penstock.models.cut import CutModel


def from_layers(model: nn.Sequential | nn.ModuleList | Sequence[nn.Module]) -> CutModel:
    """Returns the layers of an nn.Sequential by their names, or of a list by their index.

    Raises:
        ModelError: an entry that is no module, or the same module twice.
    """
    named: list[tuple[str, Any]]
    if isinstance(model, nn.Module):
        named = list(model._modules.items())
    else:
        named = [(str(index), layer) for index, layer in enumerate(model)]
    first: dict[int, str] = {}
    for name, layer in named:
        if not isinstance(layer, nn.Module):
            raise ModelError(f"layer {name} is a {type(layer).__name__}, not an nn.Module; wrap it in one")
        before = first.setdefault(id(layer), name)
        if before != name:
            raise ModelError(f"layers {before} and {name} are the same module; every layer is run by one stage, once")
    return CutModel(dict(named))
