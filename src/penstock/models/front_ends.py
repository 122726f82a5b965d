"""Which front-end cuts which kind of model. A new one is a row in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from penstock.errors import ModelError
from penstock.models.cut import CutModel
from penstock.models.hugging_face import Directory, from_directory, from_hugging_face, is_hugging_face
from penstock.models.layers import from_layers
from penstock.models.traced import from_module

FRONT_ENDS: dict[tuple[type, ...], Callable[[Any], CutModel]] = {
    (CutModel,): lambda model: model,
    (Directory,): from_directory,
    (nn.Sequential, nn.ModuleList, list, tuple): from_layers,
    (nn.Module,): from_module,
}
"""Kinds of model -> the function that gives their layers; the first row that fits is taken."""


def cut(model: Any) -> CutModel:
    """Returns `model` as named layers, by the front-end that knows its type.

    Raises:
        ModelError: no front-end can cut it; the message says what can be cut.
    """
    if is_hugging_face(model):
        return from_hugging_face(model)
    if isinstance(model, nn.Sequential) and type(model).forward is not nn.Sequential.forward:
        return from_module(model)
    for kinds, front_end in FRONT_ENDS.items():
        if isinstance(model, kinds):
            return front_end(model)
    raise ModelError(
        f"a {type(model).__name__} cannot be cut into stages; give an nn.Sequential or a list of modules, each of "
        "which takes what the one before returns, a Hugging Face model, or a module whose forward calls others"
    )
