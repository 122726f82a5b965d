"""From a user's batch to microbatches on the ranks that need them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from penstock.errors import BatchError
from penstock.runtime.agreement import Offer, agree, signature_of
from penstock.runtime.microbatches import batch_size, split, to_device
from penstock.runtime.replicas import Replicas
from penstock.runtime.step_batch import StepBatch
from penstock.runtime.transport import Transport

WeightFunction = Callable[[Any], float]


class Call(NamedTuple):
    """What the user handed to one call on this rank.

    Attributes:
        name: "step", "evaluate", "forward" or "forward(broadcast=True)".
        number: how many calls this rank has made.
        inputs: the batch, None on ranks that need none.
        targets: likewise.
        sizes: samples in the batch -> samples in each microbatch.
        trained: for each parameter of this rank whether it needs a gradient.
    """

    name: str
    number: int
    inputs: Any
    targets: Any
    sizes: Callable[[int], list[int]]
    trained: Sequence[bool]


class Feed:
    """Splits batches for one rank.

    Args:
        transport: to agree with the other ranks.
        device: where microbatches go.
        holds_first: this rank runs the first stage and needs inputs.
        holds_last: this rank runs the last stage and needs targets.
        weight_fn: targets of a microbatch -> its weight w_i; None takes its number of samples.
        replicas: data-parallel replicas, over which weights are summed.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        device: torch.device,
        holds_first: bool,
        holds_last: bool,
        weight_fn: WeightFunction | None,
        replicas: Replicas | None,
    ) -> None:
        self._transport, self._device = transport, device
        self._holds_first, self._holds_last = holds_first, holds_last
        self._weight_fn, self._replicas = weight_fn, replicas

    def prepare(self, call: Call, *, training: bool, step: int) -> tuple[StepBatch, Offer]:
        """Returns this rank's microbatches and what all ranks know about the call.

        Raises:
            Exception: what is wrong with this rank's arguments, or BatchError with what is wrong on another.
        """
        batch = StepBatch(training=training, step=step)
        problem: Exception | None = None
        offer = Offer()
        try:
            offer = self._fill(batch, call)
        except Exception as error:  # weight_fn is the user's: whatever it raises, the other ranks hear of it
            problem = error
        agreed = agree(self._transport, call.name, number=call.number, offer=offer, problem=problem)
        if batch.scales:
            total = math.fsum(batch.scales)
            total = self._replicas.sum_number(total) if self._replicas else total
            batch.scales = [weight / total for weight in batch.scales]
        return batch, agreed

    def _fill(self, batch: StepBatch, call: Call) -> Offer:
        inputs = targets = -1
        if self._holds_first:
            if call.inputs is None:
                raise BatchError(f"{call.name} got no inputs on the rank that holds the first stage; pass them there")
            inputs = batch_size(call.inputs, name="inputs")
            batch.inputs = split(to_device(call.inputs, self._device), call.sizes(inputs), name="inputs")
        if self._holds_last and call.name in ("step", "evaluate"):
            if call.targets is None:
                raise BatchError(f"{call.name} got no targets on the rank that holds the last stage; pass them there")
            targets = batch_size(call.targets, name="targets")
            sizes = call.sizes(targets)
            batch.targets = split(to_device(call.targets, self._device), sizes, name="targets")
            batch.scales = self._weights(batch.targets, sizes)
        return Offer(inputs, targets, signature_of(call.name, call.trained, batch.inputs))

    def _weights(self, targets: Sequence[Any], sizes: Sequence[int]) -> list[float]:
        if self._weight_fn is None:
            return [float(size) for size in sizes]
        weights = [float(self._weight_fn(target)) for target in targets]
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise BatchError(f"weight_fn gave {weights}; weights are finite, not negative, and not all 0")
        return weights
