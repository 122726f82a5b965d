"""Layers that are built where they run: a list of what each would be made of.

specs       embed ─ block 0 ─ block 1 ─ block 2 ─ head       on the meta device: names, shapes, no memory
this rank           block 0 ─ block 1                        its constructors run for real, keyed by (seed, name)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from penstock.errors import ModelError
from penstock.models.filling import fill, on_meta
from penstock.models.keyed_draws import default_generator_lock, initial_seed


class LayerSpec:
    """A layer that is not built yet; `LayerSpec(nn.Linear, 8, 8, bias=False)`.

    Args:
        factory: a class or function that returns a module.
        args: its arguments.
        kwargs: likewise, by name.

    Raises:
        ModelError: a factory that cannot be called, e.g. a module that is built already.
    """

    def __init__(self, factory: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> None:
        if isinstance(factory, nn.Module) or not callable(factory):
            raise ModelError(
                f"LayerSpec({type(factory).__name__} …): give a class and its arguments, e.g. "
                "LayerSpec(nn.Linear, 8, 8), or the module itself in the list without a LayerSpec"
            )
        self.factory, self.args, self.kwargs = factory, args, kwargs

    def __repr__(self) -> str:
        """Returns the spec as it is written."""
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"LayerSpec({', '.join([getattr(self.factory, '__name__', repr(self.factory)), *given])})"

    def build(self) -> nn.Module:
        """Returns the layer.

        Raises:
            ModelError: the factory returns something else.
        """
        layer = self.factory(*self.args, **self.kwargs)
        if not isinstance(layer, nn.Module):
            raise ModelError(f"{self} gives a {type(layer).__name__}, not an nn.Module")
        return layer


def skeleton(spec: LayerSpec) -> nn.Module:
    """Returns a layer without numbers and without memory.

    Raises:
        ModelError: its constructor needs numbers.
    """
    try:
        with default_generator_lock, torch.random.fork_rng(), torch.device("meta"):
            return spec.build()
    except (NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{spec} cannot be built without numbers ({type(error).__name__}: {error}); put the module itself "
            "into the list"
        ) from error


def built(layers: Sequence[nn.Module | LayerSpec], seed: int | None = None) -> list[nn.Module]:
    """Returns all layers with the numbers that a pipeline of this seed gives them: the unsplit model.

    Args:
        layers: modules and specs.
        seed: as for Pipeline; None takes that of `torch.manual_seed`.
    """
    return [
        _build(layer, str(index), seed) if isinstance(layer, LayerSpec) else layer for index, layer in enumerate(layers)
    ]


def fill_specs(
    specs: Mapping[str, LayerSpec], layers: Mapping[str, nn.Module], stages: Sequence[nn.Module], seed: int | None
) -> None:
    """Puts the layers of these stages in place of their skeletons.

    Args:
        specs: name -> spec of the layers that are not built.
        layers: all of the model; those on the meta device that are no specs are filled too.
        stages: modules that hold layers by their names.
        seed: as for Pipeline.
    """
    for stage in stages:
        for name in stage._modules.keys() & specs.keys():
            stage._modules[name] = _build(specs[name], name, seed)
    others = {name: layer for name, layer in layers.items() if name not in specs and on_meta(layer)}
    if others:
        fill(others, [layer for stage in stages for name, layer in stage.named_children() if name in others], seed=seed)


def _build(spec: LayerSpec, name: str, seed: int | None) -> nn.Module:
    """Returns a layer whose constructor draws what it draws in every layout."""
    with default_generator_lock:  # before the seed is read: while another thread builds, it is that of its layer
        key = initial_seed(torch.initial_seed() if seed is None else seed, name, draw=0)
        with torch.random.fork_rng():
            torch.manual_seed(key)
            return spec.build()
