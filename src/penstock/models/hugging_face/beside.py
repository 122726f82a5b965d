"""What layers are given beside the hidden states and other layers have made: it travels with them.

    stage 0   layer 0 ─ layer 1 ─┤  hidden states, {"position_bias": …}       what layer 2 would have been given
    stage 1                      ├─ layer 2 ─ layer 3 ─ …                     is put into its arguments

Which arguments these are is seen where the forward stops: what the last layer has given beside its hidden states, what
came in with the boundary and is handed on, what needs a gradient (or did where the model was followed), and what layers
put into a common dictionary. What a
stage's own code works out from ids and masks does not travel.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

BESIDE = "beside"
"""The key of a boundary under which these values travel, each by the place or name of the argument."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Beside:
    """The values beside the hidden states in one stage, of the microbatch under way.

    Args:
        layers: this stage's, in order; hooks are put on them.
        read: places or names of arguments that other parts have made.
        by_gradient: whether others that need a gradient travel too: all but results that travel by themselves.
    """

    def __init__(self, layers: Sequence[nn.Module], *, read: frozenset[str], by_gradient: bool) -> None:
        self._read, self._by_gradient = read, by_gradient
        self._running = False
        self._entered: dict[str, Any] = {}
        self._instead: list[tuple[Tensor, Tensor]] = []
        self._made: list[Tensor] = []
        self.output: Tensor | None = None
        self.size = 0
        for place, layer in enumerate(layers):
            hook = self._enter if place == 0 else self._put
            layer.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        if layers:
            layers[-1].register_forward_hook(self._note)

    def begin(self, entered: Mapping[str, Any]) -> None:
        """Starts a microbatch with what came from the stage before."""
        self._entered, self._running = dict(entered), True

    def end(self) -> None:
        """Ends it; what runs later, such as a recomputed forward, is given what it was given before."""
        self._running = False
        self._entered, self._instead, self._made = {}, [], []
        self.output, self.size = None, 0

    def leaving(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, known: Sequence[Tensor]) -> dict[str, Any]:
        """Returns which of a layer's arguments travel to its stage.

        Args:
            args: what the next stage's first layer would have been given.
            kwargs: likewise.
            known: tensors that travel anyway.
        """
        found: dict[str, Any] = {}
        for slot, given in slots(args, kwargs):
            value = next((value for stand_in, value in self._instead if given is stand_in), given)
            if isinstance(value, UserDict) and value:
                found[slot] = dict(value)
            elif isinstance(value, Tensor) and not _among(value, known) and self._travels(slot, value):
                found[slot] = value
        return found

    def _travels(self, slot: str, value: Tensor) -> bool:
        return slot in self._read or _among(value, self._made) or (self._by_gradient and value.requires_grad)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Puts what entered into the arguments of this stage's first layer."""
        if not self._running or not self._entered:
            return None
        given = dict(slots(args, kwargs))
        for slot, value in self._entered.items():
            place = given.get(slot)
            if isinstance(place, UserDict):
                place.update(value)
                continue
            self._made.append(value)
            if isinstance(place, Tensor):
                self._instead.append((place, value))
        return _with(args, kwargs, {slot: value for slot, value in self._entered.items() if isinstance(value, Tensor)})

    def _put(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Puts the same into a later layer's arguments where the model gives all layers the same tensor."""
        if not self._instead:
            return None
        found = {
            slot: value for slot, given in slots(args, kwargs) for stand_in, value in self._instead if given is stand_in
        }
        return _with(args, kwargs, found) if found else None

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        """Notes what the last layer gives."""
        if not self._running:
            return
        if isinstance(output, tuple | list):
            self.output, self.size = output[0], len(output)
            self._made += [each for each in output[1:] if isinstance(each, Tensor)]
        else:
            self.output = output


def slots(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields place or name of each argument but the first, and its value."""
    yield from ((str(place), value) for place, value in enumerate(args) if place)
    yield from kwargs.items()


def _with(args: tuple[Any, ...], kwargs: dict[str, Any], values: Mapping[str, Any]) -> Arguments:
    """Returns arguments with some replaced, by place or name."""
    places = [values.get(str(place), value) for place, value in enumerate(args)]
    return tuple(places), kwargs | {slot: value for slot, value in values.items() if not slot.isdigit()}


def _among(value: Tensor, tensors: Sequence[Tensor]) -> bool:
    return any(value is each for each in tensors)
