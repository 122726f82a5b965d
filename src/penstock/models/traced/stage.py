"""One stage of a followed model: its units' code, run on the values that are alive."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penstock.errors import BatchError
from penstock.models.cut import LayerContext
from penstock.models.traced.units import Program, UnitCode


@dataclass(frozen=True)
class Followed:
    """A model whose forward has been recorded.

    Attributes:
        model: it is left as it is.
        arguments: names of its forward's arguments, in order.
        names: the units'.
        programs: training -> the code of all units in this mode.
        constants: tensors that the code brings along.
    """

    model: nn.Module
    arguments: tuple[str, ...]
    names: tuple[str, ...]
    programs: Mapping[bool, Program]
    constants: Mapping[str, Tensor]


class _Branch(nn.Module):
    """A name on the way to a module of this stage."""


class TracedStage(nn.Module):
    """A stage: takes the batch (the first) or a boundary, gives a boundary or (the last) what the model gives.

    A boundary is the one value that is alive there, or a dict of all of them by name. Parameters carry their names in
    the model.

    Args:
        followed: the whole model.
        first_unit: number of the first unit.
        num_units: how many there are in this stage.
    """

    def __init__(self, followed: Followed, first_unit: int, num_units: int) -> None:
        super().__init__()
        self.surrounding: LayerContext | None = None
        self._units = range(first_unit, first_unit + num_units)
        self._is_last = self._units.stop == len(followed.names)
        self._arguments = followed.arguments
        self._model = type(followed.model).__name__
        self._programs = followed.programs
        reads = {name for each in followed.programs.values() for at in self._units for name in each.units[at].reads}
        order = {name: place for place, name in enumerate(_names(followed.model))}
        # A module before what is read of it; and alike in every process, for replicas exchange gradients in this order.
        for name in sorted(reads, key=lambda name: (order.get(name, -1), name)):
            if name in followed.constants:
                self.register_buffer(name, followed.constants[name], persistent=False)
            else:
                _place(self, followed.model, name)
        self.training = followed.model.training

    def forward(self, value: Any) -> Any:
        """Returns the boundary to the next stage, or on the last what the model gives.

        Raises:
            BatchError: a batch that does not fit the forward's arguments.
        """
        program = self._programs[self.training]
        alive = self._given(value) if self._units.start == 0 else self._entered(program, value)
        for at in self._units:
            unit = program.units[at]
            with self.surrounding(at) if self.surrounding else nullcontext():
                result = self._run(unit, alive, kept=program.alive[at + 1])
            if self._is_last and at + 1 == self._units.stop:
                return result
            alive.update(zip(unit.gives, result, strict=True))
        return self._leaving(program, alive)

    def _run(self, unit: UnitCode, alive: dict[str, Any], *, kept: Sequence[str]) -> Any:
        given = [alive[name] for name in unit.takes]
        for name in [name for name in alive if name not in kept]:
            del alive[name]  # so that the unit's code holds the last reference
        return unit.run(self, *given)

    def _given(self, value: Any) -> dict[str, Any]:
        """Returns the batch as the arguments of the model's forward, by name."""
        names = self._arguments
        if isinstance(value, Mapping) and set(value) == set(names):
            return dict(value)
        if len(names) == 1 and not (isinstance(value, Mapping) and names[0] in value):
            return {names[0]: value}
        if isinstance(value, tuple | list) and len(value) == len(names):
            return dict(zip(names, value, strict=True))
        what = f"the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else _counted(value)
        raise BatchError(
            f"{self._model} was followed with the arguments {', '.join(names)}, and inputs have {what}; give a dict or "
            "a tuple of these, or name others: penstock.models.from_module(model, arguments=[…])"
        )

    def _entered(self, program: Program, value: Any) -> dict[str, Any]:
        names = program.alive[self._units.start]
        alive = {names[0]: value} if len(names) == 1 else dict(value)
        tensors = [each for each in alive.values() if isinstance(each, Tensor)]
        for name in names:
            kind = program.kinds.get(name)
            if kind == "dtype":
                alive[name] = getattr(torch, alive[name])
            elif kind == "device":  # this rank's own
                alive[name] = tensors[0].device if tensors else torch.device(alive[name])
        return alive

    def _leaving(self, program: Program, alive: Mapping[str, Any]) -> Any:
        names = program.alive[self._units.stop]
        values = {name: _plain(alive[name]) for name in names}
        return values[names[0]] if len(names) == 1 else values


def _names(model: nn.Module) -> Iterator[str]:
    """Yields the names of all modules, parameters and buffers, as the model declares them."""
    for named in (model.named_modules(remove_duplicate=False), model.named_parameters(), model.named_buffers()):
        yield from (name for name, _ in named)


def _plain(value: Any) -> Any:
    """Returns a value as it can travel."""
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, torch.device) else value


def _counted(value: Any) -> str:
    return f"{len(value)} items" if isinstance(value, tuple | list) else f"one {type(value).__name__}"


def _place(stage: nn.Module, model: nn.Module, name: str) -> None:
    """Puts the module, parameter or buffer `name` of the model under its name into a stage."""
    *path, leaf = name.split(".")
    here: nn.Module = stage
    for step in path:
        if step not in here._modules:
            here.add_module(step, _Branch())
        here = here.get_submodule(step)
    if not isinstance(here, _Branch | TracedStage):
        return  # lies in a module that is there
    owner = model.get_submodule(".".join(path))
    if leaf in owner._modules:
        module = model.get_submodule(name)
        stateless = next(module.parameters(), None) is None and next(module.buffers(), None) is None
        # A stage has its own: two stages in one process (loopback ranks) may be in different modes.
        here.add_module(leaf, copy.deepcopy(module) if stateless else module)
    elif leaf in owner._parameters:
        here.register_parameter(leaf, owner._parameters[leaf])
    else:
        here.register_buffer(leaf, owner._buffers[leaf], persistent=leaf not in owner._non_persistent_buffers_set)


def required_arguments(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the forward's arguments that have no default."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(
        name
        for name, each in inspect.signature(model.forward).parameters.items()
        if each.default is inspect.Parameter.empty and each.kind not in several
    )
