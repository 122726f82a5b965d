"""What each layer costs, and what stages made of layers cost then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.partition.ranges import Partition


@dataclass(frozen=True)
class LayerCosts:
    """The cost of one microbatch on each layer; every field but `names` is one number a layer.

    Attributes:
        forward: seconds of F.
        input_grad: seconds of I.
        weight_grad: seconds of W; empty means 0: all of the backward counts as I.
        parameter_bytes: one version of the layer's parameters.
        gradient_bytes: its weight gradients.
        optimizer_bytes: the optimizer's state for it.
        activation_bytes: what F keeps for the backward.
        deferred_bytes: what I keeps for W.
        boundary_bytes: its output, which is also the size of the gradient that comes back.
        recompute_bytes: what F keeps where the forward is run again before the backward; empty means the layer's
            input, which is the output of the layer before.
        names: the layers' names, for tables.

    A field left empty counts 0 for every layer.

    Raises:
        UserError: fields of different lengths, or a cost that is negative, infinite or no number.
    """

    forward: Sequence[float]
    input_grad: Sequence[float] = ()
    weight_grad: Sequence[float] = ()
    parameter_bytes: Sequence[float] = ()
    gradient_bytes: Sequence[float] = ()
    optimizer_bytes: Sequence[float] = ()
    activation_bytes: Sequence[float] = ()
    deferred_bytes: Sequence[float] = ()
    boundary_bytes: Sequence[float] = ()
    recompute_bytes: Sequence[float] = ()
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        count = len(self.forward)
        if not count:
            raise UserError("forward=() is of no layer; give the seconds of each layer, e.g. forward=(1, 1, 1)")
        for field in fields(self):
            row = tuple(getattr(self, field.name))
            if row and len(row) != count:
                raise UserError(f"{field.name} has {len(row)} values for {count} layers; give one a layer, or none")
            if field.name == "names":
                object.__setattr__(self, "names", row or tuple(f"layer {layer}" for layer in range(count)))
                continue
            for value in row:
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                    raise UserError(f"{field.name}={value!r}; a cost is finite and not negative, e.g. 1.0")
            if field.name == "recompute_bytes" and not row:
                row = (0, *self.boundary_bytes[:-1]) if self.boundary_bytes else ()
            object.__setattr__(self, field.name, row or (0,) * count)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.forward)

    @property
    def seconds(self) -> tuple[float, ...]:
        """Of each layer's F, I and W together."""
        return tuple(map(sum, zip(self.forward, self.input_grad, self.weight_grad, strict=True)))

    def stage_costs(self, partition: Partition, recompute: Sequence[bool] = ()) -> StageCosts:
        """Returns the costs of the stages of `partition`.

        Args:
            partition: of these layers.
            recompute: of each layer, whether its forward is run again before its backward; empty: of none.

        Raises:
            UserError: a partition of other layers, or choices for another number of them.
        """
        partition.check(self.num_layers, partition.num_stages)
        again = tuple(recompute) or (False,) * self.num_layers
        if len(again) != self.num_layers:
            raise UserError(f"recompute has {len(again)} choices for {self.num_layers} layers; give one a layer")
        backward = [
            seconds + (forward if twice else 0)
            for seconds, forward, twice in zip(self.input_grad, self.forward, again, strict=True)
        ]
        kept = [
            little if twice else much
            for much, little, twice in zip(self.activation_bytes, self.recompute_bytes, again, strict=True)
        ]
        ends = [self.boundary_bytes[last - 1] for last in partition.boundaries[1:]]
        return StageCosts(
            forward=_sums(self.forward, partition),
            input_grad=_sums(backward, partition),
            weight_grad=_sums(self.weight_grad, partition),
            parameter_bytes=_sums(self.parameter_bytes, partition),
            gradient_bytes=_sums(self.gradient_bytes, partition),
            optimizer_bytes=_sums(self.optimizer_bytes, partition),
            activation_bytes=_sums(kept, partition),
            deferred_bytes=_sums(self.deferred_bytes, partition),
            boundary_bytes=tuple(ends),
        )


def _sums(row: Sequence[float], partition: Partition) -> tuple[float, ...]:
    return tuple(sum(row[first:last]) for first, last in pairwise(partition.boundaries))
