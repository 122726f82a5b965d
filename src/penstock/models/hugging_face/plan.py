"""Which parts of a Hugging Face model come in which order: by its own `base_model_pp_plan` or by its structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from penstock.errors import ModelError


@dataclass(frozen=True)
class Parts:
    """The parts of a model by their names in it.

    Attributes:
        base: the inner model that holds embedding and layers, "" where the model is that itself.
        before: what runs before the layers, e.g. "model.embed_tokens".
        layers: the list of layers, e.g. "model.layers".
        after: what runs after them, e.g. "model.norm" and "lm_head".
    """

    base: str
    before: tuple[str, ...]
    layers: str
    after: tuple[str, ...]


CANNOT = {
    "gemma3n_text": "every layer reads inputs of its own that are computed beside the embedding",
    "gemma4_text": "every layer reads inputs of its own that are computed beside the embedding",
    "glm_moe_dsa": "its layers hand the chosen keys on to later layers beside the hidden states",
    "hrm_text": "it runs two stacks of layers several times in turn",
    "hy_v4": "its layers hand the chosen keys on to later layers beside the hidden states",
}
"""Model type -> the feature for which a model cannot be cut, where its structure does not show it."""

BEFORE_NORM = {"deepseek_v4": ("hc_head",)}
"""Model type -> parts that its plan leaves out: they run after the layers and before the norm."""


def parts_of(model: Any) -> Parts:
    """Returns the parts of a Hugging Face model.

    Raises:
        ModelError: a part that the plan does not name, or no list of layers.
    """
    kind = getattr(model.config, "model_type", "")
    reason = CANNOT.get(kind)
    if reason:
        raise ModelError(f"{type(model).__name__} cannot be cut into stages: {reason}")
    base_name = getattr(model, "base_model_prefix", "")
    base = getattr(model, base_name, None) if base_name else None
    if not isinstance(base, nn.Module):
        base_name, base = "", model
    prefix = f"{base_name}." if base_name else ""
    plan = getattr(base, "_pp_plan", None) or getattr(model.config, "base_model_pp_plan", None)
    before, layers, after = _by_plan(list(plan), base) if plan else _by_structure(base)
    after = [*BEFORE_NORM.get(kind, ()), *after]
    head = tuple(
        name for name, child in model.named_children() if base_name and name != base_name and _has_state(child)
    )
    found = Parts(
        base_name,
        tuple(prefix + name for name in before),
        prefix + layers,
        tuple(prefix + name for name in after) + head,
    )
    _check_cover(model, found)
    return found


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


def _by_structure(base: nn.Module) -> tuple[list[str], str, list[str]]:
    """Returns the parts in the order in which the base model declares them, around its one list of blocks."""
    children = [(name, child) for name, child in base.named_children()]
    lists = [name for name, child in children if isinstance(child, nn.ModuleList) and len(child) and _has_state(child)]
    if len(lists) != 1:
        what = f"{len(lists)} lists of layers ({', '.join(lists)})" if lists else "no list of layers"
        raise ModelError(f"{type(base).__name__} has {what}; a model with one list of blocks can be cut")
    names = [name for name, _ in children]
    at = names.index(lists[0])
    before = [name for name, child in children[:at] if _has_state(child)]
    after = [name for name, child in children[at + 1 :] if _has_state(child)]
    embeddings = [name for name, child in children[at + 1 :] if isinstance(child, nn.Embedding)]
    return [*before, *embeddings], lists[0], [name for name in after if name not in embeddings]


def _has_state(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _check_cover(model: nn.Module, parts: Parts) -> None:
    named = (*parts.before, parts.layers, *parts.after)
    for name, _ in model.named_parameters():
        if not any(name == part or name.startswith(f"{part}.") for part in named):
            raise ModelError(
                f"{type(model).__name__} has the parameter {name} outside of {', '.join(named)}; which stage it "
                "belongs to is not known"
            )
