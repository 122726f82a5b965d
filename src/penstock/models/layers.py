"""Front-end for models that are a list of layers already."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from penstock.errors import ModelError
from penstock.models.cut import CutModel
from penstock.models.filling import fill, on_meta, private
from penstock.models.lazy import LayerSpec, fill_specs, skeleton


def from_layers(model: nn.Sequential | nn.ModuleList | Sequence[nn.Module | LayerSpec]) -> CutModel:
    """Returns the layers of an nn.Sequential by their names, or of a list by their index.

    Of a list with `LayerSpec` each rank builds the layers of its own stages.

    Raises:
        ModelError: an entry that is no module, the same module twice, or a Sequential that is more than its layers.
    """
    named: list[tuple[str, Any]]
    if isinstance(model, nn.Module):
        _check_plain(model)
        named = list(model._modules.items())
    else:
        named = [(str(index), layer) for index, layer in enumerate(model)]
    specs = {name: layer for name, layer in named if isinstance(layer, LayerSpec)}
    named = [(name, skeleton(layer) if name in specs else layer) for name, layer in named]
    _check_distinct(named)
    layers = dict(named)
    if specs:
        return CutModel(layers, fill=partial(fill_specs, specs, layers))
    if not any(map(on_meta, layers.values())):
        return CutModel(layers)
    layers = private(layers)
    return CutModel(layers, fill=partial(_fill, layers))


def _fill(layers: dict[str, nn.Module], stages: Sequence[nn.Module], seed: int | None) -> None:
    fill(layers, stages, seed=seed)


def _check_distinct(named: Sequence[tuple[str, Any]]) -> None:
    first: dict[int, str] = {}
    for name, layer in named:
        if not isinstance(layer, nn.Module):
            raise ModelError(f"layer {name} is a {type(layer).__name__}, not an nn.Module; wrap it in one")
        before = first.setdefault(id(layer), name)
        if before != name:
            raise ModelError(f"layers {before} and {name} are the same module; every layer is run by one stage, once")


def _check_plain(model: nn.Module) -> None:
    """Refuses a Sequential of the user's own make: what it adds to its layers would be lost in the cut."""
    name = type(model).__name__
    if isinstance(model, nn.Sequential) and type(model).forward is not nn.Sequential.forward:
        raise ModelError(f"{name} has a forward of its own, which its layers alone would not run; make it one layer")
    own = [*model._parameters, *model._buffers]
    if own:
        raise ModelError(f"{name} itself holds {', '.join(own)}, in none of its layers; put them into a layer")
