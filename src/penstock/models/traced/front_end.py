"""From any module to units that a partition distributes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from penstock.errors import ModelError, nearest
from penstock.models.cut import CutModel
from penstock.models.filling import fill, on_meta, private
from penstock.models.traced.blocks import Blocks, is_bare, opened
from penstock.models.traced.recording import record
from penstock.models.traced.stage import Followed, TracedStage, required_arguments
from penstock.models.traced.units import anchors_of, names_of, program_of


def from_module(model: nn.Module, *, arguments: Sequence[str] | None = None, blocks: Blocks | None = None) -> CutModel:
    """Returns the units of a module: each call of a block, and what the forward computes after it.

    A model on the meta device stays there; of a copy of it each rank fills its own stages.

    The forward is followed without numbers, once for training and once for eval mode. Blocks run as they are. What
    stands between them must not depend on values; sizes, skips, tuples and dicts are followed.

    Args:
        model: any module whose forward calls other modules; it stays as it is.
        arguments: names of the forward's arguments that batches have; None for those without a default. Others keep
            their defaults.
        blocks: names, regular expressions of names, or classes of the modules that are not opened; None for the items
            of lists and whatever stands beside them.

    Raises:
        ModelError: a forward that cannot be followed, nothing to cut, or a parameter that the forward does not use.
    """
    _check_bare(model)
    names = tuple(required_arguments(model)) if arguments is None else _checked(model, arguments)
    if not names:
        raise ModelError(
            f"the forward of {type(model).__name__} needs no argument; name those that batches have: "
            "penstock.models.from_module(model, arguments=[…])"
        )
    if on_meta(model):
        model = private({"": model})[""]
        return replace(_units(model, names, blocks), fill=partial(_fill, model))
    return _units(model, names, blocks)


def _units(model: nn.Module, names: tuple[str, ...], blocks: Blocks | None) -> CutModel:
    into = opened(model, blocks)
    training, into = record(model, names, opened=into, training=True)
    evaluating, now = record(model, names, opened=into, training=False)
    if now != into:
        training, _ = record(model, names, opened=now, training=True)
    units = names_of(anchors_of(training, model))
    if not units:
        raise ModelError(
            f"a {type(model).__name__} cannot be cut into stages: its forward calls no module with parameters; give an "
            "nn.Sequential or a list of modules"
        )
    followed = Followed(
        model,
        names,
        tuple(units),
        {True: program_of(training, model, units), False: program_of(evaluating, model, units)},
        training.constants | evaluating.constants,
    )
    _check_cover(followed)
    _check_repeated(model, units)
    layers = {name: model.get_submodule(name.partition("#")[0]) for name in units}
    return CutModel(layers, assemble=partial(_stage, followed), unsplit=partial(_unsplit, model, names))


def _fill(model: nn.Module, stages: Sequence[nn.Module], seed: int | None) -> None:
    fill({"": model}, stages, seed=seed)


def _stage(followed: Followed, units: Mapping[str, nn.Module], first_unit: int) -> TracedStage:
    return TracedStage(followed, first_unit, len(units))


def _check_bare(model: nn.Module) -> None:
    """Refuses a model with something around its forward, which no stage would run."""
    if not is_bare(model):
        what = "hooks" if "forward" not in vars(model) else "a compiled or replaced forward"
        raise ModelError(
            f"{type(model).__name__} has {what} as a whole, and its stages would not run it; compile its blocks "
            "instead, or put hooks on them"
        )


def _checked(model: nn.Module, arguments: Sequence[str]) -> tuple[str, ...]:
    known = list(inspect.signature(model.forward).parameters)
    for name in arguments:
        if name not in known:
            raise ModelError(
                f"arguments={list(arguments)}: the forward of {type(model).__name__} has no {name!r}."
                f"{nearest(name, known)} It has {', '.join(known)}"
            )
    missing = [name for name in required_arguments(model) if name not in arguments]
    if missing:
        raise ModelError(f"arguments={list(arguments)}: the forward of {type(model).__name__} needs {missing[0]} too")
    return tuple(arguments)


def _check_cover(followed: Followed) -> None:
    """Refuses parameters that no unit runs: no stage would hold them."""
    held: set[int] = set()
    for parameter in TracedStage(followed, 0, len(followed.names)).parameters():
        held.add(id(parameter))
    for name, parameter in followed.model.named_parameters():
        if id(parameter) not in held:
            raise ModelError(
                f"the forward of {type(followed.model).__name__} does not use {name}, so no stage would hold it; take "
                "it out of the model, e.g. set its module to None"
            )


def _check_repeated(model: nn.Module, units: Sequence[str]) -> None:
    """Refuses a module that runs twice and counts what it sees: two stages would count apart."""
    for name in units:
        path, _, number = name.partition("#")
        if number and any(
            isinstance(each, _NormBase) and each.track_running_stats for each in model.get_submodule(path).modules()
        ):
            raise ModelError(
                f"{type(model).__name__} calls {path} {number} times, and it keeps running statistics, which two "
                "stages would keep apart; give each call a module of its own, or track_running_stats=False"
            )


def _unsplit(model: nn.Module, arguments: Sequence[str], value: Any) -> Any:
    """Returns what the model itself makes of a microbatch that is given as a pipeline takes it."""
    if isinstance(value, Mapping) and set(value) == set(arguments):
        return model(**value)
    return model(*value) if len(arguments) > 1 else model(value)
