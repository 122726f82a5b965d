"""Which layers are alike, and what each is given: the model's own boundaries on one example microbatch."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import nn

from penstock.errors import ModelError
from penstock.models import CutModel, Stage
from penstock.partition import Partition
from penstock.profiler.workbench import borrowed
from penstock.runtime.boundary import BoundarySpec
from penstock.runtime.stage_work import Boundary, StageWork, boundary_of

_PLACES = ("layer_idx", "layer_id", "layer_index", "layer_number", "idx", "index")
"""Attributes that only say where a layer stands."""

_PLAIN = (bool, int, float, str, type(None))


class Placed(NamedTuple):
    """A layer with what it is given.

    Attributes:
        kind: its number; equal for layers that cost the same.
        given: the boundary that enters it; of the first layer the microbatch.
        output: the spec of what it gives.
    """

    kind: int
    given: Boundary
    output: BoundarySpec


def single(model: CutModel, first: int, count: int = 1) -> Stage:
    """Returns the stage of `count` layers from layer `first` on."""
    last = model.num_layers - count - first
    sizes = [size for size in (first, count, last) if size]
    return model.stage(Partition.of_sizes(sizes), 1 if first else 0)


def placed_layers(model: CutModel, inputs: Any, device: torch.device | None = None) -> list[Placed]:
    """Returns for each layer its kind and its boundaries; a layer of each kind runs forward once.

    Layers are of one kind where class, parameters, plain attributes and what enters are alike. The first and the last
    are kinds of their own: no gradient leaves the one, and the loss follows the other.

    Args:
        model: as a front-end cuts it; left as it is.
        inputs: one microbatch.
        device: the meta device, to run without computing; None: where the model is.

    Raises:
        ModelError: a layer that cannot run on what the one before it gives.
    """
    kinds: dict[Hashable, tuple[int, Boundary]] = {}
    found = []
    given = boundary_of(inputs)
    for index, layer in enumerate(model.layers.values()):
        place = "first" if index == 0 else "last" if index == model.num_layers - 1 else "between"
        key = (place, _looks(layer), given.spec)
        if key not in kinds:
            kinds[key] = (len(kinds), _output(model, index, given, inputs, device))
        kind, output = kinds[key]
        found.append(Placed(kind, given, output.spec))
        given = output
    return found


def _output(model: CutModel, index: int, given: Boundary, inputs: Any, device: torch.device | None) -> Boundary:
    stage = single(model, index)
    work = StageWork(stage, loss_fn=None)
    try:
        with borrowed(stage, device), torch.enable_grad():
            if index == 0:
                output = boundary_of(work.forward(inputs, split=False))
            else:
                output = boundary_of(work.forward_from(given, training=True, split=False)[1])
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        raise ModelError(
            f"layer {list(model.layers)[index]} cannot run on what enters it ({given.spec}): {error}; give one "
            "microbatch as the model takes it"
        ) from error
    return Boundary(output.spec, tuple(tensor.detach() for tensor in output.tensors))


def _looks(layer: nn.Module) -> Hashable:
    """Returns what two layers of one kind have in common."""
    modules = tuple((name, type(module), _settings(module)) for name, module in layer.named_modules())
    parameters = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters())
    return modules, parameters


def _settings(module: nn.Module) -> Hashable:
    plain = {
        name: value
        for name, value in vars(module).items()
        if type(value) in _PLAIN and name not in _PLACES and not name.startswith("_")
    }
    return tuple(sorted((name, repr(value)) for name, value in plain.items())), module.extra_repr()
