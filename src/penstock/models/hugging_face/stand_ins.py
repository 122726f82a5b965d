"""What stands in a stage's copy of a model for the parts of other stages."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from penstock.errors import BatchError

HIDDEN = "hidden_states"
"""The name by which layers are given the hidden states, and the key of a boundary under which these travel."""


class Reached(Exception):  # no error: the model's forward has come to the next stage's part
    """Carries what the next stage's first part is given out of the model's forward."""

    def __init__(self, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(f"reached {part}")
        self.part, self.arguments, self.keywords = part, args, kwargs


class Entering:
    """What has entered a stage of the microbatch under way.

    Attributes:
        hidden: the hidden states.
        size: how many values the layer that made them gives, as a tuple whose first they are; 0 for them alone.
    """

    hidden: Tensor
    size: int = 0


class Stop(nn.Module):
    """Stands for a part of a later stage: ends the forward."""

    def __init__(self, name: str, like: nn.Module) -> None:
        super().__init__()
        self._part = name
        _imitate(self, like)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises what carries the part's arguments out of the model's forward."""
        raise Reached(self._part, args, kwargs)


class Pass(nn.Module):
    """Stands for a layer of an earlier stage, or for what follows the layers: gives what came from there."""

    def __init__(self, entering: Entering, like: nn.Module, *, layer: bool) -> None:
        super().__init__()
        self._entering, self._layer = entering, layer
        _imitate(self, like)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the hidden states that entered, in the form that the part has."""
        return in_form(self._entering.hidden, self._entering.size if self._layer else 0)


class Blank(nn.Module):
    """Stands for an embedding of an earlier stage: in its shape and type, with numbers that nobody should read.

    They are NaN: where one is read after all, the loss shows it.
    """

    def __init__(self, entering: Entering, like: nn.Module) -> None:
        super().__init__()
        self._width: int | None = getattr(like, "embedding_dim", getattr(like, "out_features", None))
        self._looks_up, self._maps = isinstance(like, nn.Embedding), isinstance(like, nn.Linear)
        self._entering = entering
        _imitate(self, like)
        for name, child in like.named_children():  # which a model may ask for the type of its weight
            self.add_module(name, Outline(child))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns NaN in the shape that the embedding's output has."""
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        hidden, width = self._entering.hidden, self._width
        nothing = hidden.new_full((), math.nan)
        if given is None:  # a table of positions that is asked for as many as there are
            return nothing.expand(hidden.shape)
        if self._looks_up and width is not None:
            return nothing.expand(*given.shape, width)
        if self._maps and width is not None:
            return nothing.expand(*given.shape[:-1], width)
        if width is None and given.dim() == hidden.dim():
            return given  # a norm or a dropout on the embedding
        if given.dim() > hidden.dim():
            return nothing.expand(hidden.shape)  # of pictures
        rows = given.shape if given.dim() < hidden.dim() else given.shape[:-1]
        return nothing.expand(*rows, width or hidden.shape[-1])


class Outline(nn.Module):
    """Stands for a part of an embedding of an earlier stage, which is not called."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        _imitate(self, like)
        for name, child in like.named_children():
            self.add_module(name, Outline(child))


def _imitate(stand_in: nn.Module, like: nn.Module) -> None:
    """Gives a stand-in what a model's forward may look at: attention_type, layer_idx, …, and its weight, of NaN."""
    for name, value in vars(like).items():
        if name not in stand_in.__dict__ and not name.startswith("_"):
            setattr(stand_in, name, value)
    weight = getattr(like, "weight", None)
    if isinstance(weight, Tensor):
        nothing = weight.detach().new_full((), math.nan if weight.is_floating_point() else 0)
        vars(stand_in)["weight"] = nothing.expand(weight.shape)  # one number, whatever the shape


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Returns the hidden states among the arguments of a part.

    Raises:
        BatchError: there are none.
    """
    hidden = kwargs.get(HIDDEN, args[0] if args else None)
    if not isinstance(hidden, Tensor):
        raise BatchError("the next stage's first part is given no tensor of hidden states; cut elsewhere")
    return hidden


def in_form(hidden: Tensor, size: int) -> Any:
    """Returns hidden states as a layer gives them: alone, or first of a tuple of `size`."""
    return (hidden, *[None] * (size - 1)) if size else hidden


_one_parser = threading.Lock()
"""Python's parser counts its depth for all threads together: two at a time (loopback ranks) may fail."""


@cache
def tuple_size(layer: Any) -> int:
    """Returns how many values a kind of layer gives as a tuple, 0 for one that gives no tuple: by its code.

    The last thing that its forward returns tells: what it is, or is made as. Annotations do not: many classes promise a
    tuple and give a tensor.
    """
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(layer.forward)))
    with _one_parser:
        nodes = list(ast.walk(ast.parse(source)))
    returns = [node.value for node in nodes if isinstance(node, ast.Return) and node.value is not None]
    last = max(returns, key=lambda value: value.lineno, default=None)
    if not isinstance(last, ast.Name):
        return _size(last)
    made = [
        node.value
        for node in nodes
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == last.id for to in node.targets)
    ]
    return max(map(_size, made), default=0)


def _size(value: ast.expr | None) -> int:
    """Returns how many values an expression makes a tuple of, as far as it shows them."""
    if isinstance(value, ast.BinOp):  # (hidden_states,) + …
        return _size(value.left)
    return len(value.elts) if isinstance(value, ast.Tuple) else 0
