"""All combinations that are defined, each with an estimate by closed forms: what the search goes through in order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from penstock.errors import UserError, nearest
from penstock.planner.costing import Costing
from penstock.planner.families import ESTIMATES, Sizes
from penstock.planner.layout import Degrees

RecomputeRule = Literal["as needed", "never", "always"]
_MOST_SEQUENCES = 64
"""In a microbatch."""
_WAITING = 0.5
"""Share of the microbatches in flight that wait for W at the fullest moment, where I and W are apart."""
_WASTED = 0.06
"""Share of the devices that a degree which does not divide their number may leave idle."""


@dataclass(frozen=True)
class Limits:
    """What a plan may be made of; None and empty leave it to the search.

    Attributes:
        tensor: tensor degrees; None: those that divide the model, up to the devices of a host.
        pipeline: numbers of pipeline ranks.
        chunks: stages a rank.
        schedules: by name.
        microbatch_sizes: sequences a microbatch.
        sharding: ZeRO levels: 1 shares the optimizer's state among the copies, 2 gradients too, 3 parameters too.
        outermost: what is outermost on the devices.
        recompute: whether layers run their forward again: the fewest that bring each rank within its memory, none, or
            all.
        overlap: whether copies exchange gradients and parameters while they compute, or stand still.

    Raises:
        UserError: an unknown schedule, or numbers out of range.
    """

    tensor: tuple[int, ...] | None = None
    pipeline: tuple[int, ...] | None = None
    chunks: tuple[int, ...] | None = None
    schedules: tuple[str, ...] = tuple(ESTIMATES)
    microbatch_sizes: tuple[int, ...] | None = None
    sharding: tuple[int, ...] = (0, 1, 2, 3)
    outermost: tuple[Literal["pipeline", "data"], ...] = ("pipeline", "data")
    recompute: RecomputeRule = "as needed"
    overlap: bool = True

    def __post_init__(self) -> None:
        for name in self.schedules:
            if name not in ESTIMATES:
                raise UserError(
                    f'schedule "{name}".{nearest(name, ESTIMATES)} Plans are made of {", ".join(ESTIMATES)}'
                )
        for field in ("tensor", "pipeline", "chunks", "microbatch_sizes"):
            for value in getattr(self, field) or ():
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise UserError(f"{field}={value!r}; use whole numbers of at least 1, e.g. {field}=(1, 2, 4)")
        if not set(self.sharding) <= {0, 1, 2, 3}:
            raise UserError(f"sharding={self.sharding}; ZeRO levels are 0, 1, 2 and 3")


class Candidate(NamedTuple):
    """Everything about a plan but its partition and recomputation.

    Attributes:
        degrees: data, tensor, pipeline, and what is outermost.
        schedule: its name.
        chunks: stages a rank.
        size: sequences a microbatch.
        microbatches: of each pipeline in a step.
        sharding: ZeRO level.
    """

    degrees: Degrees
    schedule: str
    chunks: int
    size: int
    microbatches: int
    sharding: int

    @property
    def num_stages(self) -> int:
        """Stages of a pipeline."""
        return self.degrees.pipeline * self.chunks

    @property
    def num_ops(self) -> float:
        """How long its schedule takes to make and to time, in ops of 1F1B."""
        family = ESTIMATES[self.schedule]
        return 2 * self.num_stages * self.microbatches * (family.effort + family.growth * self.degrees.pipeline)


class Estimated(NamedTuple):
    """A candidate's step by closed forms, and the bytes that it lacks on a rank of mean load; 0 or less: it fits."""

    seconds: float
    lacking: float
    candidate: Candidate


def estimates(costing: Costing, limits: Limits) -> Iterator[Estimated]:
    """Yields every candidate that is defined under `limits`."""
    for degrees in _degrees(costing, limits):
        if not costing.fits_model(degrees):
            continue
        share = costing.global_batch // degrees.data
        for size in _sizes(share, limits):
            for name, chunks in _schedules(costing, degrees, share // size, limits):
                for level in limits.sharding if degrees.data > 1 else (0,):
                    candidate = Candidate(degrees, name, chunks, size, share // size, level)
                    yield _estimated(costing, candidate, limits.recompute)


def tensor_degrees(costing: Costing, limits: Limits) -> list[int]:
    """Returns the tensor degrees to try: those asked for, else powers of two that divide the model, within a host."""
    width, most = costing.work.tensor_width, costing.fleet.most_devices
    if limits.tensor is not None:
        odd = next((degree for degree in limits.tensor if width % degree), None)
        if odd is not None:
            raise UserError(f"tensor={odd} does not divide the model; use a divisor of {width}")
        return list(limits.tensor)
    return [degree for degree in _powers(most) if width % degree == 0]


def _degrees(costing: Costing, limits: Limits) -> Iterator[Degrees]:
    num_devices = costing.fleet.num_devices
    for tensor in tensor_degrees(costing, limits):
        for pipeline in limits.pipeline or _pipelines(costing, num_devices // tensor):
            most = num_devices // (tensor * pipeline)
            data = next((copies for copies in range(most, 0, -1) if costing.global_batch % copies == 0), 0)
            idle = 1 - data * tensor * pipeline / num_devices
            if data and (idle <= _WASTED or limits.pipeline is not None or num_devices % (tensor * pipeline) == 0):
                yield from _unlike(costing, [Degrees(data, tensor, pipeline, one) for one in limits.outermost])


def _unlike(costing: Costing, every: list[Degrees]) -> list[Degrees]:
    """Returns the degrees without those that lie on the same links as others."""
    links = {(costing.layout(one).classes, costing.layout(one).boundaries): one for one in reversed(every)}
    return list(reversed(links.values()))


def _pipelines(costing: Costing, most: int) -> list[int]:
    """Returns numbers of ranks: those that divide the devices, or the layers with or without the two ends."""
    layers = len(costing.work.names)
    counts = range(1, min(most, layers) + 1)
    return [count for count in counts if most % count == 0 or layers % count == 0 or (layers - 2) % count == 0]


def _sizes(share: int, limits: Limits) -> list[int]:
    sizes = limits.microbatch_sizes or _powers(_MOST_SEQUENCES)
    return [size for size in sizes if share % size == 0]


def _schedules(costing: Costing, degrees: Degrees, microbatches: int, limits: Limits) -> Iterator[tuple[str, int]]:
    """Yields names with chunks; of a single rank all orders take as long, and that of 1F1B keeps least."""
    alone = degrees.pipeline == 1 and "one_f_one_b" in limits.schedules
    for name in ("one_f_one_b",) if alone else limits.schedules:
        for chunks in ESTIMATES[name].chunks:
            enough_layers = degrees.pipeline * chunks <= len(costing.work.names)
            if enough_layers and (limits.chunks is None or chunks in limits.chunks):
                yield name, chunks


def _powers(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length()) if 1 << exponent <= most]


def _estimated(costing: Costing, candidate: Candidate, rule: RecomputeRule) -> Estimated:
    """Returns the step if layers are spread as evenly as they can be."""
    family = ESTIMATES[candidate.schedule]
    mean = costing.mean_rank(candidate.degrees, candidate.size, candidate.sharding)
    ranks, microbatches = candidate.degrees.pipeline, candidate.microbatches
    sizes = Sizes(ranks, microbatches, candidate.chunks, *mean.seconds)
    live = family.live(sizes)
    kept = mean.activation + (mean.deferred if family.splits else 0) / max(live, 1)
    excess = mean.static + live * kept - mean.limit
    # What waits for W cannot be made again: recomputation saves nothing of it.
    saved = live * (mean.activation - max(mean.again, mean.deferred * _WAITING if family.splits else 0))
    share = (
        0.0 if rule == "never" else 1.0 if rule == "always" else min(max(excess / saved, 0), 1) if saved > 0 else 0.0
    )
    sizes = sizes._replace(input_grad=sizes.input_grad + share * sizes.forward)
    seconds = microbatches * sizes.whole + family.bubble(sizes) + mean.tail
    return Estimated(seconds if math.isfinite(seconds) else math.inf, excess - share * saved, candidate)
