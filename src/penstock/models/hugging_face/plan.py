"""Which parts of a Hugging Face model come in which order: by its own `base_model_pp_plan` or by its structure."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from penstock.errors import ModelError


@dataclass(frozen=True)
class Parts:
    """The parts of a model by their names in it.

    Attributes:
        base: the inner model that holds embedding and layers, e.g. "model"; "" where the model is that itself.
        before: what runs before the layers, e.g. "model.embed_tokens".
        layers: the list of layers, e.g. "model.layers".
        after: what runs after them, e.g. "model.norm" and "lm_head".
        tail: what runs after them goes together: the model works on their results in between.
    """

    base: str
    before: tuple[str, ...]
    layers: str
    after: tuple[str, ...]
    tail: bool = False

    def order(self, model: nn.Module) -> list[str]:
        """Returns the names of all parts and of each layer, as they run."""
        layers = range(len(model.get_submodule(self.layers)))  # type: ignore[arg-type]
        return [*self.before, *(f"{self.layers}.{index}" for index in layers), *self.after]

    def whole(self, units: Iterable[str]) -> list[str]:
        """Returns all parts of `units`, of which one may stand for the tail."""
        return [part for unit in units for part in (self.after if self.tail and unit in self.after[:1] else (unit,))]


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
    base_name = _path_to_layers(model)
    base = model.get_submodule(base_name)
    prefix = f"{base_name}." if base_name else ""
    plan = getattr(base, "_pp_plan", None) or getattr(model.config, "base_model_pp_plan", None)
    before, layers, after = _by_plan(list(plan), base) if plan else _by_structure(base)
    after = [*BEFORE_NORM.get(kind, ()), *after]
    head = tuple(_beside(model, base_name))
    found = Parts(
        base_name,
        tuple(prefix + name for name in before),
        prefix + layers,
        tuple(prefix + name for name in after) + head,
    )
    _check_cover(model, found)
    return found if plan else replace(_in_order(model, found), tail=not _is_causal(model))


def _path_to_layers(model: nn.Module) -> str:
    """Returns the name of the inner model: down from the outermost, by the one child that has a list of layers."""
    path: list[str] = []
    inner = model
    while not any(_is_list(child) for child in inner.children()):
        holding = [name for name, child in inner.named_children() if any(map(_is_list, child.modules()))]
        if len(holding) != 1:
            what = f"lists of layers in {', '.join(holding)}" if holding else "no list of layers"
            raise ModelError(f"{type(model).__name__} has {what}; a model with one list of blocks can be cut")
        path.append(holding[0])
        inner = inner.get_submodule(holding[0])
    return ".".join(path)


def _is_causal(model: Any) -> bool:
    """Returns whether a model's norm and head follow one another with nothing in between."""
    modeling = sys.modules["transformers"].models.auto.modeling_auto
    return type(model).__name__ in modeling.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _beside(model: nn.Module, base_name: str) -> list[str]:
    """Returns the parts beside the inner model and beside what it is in, the innermost first."""
    found: list[str] = []
    path = base_name.split(".") if base_name else []
    for depth in reversed(range(len(path))):
        around = ".".join(path[:depth])
        prefix = f"{around}." if around else ""
        children = model.get_submodule(around).named_children()
        found += [prefix + name for name, child in children if name != path[depth] and _has_state(child)]
    return found


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0 and _has_state(module)


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
    lists = [name for name, child in children if _is_list(child)]
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


def _in_order(model: Any, parts: Parts) -> Parts:
    """Returns the parts in the order in which a forward comes to them.

    Raises:
        ModelError: the forward fails, or a part runs both before and after the layers.
    """
    name = type(model).__name__
    layers = [part for part in parts.order(model) if part.startswith(f"{parts.layers}.")]
    last = layers[-1]
    called = _followed(model, [*parts.before, *layers, *parts.after])
    if [part for part in called if part in layers] != layers:
        raise ModelError(f"{name} cannot be cut into stages: it does not run each of {parts.layers} once, in order")
    early = list(dict.fromkeys(called[: called.index(f"{parts.layers}.0")]))
    late = list(dict.fromkeys(called[called.index(last) + 1 :]))
    twice = [part for part in early if part in late]
    if twice or not early:
        what = f"{twice[0]} runs before and after its layers" if twice else "nothing runs before its layers"
        raise ModelError(f"{name} cannot be cut into stages: {what}")
    idle = [part for part in (*parts.before, *parts.after) if part not in called]
    return Parts(parts.base, tuple(early), parts.layers, (*idle, *late))


class _Anything(TorchFunctionMode):
    """Answers every question about a number with yes: on the meta device there are none."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__int__, torch.Tensor.__index__):
            return True if func is torch.Tensor.__bool__ else 1
        return func(*args, **(kwargs or {}))


_one_at_a_time = threading.Lock()
"""Threads of one process (loopback ranks) may cut the same model."""


def _followed(model: Any, watched: list[str]) -> list[str]:
    """Returns the order in which a forward on four ids calls the `watched` modules.

    On a twin without numbers where that works, else on the model itself, in eval mode and without gradients.
    """

    def run(followed: Any, device: torch.device) -> list[str]:
        called: list[str] = []
        hooks = [
            followed.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
            for name in watched
        ]
        training = followed.training
        try:
            with torch.no_grad():
                followed.eval()(**_example(followed, device))
        finally:
            followed.train(training)
            for hook in hooks:
                hook.remove()
        return called

    try:
        with torch.device("meta"), _Anything():
            return run(type(model)(model.config), torch.device("meta"))
    except Exception:  # whatever the model's own code raises where there are no numbers
        try:
            if next(model.parameters()).is_meta:  # no numbers there either, so its layers are passed by
                with torch.device("meta"), _Anything():
                    return run(_with_layers_passed(type(model)(model.config), watched), torch.device("meta"))
            with _one_at_a_time:
                return run(model, next(model.parameters()).device)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} declares no pipeline plan, and the forward that would show the order of its "
                f"parts failed: {type(error).__name__}: {error}"
            ) from error


def _example(model: Any, device: torch.device) -> dict[str, Any]:
    """Returns the smallest batch that a model takes: four ids, or one picture."""
    if model.main_input_name != "pixel_values":
        return {"input_ids": torch.ones(1, 4, dtype=torch.long, device=device), "use_cache": False}
    size = model.config.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    dtype = next(model.parameters()).dtype
    return {"pixel_values": torch.ones(1, model.config.num_channels, height, width, dtype=dtype, device=device)}


def _with_layers_passed(twin: Any, watched: list[str]) -> Any:
    """Returns `twin` with layers that give what they are given: experts choose by numbers, which are not there."""
    from penstock.models.hugging_face.stage import gives_tuple, hidden_of

    name = next(each for each in watched if each.endswith(".0")).removesuffix(".0")
    for layer in twin.get_submodule(name):
        kind: Any = type(layer)
        in_tuple = gives_tuple(kind)

        def forward(*args: Any, in_tuple: bool = in_tuple, **kwargs: Any) -> Any:
            hidden = hidden_of(args, kwargs)
            return (hidden,) if in_tuple else hidden

        layer.forward = forward
    return twin


def _check_cover(model: nn.Module, parts: Parts) -> None:
    named = (*parts.before, parts.layers, *parts.after)
    for name, _ in model.named_parameters():
        if not any(name == part or name.startswith(f"{part}.") for part in named):
            raise ModelError(
                f"{type(model).__name__} has the parameter {name} outside of {', '.join(named)}; which stage it "
                "belongs to is not known"
            )
