"""The socket between models and the runtime: named layers in order, and stages made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from penstock.errors import ModelError
from penstock.partition import Partition

LayerContext = Callable[[int], AbstractContextManager[None]]
"""Layer index in the model -> what surrounds that layer's forward (random numbers keyed by layer)."""

Fill = Callable[[Sequence[Any], int | None], None]
"""(a rank's stages as modules on the meta device, the pipeline's seed): gives these their numbers, and no others."""


class Stage(nn.Module):
    """Contiguous layers, run one after another; each takes the one before's result as its one argument.

    Its parameters carry the names they have in the original model.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, first_layer: int) -> None:
        super().__init__()
        self.first_layer = first_layer
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.surrounding: LayerContext | None = None

    def forward(self, value: Any) -> Any:
        """Returns what the last layer makes of `value`, a tensor or a tree of tensors and plain values."""
        layers = self._modules.values()  # as in nn.Sequential: children() costs more than a small layer does
        if self.surrounding is None:
            for layer in layers:
                value = layer(value)  # type: ignore[misc]
            return value
        for index, layer in enumerate(layers, start=self.first_layer):
            with self.surrounding(index):
                value = layer(value)  # type: ignore[misc]
        return value


@dataclass(frozen=True)
class Tie:
    """One parameter that several stages use: (stage, its name there) of each use, in the order of the stages."""

    holders: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class CutModel:
    """A model as a front-end sees it: its layers in order, with their names.

    Attributes:
        layers: name -> layer, in model order; a layer's parameters are named `<name>.<parameter>`.
        assemble: (a stage's layers by name, index of the first) -> the stage as a module with an attribute
            `surrounding`; None for a `Stage`, which runs one layer after another.
        fill: gives a rank's stages their numbers; None where the layers have them.
        origin: a Hugging Face model's class and configuration, see `Origin`; None for other models.

    Raises:
        ModelError: no layer at all.
    """

    layers: Mapping[str, nn.Module]
    assemble: Callable[[Mapping[str, nn.Module], int], Any] | None = None
    unsplit: Callable[[Any], Any] | None = None
    fill: Fill | None = None
    origin: Any = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError("the model has no layers; give an nn.Sequential or a list with at least one module")

    @property
    def num_layers(self) -> int:
        """Number of layers that a partition distributes."""
        return len(self.layers)

    def stage(self, partition: Partition, index: int) -> Stage:
        """Returns stage `index` of `partition` as a module."""
        names = list(self.layers)
        layers = partition.layers_of(index)
        held = {names[i]: self.layers[names[i]] for i in layers}
        if self.assemble is not None:
            stage: Stage = self.assemble(held, layers.start)
            return stage
        return Stage(held, first_layer=layers.start)

    def parameters_of(self, partition: Partition) -> tuple[dict[str, int], tuple[Tie, ...]]:
        """Returns parameter name -> stage, over the whole model, and the parameters that several stages share.

        A shared parameter is there once, under its name on the first of its stages.

        Raises:
            ModelError: stages share a module that keeps running statistics, which they would keep apart.
        """
        holders: dict[int, list[tuple[int, str]]] = {}
        counting: dict[int, tuple[int, str]] = {}
        for stage in range(partition.num_stages):
            module = self.stage(partition, stage)
            for name, parameter in module.named_parameters(remove_duplicate=False):
                holders.setdefault(id(parameter), []).append((stage, name))
            for name, each in module.named_modules():
                if isinstance(each, _NormBase) and each.track_running_stats:
                    _check_alone(counting.setdefault(id(each), (stage, name)), (stage, name))
        stages = {places[0][1]: places[0][0] for places in holders.values()}
        shared = [places for places in holders.values() if len({stage for stage, _ in places}) > 1]
        return stages, tuple(Tie(tuple(places)) for places in shared)


def _check_alone(first: tuple[int, str], found: tuple[int, str]) -> None:
    if first[0] != found[0]:
        raise ModelError(
            f"{first[1]} on stage {first[0]} and {found[1]} on stage {found[0]} are one module, which keeps running "
            "statistics that two stages would keep apart; give each a module of its own, or put both on one stage with "
            "partition="
        )
