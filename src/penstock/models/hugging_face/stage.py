"""One stage of a Hugging Face model: a shell of it that holds this stage's parts and stand-ins for the others."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from penstock.models.cut import LayerContext
from penstock.models.hugging_face.beside import BESIDE, Beside
from penstock.models.hugging_face.call import UNCACHED, call_of
from penstock.models.hugging_face.classes import COMPUTED, EMBEDDED
from penstock.models.hugging_face.parts import Parts
from penstock.models.hugging_face.routers import ROUTERS, Routers, wants_routers
from penstock.models.hugging_face.shell import replace_part, shell_of
from penstock.models.hugging_face.stand_ins import HIDDEN, Blank, Entering, Pass, Reached, Stop, hidden_of

ENCODED = "encoder_outputs"
"""The key under which an encoder's output travels to the decoder's stages, and the argument that takes it."""

_SIZE = "size"
"""The key under which travels how many values a layer gives, where they are a tuple."""

_COMPUTED = "computed"
"""The key under which results of the model's own methods travel."""

_OUTSIDE, _ENCODING = -1, -2
"""Key what the model's forward draws between its parts, such as a dropout on the sum of two embeddings.

Every stage runs that forward from its start, so that these numbers come in one order on all of them. Stages of a
decoder leave out the encoder, whose numbers have a key of their own."""

_STAYS = ("inputs_embeds", "output_router_logits", ENCODED)
"""Arguments of the model that do not travel."""


class HuggingFaceStage(nn.Module):
    """A stage: takes ids (the first) or a boundary, gives a boundary or (the last) what the model gives.

    A boundary is a dict of the hidden states, of what layers are given beside them, of the encoder's output where there
    is one, and of the arguments that the model was called with.

    Args:
        model: the whole model; it is left as it is.
        parts: the names of its parts.
        units: names of the parts that this stage runs, layers one by one.
    """

    _shell: Any

    def __init__(self, model: Any, parts: Parts, *, units: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.surrounding: LayerContext | None = None
        self._entering = Entering()
        self._encoded: list[Tensor] = []
        self._computed: dict[str, Any] = {}
        self._open = ExitStack()
        self._running = False
        order = parts.order(model)
        self._is_first, self._is_last = order[0] in units, order[-1] in units
        self._stays = (*_STAYS, *EMBEDDED.get(model.config.model_type, ()))
        self._layers = frozenset(name for each in parts.lists() for name in each.layer_names(model))
        self._starts = frozenset(name for each in parts.lists() for name in each.before)
        self._ends = frozenset(each.after[0] for each in parts.lists() if each.after)
        self._make_shell(model, parts, order, units)
        for place, name in enumerate(order):
            if name in units:
                self._key_random_numbers(self.get_submodule(name), place)
        self._watch(model, parts, units)

    def _make_shell(self, model: Any, parts: Parts, order: list[str], units: Mapping[str, nn.Module]) -> None:
        """Makes the copy of the model whose forward runs; its parts are this module's, under the same names."""
        shell: Any = shell_of(model, order)
        first, last = order.index(next(iter(units))), order.index(list(units)[-1])
        for place, name in enumerate(order):
            part = shell.get_submodule(name)
            if place > last:
                replace_part(shell, name, Stop(name, part))
            elif place < first and name in self._starts:
                replace_part(shell, name, Blank(self._entering, part))
            elif place < first:
                replace_part(shell, name, Pass(self._entering, part, layer=name in self._layers))
        for name, child in shell._modules.items():
            self.add_module(name, child)
        shell.__dict__["_modules"] = self._modules  # one table: who replaces a part replaces it for the forward too
        if self._is_last:  # what the model itself adds to its head's output
            self._buffers.update(shell._buffers)
            self._non_persistent_buffers_set = set(shell._non_persistent_buffers_set)
            shell.__dict__["_buffers"] = self._buffers
        object.__setattr__(self, "_shell", shell)  # no submodule: its parts are this module's

    def _watch(self, model: Any, parts: Parts, units: Mapping[str, nn.Module]) -> None:
        """Puts hooks where values enter and leave this stage."""
        first = next(iter(units))
        if first not in self._starts and first not in self._ends:  # what ends a list is given what its layers pass on
            self.get_submodule(first).register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
        methods = COMPUTED.get(model.config.model_type, ())
        layers = [self.get_submodule(name) for name in units if name in self._layers]
        self._beside = Beside(layers, read=frozenset() if methods else parts.read, by_gradient=not methods)
        inner = self._shell.get_submodule(parts.base)
        for name in methods:
            inner.__dict__[name] = partial(self._compute, inner, name)
        if parts.encoder is not None:
            encoder = self._shell.get_submodule(parts.encoder_root)
            encoder.__dict__["forward"] = partial(self._encode, encoder)
        own = {name: self.get_submodule(name) for name in units}
        self._routers = Routers(model, inner, own) if wants_routers(model) else None

    def _key_random_numbers(self, module: nn.Module, place: int) -> None:
        module.register_forward_pre_hook(partial(self._begin_draws, place))
        module.register_forward_hook(self._end_draws, always_call=True)

    def _begin_draws(self, place: int, *_: Any) -> None:
        if self._running and self.surrounding is not None:
            self._open.enter_context(self.surrounding(place))

    def _end_draws(self, *_: Any) -> None:
        if self._running:
            self._open.close()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Gives the first part of this stage the hidden states that entered, whatever stands before it made."""
        if not self._running:
            return None
        if HIDDEN in kwargs:
            return args, kwargs | {HIDDEN: self._entering.hidden}
        return (self._entering.hidden, *args[1:]), kwargs

    def _encode(self, encoder: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs the encoder's own forward and notes what the decoder's stages read."""
        with self._keyed(_ENCODING):
            output = type(encoder).forward(encoder, *args, **kwargs)
        self._encoded.append(output[0])
        return output

    def _compute(self, inner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """Runs a method of the inner model on the first stage; others have its result."""
        if name not in self._computed:
            self._computed[name] = getattr(type(inner), name)(inner, *args, **kwargs)
        made = self._computed[name]
        return made if isinstance(made, Tensor) else self._entering.hidden.new_full((), math.nan).expand(made)

    def _keyed(self, place: int) -> Any:
        return nullcontext() if self.surrounding is None else self.surrounding(place)

    def forward(self, value: Any) -> Any:
        """Returns the boundary to the next stage, or on the last the model's logits.

        Args:
            value: ids, or a dict of the model's own arguments; after the first stage the boundary.

        Raises:
            BatchError: arguments that a pipeline does not take.
        """
        call = call_of(self._shell, value) if self._is_first else dict(value)
        try:
            self._begin(call)
            travels = {name: each for name, each in call.items() if name not in self._stays}
            with self._keyed(_OUTSIDE):
                output = self._shell(**call, **UNCACHED)
        except Reached as reached:
            return self._leaving(reached) | travels
        finally:
            self._end()
        if self._routers is not None:
            return self._routers.result(output)
        return output.logits if hasattr(output, "logits") else output[0]

    def _begin(self, call: dict[str, Any]) -> None:
        """Takes what enters out of a boundary, which leaves the arguments of the model."""
        if HIDDEN in call:
            self._entering.hidden, self._entering.size = call.pop(HIDDEN), call.pop(_SIZE, 0)
        self._beside.begin(call.pop(BESIDE, {}))
        self._computed.update(call.pop(_COMPUTED, {}))
        if ENCODED in call:
            self._encoded.append(call[ENCODED])
            outputs: Any = sys.modules["transformers"].modeling_outputs
            call[ENCODED] = outputs.MoEModelOutput(last_hidden_state=self._encoded[0])
        if self._routers is not None:
            self._routers.begin(call.pop(ROUTERS, ()))
            call["output_router_logits"] = self._is_last  # of other stages nobody would see them
        self._shell.training = self.training
        self._running = True

    def _end(self) -> None:
        self._running = False
        self._open.close()
        self._entering.__dict__.clear()
        self._encoded.clear()
        self._computed.clear()
        self._beside.end()
        if self._routers is not None:
            self._routers.end()

    def _leaving(self, reached: Reached) -> dict[str, Any]:
        """Returns what enters the next stage beside the model's arguments."""
        left: dict[str, Any] = {}
        if reached.part not in self._starts:
            made = self._beside.output if reached.part in self._ends else None
            left[HIDDEN] = hidden_of(reached.arguments, reached.keywords) if made is None else made
            size = self._beside.size if self._beside.output is not None else self._entering.size
            left |= {_SIZE: size} if size else {}
        if reached.part in self._layers:
            known = [left[HIDDEN], *self._encoded]
            beside = self._beside.leaving(reached.arguments, reached.keywords, known=known)
            left |= {BESIDE: beside} if beside else {}
        if self._computed:  # who runs no layer is told the shape alone
            read = reached.part in self._layers
            left[_COMPUTED] = {name: each if read else list(each.shape) for name, each in self._computed.items()}
        if self._encoded:
            left[ENCODED] = self._encoded[0]
        return left | ({} if self._routers is None else {ROUTERS: self._routers.seen})
