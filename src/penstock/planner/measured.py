"""What measured layers take: in proportion to the sequences of a microbatch and the speed of a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.cluster import Link
from penstock.errors import UserError
from penstock.partition.layers import LayerCosts
from penstock.planner.fleet import DeviceKind
from penstock.planner.work import LayerTable, ModelWork, StateBytes


@dataclass(frozen=True)
class MeasuredLayers:
    """Layers measured on a device of speed 1.

    Attributes:
        costs: of one microbatch.
        sequences: in it.
        tokens: of each; 0 where that is not known.

    Raises:
        UserError: no sequence.
    """

    costs: LayerCosts
    sequences: int = 1
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise UserError(f"sequences={self.sequences}; say how many were in the microbatch measured, e.g. 1")


def profiled_work(profile: MeasuredLayers, state: StateBytes) -> ModelWork:
    """Returns the work of measured layers, in proportion to the sequences of a microbatch.

    Gradients and optimizer state that the profile does not have follow from its parameters and the bytes of `state`.
    """
    costs, sequences = profile.costs, profile.sequences
    rows = {name: np.array(getattr(costs, name), float) for name in _ROWS}
    for name, of_one in (("gradient_bytes", state.gradient), ("optimizer_bytes", state.optimizer)):
        if not rows[name].any():
            rows[name] = rows["parameter_bytes"] / state.parameter * of_one

    def table(size: int, tensor: int, kind: DeviceKind, link: Link) -> LayerTable:
        if tensor != 1:
            raise UserError(f"tensor={tensor}; a profile measures whole layers, use tensor degree 1")
        scale = size / sequences
        seconds = np.array([rows[name] for name in _ROWS[:3]]) * (scale / kind.speed)
        return LayerTable(
            seconds,
            np.zeros((2, costs.num_layers)),
            *(rows[name] for name in _ROWS[3:6]),
            *(rows[name] * scale for name in _ROWS[6:]),
        )

    return ModelWork(tuple(costs.names), table, 1, 0.0, False, input_apart=True)


_ROWS = (
    *("forward", "input_grad", "weight_grad"),
    *("parameter_bytes", "gradient_bytes", "optimizer_bytes"),
    *("activation_bytes", "deferred_bytes", "recompute_bytes", "boundary_bytes"),
)
