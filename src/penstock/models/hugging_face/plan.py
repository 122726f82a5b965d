"""Which parts of a Hugging Face model come in which order: by its own `base_model_pp_plan` or by its structure."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from torch import nn

from penstock.errors import ModelError
from penstock.models.hugging_face.classes import BEFORE_NORM, CANNOT
from penstock.models.hugging_face.following import followed
from penstock.models.hugging_face.pair import is_pair, pair_of
from penstock.models.hugging_face.parts import Parts
from penstock.models.hugging_face.structure import one_list, parts_around, parts_in, path_to_layers


def parts_of(model: Any) -> Parts:
    """Returns the parts of a Hugging Face model.

    Raises:
        ModelError: a model that cannot be cut; the message names the feature in the way.
    """
    reason = CANNOT.get(getattr(model.config, "model_type", ""))
    if reason:
        raise ModelError(f"{type(model).__name__} cannot be cut into stages: {reason}")
    found = pair_of(model) if is_pair(model) else _parts_of_one(model)
    _check_cover(model, found)
    _check_all_run(model, found)
    return found


def _parts_of_one(model: Any) -> Parts:
    """Returns the parts of a model with one list of layers."""
    base_name = path_to_layers(model)
    base = model.get_submodule(base_name)
    prefix = f"{base_name}." if base_name else ""
    head = parts_around(model, base_name)
    plan = getattr(base, "_pp_plan", None) or getattr(model.config, "base_model_pp_plan", None)
    if not plan:
        layers = one_list(base)
        found = _in_order(model, base_name, layers, [*(prefix + name for name in parts_in(base, layers)), *head])
        return replace(found, together=1 if _is_generating(model) else max(len(found.after), 1))
    before, layers, after = _by_plan(list(plan), base)
    after = [*BEFORE_NORM.get(model.config.model_type, ()), *after]
    beside = parts_in(base, layers)
    if not {*beside} - {*before, *after}:
        return Parts(
            base_name, tuple(prefix + n for n in before), prefix + layers, (*(prefix + n for n in after), *head)
        )
    found = _in_order(model, base_name, layers, [*(prefix + name for name in beside), *head])
    inside = [name for name in found.after if name not in head]
    return replace(found, together=len(found.after) if len(inside) > len(after) else 1)


def _is_generating(model: Any) -> bool:
    """Returns whether a model's norm and head follow one another with nothing in between."""
    modeling = sys.modules["transformers"].models.auto.modeling_auto
    return type(model).__name__ in modeling.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _by_plan(names: list[str], base: nn.Module) -> tuple[list[str], str, list[str]]:
    """Returns the parts that the plan names, in its order."""
    lists = [name for name in names if isinstance(getattr(base, name, None), nn.ModuleList)]
    if len(lists) != 1:
        raise ModelError(
            f"{type(base).__name__} plans {', '.join(names)}, of which {len(lists)} are lists of layers; one is needed"
        )
    at = names.index(lists[0])
    declared = [name for name, _ in base.named_children()]
    return [name for name in names[:at] if name in declared], lists[0], [n for n in names[at + 1 :] if n in declared]


def _in_order(model: Any, base: str, layers: str, beside: list[str]) -> Parts:
    """Returns the parts in the order in which a forward comes to them.

    Raises:
        ModelError: the forward fails, or a part runs both before and after the layers.
    """
    name = type(model).__name__
    found = Parts(base, (), f"{base}.{layers}".lstrip("."), ())
    order = found.layer_names(model)
    called, read = followed(model, [*order, *beside], layers=(found.layers,))
    if [part for part in called if part in set(order)] != order:
        raise ModelError(f"{name} cannot be cut into stages: it does not run each of {found.layers} once, in order")
    early = list(dict.fromkeys(called[: called.index(order[0])]))
    late = list(dict.fromkeys(called[called.index(order[-1]) + 1 :]))
    twice = [part for part in early if part in late]
    if twice or not early:
        what = f"{twice[0]} runs before and after its layers" if twice else "nothing runs before its layers"
        raise ModelError(f"{name} cannot be cut into stages: {what}")
    idle = [part for part in beside if part not in called]
    return replace(found, before=(*early, *idle), after=tuple(late), read=read)


def _check_cover(model: nn.Module, parts: Parts) -> None:
    """Refuses a parameter in none of the parts, under none of its names."""
    named = [name for each in parts.lists() for name in (*each.before, each.layers, *each.after)]
    held = {id(parameter) for name in named for parameter in model.get_submodule(name).parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in held:
            raise ModelError(
                f"{type(model).__name__} has the parameter {name} outside of {', '.join(named)}; which stage it "
                "belongs to is not known"
            )


def _check_all_run(model: nn.Module, parts: Parts) -> None:
    """Refuses a model that leaves out layers at random: each stage would leave out others."""
    for each in parts.lists():
        dropped = getattr(model.get_submodule(each.base), "layerdrop", 0.0)
        if isinstance(dropped, float) and dropped > 0:
            name = f"{each.base}.layerdrop".lstrip(".")
            raise ModelError(
                f"{type(model).__name__} leaves out layers at random ({name}={dropped:g}), and no stage would know "
                f"what the others leave out; set model.{name} = 0.0"
            )
