"""From a Hugging Face model to units that a partition distributes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from penstock.errors import ModelError
from penstock.models.cut import CutModel
from penstock.models.filling import fill, on_meta, private
from penstock.models.hugging_face.origin import Origin
from penstock.models.hugging_face.plan import Parts, parts_of
from penstock.models.hugging_face.stage import HuggingFaceStage


def is_hugging_face(model: Any) -> bool:
    """Returns whether `model` is one of transformers', without importing it."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def from_hugging_face(model: Any) -> CutModel:
    """Returns the units of a Hugging Face model: what runs before the layers, each layer, what runs after them.

    A model on the meta device stays there; a copy of it is cut, of which each rank fills its own stages.

    Raises:
        ModelError: a model that cannot be cut; the message names the feature in the way.
    """
    parts = parts_of(model)
    if on_meta(model):
        _check_wholly_on_meta(model)
        model = private({"": model})[""]
        return replace(units_of(model, parts), fill=partial(_fill, model))
    return units_of(model, parts)


def units_of(model: Any, parts: Parts) -> CutModel:
    """Returns the units of a model whose parts are known; they are the model's own modules."""
    layers = model.get_submodule(parts.layers)
    names = [*parts.before, *(f"{parts.layers}.{index}" for index in range(len(layers))), *parts.after]
    units = {name: model.get_submodule(name) for name in names}
    return CutModel(units, assemble=partial(_stage, model, parts), origin=Origin(type(model), model.config))


def _check_wholly_on_meta(model: Any) -> None:
    """Refuses numbers that a constructor has drawn by itself: they would differ from rank to rank."""
    real = next((name for name, parameter in model.named_parameters() if not parameter.is_meta), None)
    if real is not None:
        raise ModelError(
            f"{real} of this {type(model).__name__} has numbers and other parameters are on the meta device; "
            'model.to("meta") drops them, for seed= to draw them alike in every layout'
        )


def _fill(model: nn.Module, stages: Sequence[nn.Module], seed: int | None) -> None:
    fill({"": model}, stages, seed=seed)


def _stage(model: Any, parts: Parts, units: Mapping[str, nn.Module], first_unit: int) -> HuggingFaceStage:
    return HuggingFaceStage(model, parts, units=units, first_unit=first_unit)
