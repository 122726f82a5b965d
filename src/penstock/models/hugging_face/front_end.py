"""From a Hugging Face model to units that a partition distributes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from penstock.models.cut import CutModel
from penstock.models.hugging_face.plan import Parts, parts_of
from penstock.models.hugging_face.stage import HuggingFaceStage


def is_hugging_face(model: Any) -> bool:
    """Returns whether `model` is one of transformers', without importing it."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def from_hugging_face(model: Any) -> CutModel:
    """Returns the units of a Hugging Face model: what runs before the layers, each layer, what runs after them.

    Raises:
        ModelError: a model that cannot be cut; the message names the feature in the way.
    """
    parts = parts_of(model)
    layers = model.get_submodule(parts.layers)
    names = [*parts.before, *(f"{parts.layers}.{index}" for index in range(len(layers))), *parts.after]
    units = {name: model.get_submodule(name) for name in names}
    return CutModel(units, assemble=partial(_stage, model, parts))


def _stage(model: Any, parts: Parts, units: Mapping[str, nn.Module], first_unit: int) -> HuggingFaceStage:
    return HuggingFaceStage(model, parts, units=units, first_unit=first_unit)
