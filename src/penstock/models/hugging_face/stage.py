"""One stage of a Hugging Face model: a shell of it that holds this stage's parts and stand-ins for the others."""

from __future__ import annotations

import ast
import inspect
import textwrap
import threading
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from functools import cache
from typing import Any

from torch import Tensor, nn

from penstock.errors import BatchError
from penstock.models.cut import LayerContext
from penstock.models.hugging_face.plan import Parts
from penstock.models.hugging_face.routers import ROUTERS, Routers, wants_routers

HIDDEN = "hidden_states"
"""The key of a boundary under which the hidden states travel; what the model was called with travels beside them."""

UNCACHED = {"use_cache": False}
"""A training forward keeps no cache: it would tie layers of different stages together."""


_OUTSIDE = -1
"""Keys what the model's forward draws between its parts, such as a dropout on the sum of two embeddings.

Every stage runs that forward from its start, so that these numbers come in one order on all of them."""


_STAYS = ("inputs_embeds", "output_router_logits")
"""Arguments of the model that do not travel."""


class _Reached(Exception):  # no error: the model's forward has come to the next stage's part
    def __init__(self, hidden: Tensor) -> None:
        super().__init__("reached the next stage")
        self.hidden = hidden


class _Stop(nn.Module):
    """Stands for the first part of the next stage: ends the forward with what that part is given."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        _imitate(self, like)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises what carries the hidden states out of the model's forward."""
        raise _Reached(hidden_of(args, kwargs))


class _Pass(nn.Module):
    """Stands for a layer of an earlier stage: gives the hidden states that came from there."""

    def __init__(self, entering: list[Tensor], like: Any) -> None:
        super().__init__()
        self._entering = entering
        kind: Any = type(like)
        self._gives_tuple = gives_tuple(kind)
        _imitate(self, like)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the hidden states that entered, in the form that the layer has."""
        return (self._entering[0],) if self._gives_tuple else self._entering[0]


class _Blank(nn.Module):
    """Stands for an embedding of an earlier stage: numbers that nobody reads, in its shape and type."""

    def __init__(self, like: nn.Module, entering: list[Tensor]) -> None:
        super().__init__()
        self._width = getattr(like, "embedding_dim", getattr(like, "out_features", None))
        self._entering = entering
        _imitate(self, like)
        for name, child in like.named_children():  # which a model may ask for the type of its weight
            self.add_module(name, _Outline(child))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns zeros of the shape that the embedding's output has."""
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        hidden = self._entering[0]
        if self._width is None and given.dim() == hidden.dim():
            return given  # a norm or a dropout on the embedding
        if given.dim() > hidden.dim():
            return hidden.new_zeros(()).expand(hidden.shape)  # of pictures
        rows = given.shape if given.dim() < hidden.dim() else given.shape[:-1]
        return hidden.new_zeros(()).expand(*rows, self._width or hidden.shape[-1])


class _Outline(nn.Module):
    """Stands for a part of an embedding of an earlier stage, which is not called."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        _imitate(self, like)
        for name, child in like.named_children():
            self.add_module(name, _Outline(child))


def _imitate(stand_in: nn.Module, like: nn.Module) -> None:
    """Gives a stand-in what a model's forward may look at: attention_type, layer_idx, …, and its weight's type."""
    for name, value in vars(like).items():
        if name not in stand_in.__dict__ and not name.startswith("_"):
            setattr(stand_in, name, value)
    weight = getattr(like, "weight", None)
    if isinstance(weight, Tensor):
        vars(stand_in)["weight"] = weight.detach().new_empty(0)


class HuggingFaceStage(nn.Module):
    """A stage: takes ids (the first) or a boundary, gives a boundary or (the last) what the model gives.

    Args:
        model: the whole model; it is left as it is.
        parts: the names of its parts.
        units: names of the parts that this stage runs, layers one by one.
        first_unit: the place of the first of them among all units of the model.
    """

    _shell: Any

    def __init__(self, model: Any, parts: Parts, *, units: Mapping[str, nn.Module], first_unit: int) -> None:
        super().__init__()
        self.surrounding: LayerContext | None = None
        self._entering: list[Tensor] = []
        self._units = list(units)
        self._main = model.main_input_name
        order = parts.order(model)
        self._is_first, self._is_last = order[0] in units, order[-1] in units
        shell: Any = _shell(model, parts.base)
        _replace(shell, parts.layers, nn.ModuleList(shell.get_submodule(parts.layers)))  # of its own, for stand-ins
        self._put(shell, parts, units)
        for name, child in shell._modules.items():
            self.add_module(name, child)  # so that parameters carry their names in the model
        shell.__dict__["_modules"] = self._modules  # one table: who replaces a part replaces it for the forward too
        object.__setattr__(self, "_shell", shell)  # no submodule: its parts are this module's
        self._open = ExitStack()
        self._running = False
        for place, name in enumerate(self._units, start=first_unit):
            self._key_random_numbers(self.get_submodule(name), place)
        if not self._is_first:
            self.get_submodule(self._units[0]).register_forward_pre_hook(self._enter, with_kwargs=True)
        inner = shell.get_submodule(parts.base)
        self._routers = (
            Routers(model, inner, {name: self.get_submodule(name) for name in units}) if wants_routers(model) else None
        )

    def _put(self, shell: nn.Module, parts: Parts, units: Mapping[str, nn.Module]) -> None:
        """Puts stand-ins into the shell for the parts that this stage does not run, by their place in the model."""
        order = parts.order(shell)
        first, last = order.index(next(iter(units))), order.index(list(units)[-1])
        for place, name in enumerate(order):
            part = shell.get_submodule(name)
            if place > last:
                _replace(shell, name, _Stop(part))
            elif place < first:
                embeds = name in parts.before
                _replace(shell, name, _Blank(part, self._entering) if embeds else _Pass(self._entering, part))

    def _key_random_numbers(self, module: nn.Module, place: int) -> None:
        def enter(*_: Any) -> None:
            if self._running and self.surrounding is not None:
                self._open.enter_context(self.surrounding(place))

        def leave(*_: Any) -> None:
            if self._running:
                self._open.close()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Gives the first part of this stage the hidden states that entered, whatever stands before it made."""
        if not self._running:
            return None
        if HIDDEN in kwargs:
            return args, kwargs | {HIDDEN: self._entering[0]}
        return (self._entering[0], *args[1:]), kwargs

    def forward(self, value: Any) -> Any:
        """Returns the boundary to the next stage, or on the last the model's logits.

        Args:
            value: ids, or a dict of the model's own arguments; after the first stage the boundary.
        """
        if self._is_first:
            call = dict(value) if isinstance(value, Mapping) else {self._main: value}
            _check_call(call)
        else:
            call = dict(value)
            self._entering.append(call.pop(HIDDEN))
        entered = call.pop(ROUTERS, ())
        if self._routers is not None:
            self._routers.begin(entered)
            call["output_router_logits"] = self._is_last  # of other stages nobody would see them
        travels = {name: each for name, each in call.items() if name not in _STAYS}
        self._shell.training = self.training
        self._running = True
        try:
            with nullcontext() if self.surrounding is None else self.surrounding(_OUTSIDE):
                output = self._shell(**call, **UNCACHED)
        except _Reached as reached:
            routed = {} if self._routers is None else {ROUTERS: self._routers.seen}
            return {HIDDEN: reached.hidden, **routed, **travels}
        finally:
            self._running = False
            self._open.close()
            self._entering.clear()
            if self._routers is not None:
                self._routers.end()
        if self._routers is not None:
            return self._routers.result(output)
        return output.logits if hasattr(output, "logits") else output[0]


_one_parser = threading.Lock()
"""Python's parser counts its depth for all threads together: two at a time (loopback ranks) may fail."""


@cache
def gives_tuple(layer: Any) -> bool:
    """Returns whether a kind of layer gives a tuple: whether the last thing its forward returns is made as one.

    Annotations do not tell: many classes promise a tuple and give a tensor.
    """
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(layer.forward)))
    with _one_parser:
        nodes = list(ast.walk(ast.parse(source)))
    returns = [node.value for node in nodes if isinstance(node, ast.Return) and node.value is not None]
    last = max(returns, key=lambda value: value.lineno, default=None)
    if not isinstance(last, ast.Name):
        return isinstance(last, ast.Tuple)
    made = [
        node.value
        for node in nodes
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == last.id for to in node.targets)
    ]
    return any(isinstance(value, ast.Tuple) for value in made)


def _check_call(call: dict[str, Any]) -> None:
    foreign = [
        name
        for name in ("labels", "past_key_values", "use_cache", "output_router_logits")
        if call.get(name) is not None
    ]
    if foreign:
        raise BatchError(
            f"inputs hold {foreign[0]}; a pipeline computes the loss by its loss_fn from targets and keeps no cache: "
            "give input_ids, attention_mask, position_ids"
        )


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Returns the hidden states among the arguments of a part.

    Raises:
        BatchError: there are none.
    """
    hidden = kwargs.get(HIDDEN, args[0] if args else None)
    if not isinstance(hidden, Tensor):
        raise BatchError("the next stage's first part is given no tensor of hidden states; cut elsewhere")
    return hidden


def _shell(model: nn.Module, base: str) -> nn.Module:
    """Returns a copy of the model, and of what is in it down to its inner model, that share all parts with them."""
    shell = inner = _copied(model)
    for name in filter(None, base.split(".")):
        inner._modules[name] = _copied(inner.get_submodule(name))
        inner = inner.get_submodule(name)
    return shell


def _copied(module: nn.Module) -> nn.Module:
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    for table in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[table] = dict(getattr(module, table))
    return twin


def _replace(shell: nn.Module, name: str, stand_in: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    shell.get_submodule(path)._modules[leaf] = stand_in
