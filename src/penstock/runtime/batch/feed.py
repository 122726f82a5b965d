"""From a user's batch to microbatches on the ranks that need them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from penstock.errors import BatchError, RankFailedError
from penstock.runtime.agreement import Offer, agree, signature_of
from penstock.runtime.asynchronous.step_shares import StepShares
from penstock.runtime.batch.microbatches import BatchRules, to_device
from penstock.runtime.batch.step_batch import StepBatch
from penstock.runtime.shared_weights.replica_agreement import agree_replicas
from penstock.runtime.shared_weights.replicas import Replicas
from penstock.runtime.transport.protocol import Transport

WeightFunction = Callable[[Any], float]


class Agreement(Protocol):
    """`agree`, or what stands for it."""

    def __call__(
        self, transport: Transport, call: str, *, number: int, offer: Offer, problem: Exception | None = None
    ) -> Offer:
        """Returns what the ranks know together about a call."""
        ...


_WEIGHED = ("step", "evaluate", "run")
"""The calls whose microbatches have weights."""


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


class Ends(NamedTuple):
    """Which ends of the pipeline a rank runs.

    Attributes:
        first: the first stage: it needs inputs.
        last: the last stage: it needs targets.
    """

    first: bool
    last: bool


class Reading(NamedTuple):
    """What a user's batches mean.

    Attributes:
        rules: how arguments are split.
        weight_fn: targets of a microbatch -> its weight w_i; None takes its number of samples.
    """

    rules: BatchRules
    weight_fn: WeightFunction | None


class Feed:
    """Splits batches for one rank.

    Args:
        transport: to agree with the other ranks.
        device: where microbatches go.
        trains: the ends that this rank runs in a training step, of any replica of the placement.
        evaluates: the ends that it runs otherwise, which happens on replica 0.
        shares: what each microbatch weighs in a step.
        reading: how batches are understood.
        replicas: data-parallel replicas, over which weights are summed.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        device: torch.device,
        trains: Ends,
        evaluates: Ends,
        shares: StepShares,
        reading: Reading,
        replicas: Replicas | None,
    ) -> None:
        self._transport, self._device = transport, device
        self._trains, self._evaluates, self._shares = trains, evaluates, shares
        self._rules, self._weight_fn = reading
        self._replicas = replicas

    def prepare(
        self, call: Call, *, training: bool, step: int, agreement: Agreement = agree
    ) -> tuple[StepBatch, Offer]:
        """Returns this rank's microbatches and what all ranks know about the call.

        Args:
            call: what the user handed to it.
            training: whether backwards follow.
            step: number of the training step.
            agreement: how the ranks agree.

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
        refusal: Exception | None = None
        agreed = offer
        try:
            agreed = agreement(self._transport, call.name, number=call.number, offer=offer, problem=problem)
        except RankFailedError:
            raise
        except Exception as error:  # the other replicas hear of it before this one raises
            refusal = error
        weights = batch.scales
        total = math.fsum(weights)
        if self._replicas is not None:
            total = agree_replicas(self._replicas, call.name, number=call.number, total=total, refusal=refusal)
        if refusal is not None:
            raise refusal
        if weights:
            batch.scales = [weight / total for weight in weights]
        if training:
            batch.starts = self._shares.starts(weights, self._summed) if weights else []
            batch.divisors = self._divisors(batch.starts) if self._shares.divides else []
        return batch, agreed

    def _summed(self, numbers: Sequence[float]) -> list[float]:
        return self._replicas.sum_numbers(numbers) if self._replicas else list(numbers)

    def _divisors(self, starts: Sequence[float]) -> list[float]:
        """Returns on every rank what the microbatches' backwards start from, summed over replicas."""
        row = torch.zeros(self._shares.num_microbatches, dtype=torch.float64)
        if starts:
            row += torch.tensor(self._summed(starts), dtype=torch.float64)
        return list(self._transport.gather(row).amax(dim=0).tolist())

    def _fill(self, batch: StepBatch, call: Call) -> Offer:
        inputs = targets = -1
        ends = self._trains if batch.training else self._evaluates
        if ends.first:
            batch.inputs, sizes = self._taken(call, call.inputs, "inputs", end="first")
            inputs = sum(sizes)
        if ends.last and call.name in _WEIGHED:
            batch.targets, sizes = self._taken(call, call.targets, "targets", end="last")
            targets = sum(sizes)
            batch.scales = self._weights(batch.targets, sizes)
        return Offer(inputs, targets, signature_of(call.name, call.trained, batch.inputs))

    def _taken(self, call: Call, given: Any, name: str, *, end: str) -> tuple[list[Any], list[int]]:
        """Returns the microbatches of what this rank was given for the `end` stage, and the samples in each."""
        if given is None:
            raise BatchError(
                f"{call.name} got no {name} on the rank that holds the {end} stage; pass the whole batch there, "
                f"on every rank whose has_{end}_stage is true"
            )
        sizes = self._sizes(call, given, name)
        return self._split(given, sizes, name), sizes

    def _sizes(self, call: Call, batch: Any, name: str) -> list[int]:
        count = self._shares.num_microbatches
        return self._rules.sizes(batch, name=name, divide=call.sizes, num_microbatches=count)

    def _split(self, batch: Any, sizes: list[int], name: str) -> list[Any]:
        pieces = self._rules.split(to_device(batch, self._device), sizes, name=name)
        # A rule that is a function may have made its pieces anywhere.
        return [to_device(piece, self._device) for piece in pieces] if self._rules.told else pieces

    def _weights(self, targets: Sequence[Any], sizes: Sequence[int]) -> list[float]:
        if self._weight_fn is None:
            return [float(size) for size in sizes]
        given = [self._weight_fn(target) for target in targets]
        try:
            weights = [float(each) for each in given]
        except (TypeError, ValueError):
            raise BatchError(f"weight_fn gave {given[0]!r}; return one number a microbatch, e.g. its tokens") from None
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise BatchError(f"weight_fn gave {weights}; weights are finite, not negative, and not all 0")
        return weights
