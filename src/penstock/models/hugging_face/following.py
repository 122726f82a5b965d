"""The order in which a model's forward comes to its parts: by running it once on the smallest batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from penstock.errors import ModelError
from penstock.models.hugging_face.beside import slots
from penstock.models.hugging_face.stand_ins import HIDDEN, hidden_of, in_form, tuple_size


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


class Followed(NamedTuple):
    """What a forward has shown.

    Attributes:
        called: names of modules in the order of their calls.
        read: places or names of arguments that need a gradient: parts have made them.
    """

    called: list[str]
    read: frozenset[str]


def followed(model: Any, watched: Sequence[str], *, layers: Sequence[str]) -> Followed:
    """Returns the order in which a forward calls the `watched` modules, and what it gives layers.

    On a twin without numbers where that works, else on the model itself, in eval mode.

    Args:
        model: left as it is.
        watched: names of modules.
        layers: names of lists of layers, which are passed by where a model without numbers cannot run them.

    Raises:
        ModelError: the forward fails.
    """
    try:
        with torch.device("meta"), _Anything():
            return _called(type(model)(model.config), watched, layers, torch.device("meta"))
    except Exception:  # whatever the model's own code raises where there are no numbers
        try:
            if next(model.parameters()).is_meta:  # no numbers there either, so its layers are passed by
                with torch.device("meta"), _Anything():
                    twin = _with_layers_passed(type(model)(model.config), layers)
                    return _called(twin, watched, layers, torch.device("meta"))
            with _one_at_a_time:
                return _called(model, watched, layers, next(model.parameters()).device)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} declares no pipeline plan for all its parts, and the forward that would show "
                f"their order failed: {type(error).__name__}: {error}"
            ) from error


def _called(model: Any, watched: Sequence[str], layers: Sequence[str], device: torch.device) -> Followed:
    called: list[str] = []
    read: set[str] = set()

    def note(name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        called.append(name)
        if name.rpartition(".")[0] in layers:
            read.update(slot for slot, value in slots(args, kwargs) if getattr(value, "requires_grad", False))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(note, name), with_kwargs=True) for name in watched
    ]
    training = model.training
    try:
        with torch.enable_grad():
            model.eval()(**_example(model, device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Followed(called, frozenset(read - {HIDDEN}))


def _example(model: Any, device: torch.device) -> dict[str, Any]:
    """Returns the smallest batch that a model takes: four ids, or one picture."""
    if model.main_input_name != "pixel_values":
        ids = torch.tensor([[1, 1, 1, _end_of(model.config)]], device=device)
        more = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
        return {"input_ids": ids, "use_cache": False, **more}
    size = model.config.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    dtype = next(model.parameters()).dtype
    return {"pixel_values": torch.ones(1, model.config.num_channels, height, width, dtype=dtype, device=device)}


def _end_of(config: Any) -> int:
    """Returns the id that ends a text, which some heads look for."""
    end, size = getattr(config, "eos_token_id", None), getattr(config, "vocab_size", 0)
    return end if isinstance(end, int) and isinstance(size, int) and end < size else 1


def _with_layers_passed(twin: Any, layers: Sequence[str]) -> Any:
    """Returns `twin` with layers that give what they are given: experts choose by numbers, which are not there."""
    for layer in (each for name in layers for each in twin.get_submodule(name)):
        kind: Any = type(layer)
        size = tuple_size(kind)
        layer.forward = lambda *args, size=size, **kwargs: in_form(hidden_of(args, kwargs), size)
    return twin
