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
from penstock.models.hugging_face.call import UNCACHED, call_of
from penstock.models.hugging_face.origin import Origin
from penstock.models.hugging_face.parts import Parts
from penstock.models.hugging_face.plan import parts_of
from penstock.models.hugging_face.routers import unsplit_result, wants_routers
from penstock.models.hugging_face.stage import HuggingFaceStage


def is_hugging_face(model: Any) -> bool:
    """Returns whether `model` is one of transformers', without importing it."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(_inside_peft(model), transformers.PreTrainedModel)


def _inside_peft(model: Any) -> Any:
    """Returns the model that peft's wrapper is around, or the model itself."""
    peft = sys.modules.get("peft")
    return model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model


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
    """Returns the units of a model whose parts are known; they are the model's own modules, or several in a list."""
    units = {name: _unit(model, group) for name, group in parts.units(model).items()}
    stage, unsplit = partial(_stage, model, parts), partial(_unsplit, model)
    return CutModel(units, assemble=stage, unsplit=unsplit, origin=Origin(type(model), model.config))


def _unit(model: nn.Module, group: tuple[str, ...]) -> nn.Module:
    parts = [model.get_submodule(name) for name in group]
    return parts[0] if len(parts) == 1 else nn.ModuleList(parts)


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


def _unsplit(model: Any, value: Any) -> Any:
    """Returns what the model itself makes of a microbatch, in the form in which a pipeline gives it."""
    output = model(**call_of(model, value), **UNCACHED)
    if wants_routers(model):
        return unsplit_result(model, output)
    return output.logits if hasattr(output, "logits") else output[0]


def _stage(model: Any, parts: Parts, units: Mapping[str, nn.Module], first_unit: int) -> HuggingFaceStage:
    own = {name: model.get_submodule(name) for name in parts.whole(model, units)}
    return HuggingFaceStage(model, parts, units=own)
