"""What a step takes and holds, from a profile alone, before anything runs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import check_type
from penstock.ir.ops import OpKind
from penstock.ir.placement import Placement
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule
from penstock.lowering import lower
from penstock.partition import Partition
from penstock.profiler.costs import cluster_of
from penstock.profiler.running import as_run
from penstock.profiler.stages import Parts, ProfiledStage, closing_seconds, parts_of, stage_costs, stages_of
from penstock.profiler.values import Profile
from penstock.simulator import simulate
from penstock.timeline import Timeline


@dataclass(frozen=True)
class Prediction:
    """A step as it is expected.

    Attributes:
        seconds: from the call of `step` to its return.
        timeline: of its program as it runs: an I with its own W right behind it is one B.
        peak_bytes: the most bytes each rank holds: parameters, gradients, buffers, activations, and what ops take while
            they run. The batch and the optimizer's state are the caller's.
        costs: of the stages, what the timeline was simulated with.
        cluster: likewise.
        parts: what the seconds in `costs` are made of.
        step_seconds: of `seconds`, what is outside the program.
        closing_seconds: of `seconds`, what ranks that hold a stage together take to sum its gradients in the end.
    """

    seconds: float
    timeline: Timeline
    peak_bytes: tuple[float, ...]
    costs: StageCosts
    cluster: Cluster
    parts: Parts
    step_seconds: float
    closing_seconds: float


def predict(
    profile: Profile,
    schedule: Schedule | Program,
    *,
    partition: Partition | Sequence[int] | None = None,
    recompute: Sequence[bool] = (),
) -> Prediction:
    """Returns what a step of the profiled model takes under `schedule`.

    Args:
        profile: of the model, on the microbatch that will be run.
        schedule: its order, or its program.
        partition: layers of each stage; None for equal numbers.
        recompute: of each layer, whether its forward runs again; empty: of none.

    Raises:
        UserError: a partition of other layers, or choices for another number of them.
    """
    check_type("profile", profile, Profile, example="what penstock.profile returns")
    check_type("schedule", schedule, Schedule, Program, example="e.g. penstock.gpipe(2, 4)")
    program = as_run(lower(schedule) if isinstance(schedule, Schedule) else schedule)
    if partition is None:
        cut = Partition.uniform(profile.num_layers, program.schedule.num_stages)
    else:
        cut = partition if isinstance(partition, Partition) else Partition.of_sizes(partition)
    stages = stages_of(profile, program, cut, recompute)
    parts = parts_of(profile, program, stages)
    costs = stage_costs(parts, program, stages)
    cluster = cluster_of(profile, program.num_ranks)
    timeline = simulate(program, costs, cluster)
    closing = closing_seconds(stages, profile, program)
    return Prediction(
        timeline.makespan + closing + profile.host.step_seconds,
        timeline,
        tuple(_peak(timeline, rank, program.schedule.placement, stages) for rank in range(program.num_ranks)),
        costs,
        cluster,
        parts,
        profile.host.step_seconds,
        closing,
    )


class _Beyond(NamedTuple):
    """What each op holds at most while it runs, beyond what the timeline's memory counts for it.

    Attributes:
        usual: by kind of op.
        first: of a stage's first backward, in which the gradients come to be.
    """

    usual: Mapping[OpKind, float]
    first: Mapping[OpKind, float]


def _beyond(stage: ProfiledStage) -> _Beyond:
    kept = stage.kept()
    before = [0, *accumulate(kept)]
    forward = max(held + layer.forward_peak_bytes for held, layer in zip(before, stage.layers, strict=False))
    whole = {made: _backward_peak(stage, kept, grads=made) for made in (False, True)}
    freed = [max(0, held - later) for held, later in zip(kept, stage.deferred(), strict=True)]
    usual = {
        OpKind.F: max(0, forward - before[-1]),
        OpKind.B: whole[False],
        OpKind.I: _backward_peak(stage, freed, grads=False),
        OpKind.W: _weight_peak(stage, gathered_bytes=GATHERED_BYTES),
    }
    return _Beyond(usual, {OpKind.B: whole[True], OpKind.W: _weight_peak(stage, gathered_bytes=None)})


GATHERED_BYTES = 1 << 20
"""What W gathers of new gradients before it adds them to those that are there (of float32)."""


def _weight_peak(stage: ProfiledStage, *, gathered_bytes: int | None) -> float:
    """Returns the most that W holds beyond what I has left, layer by layer from the last.

    Args:
        stage: its layers.
        gathered_bytes: so many are added at once and let go; None: they are the first, and stay.
    """
    most = gone = made = 0
    for layer, later in zip(reversed(stage.layers), reversed(stage.deferred()), strict=True):
        made += layer.gradient_bytes
        most = max(most, made - gone)
        gone += later
        if gathered_bytes is not None and made > gathered_bytes:
            made = 0
    return most


def _backward_peak(stage: ProfiledStage, freed: Sequence[int], *, grads: bool) -> float:
    """Returns the most that a backward holds beyond what the forward has kept, layer by layer from the last.

    Args:
        stage: its layers.
        freed: what each layer's backward lets go.
        grads: whether gradients are made, and not there already.
    """
    most = gone = passing = made = 0
    for layer, free, twice in zip(reversed(stage.layers), reversed(freed), reversed(stage.again), strict=True):
        peak = layer.recompute_peak_bytes if twice else layer.backward_peak_bytes
        made += layer.gradient_bytes if grads else 0
        most = max(most, peak + passing + made - gone)
        gone += free
        passing = layer.input_bytes  # the gradient that the layer before is given
    return most


def _peak(timeline: Timeline, rank: int, placement: Placement, stages: Sequence[ProfiledStage]) -> float:
    """Returns the most bytes of a rank: what the curve holds, and beyond it what the op under way takes.

    The curve counts gradients throughout. In truth a stage has none before its first backward.
    """
    curve = timeline.memory[rank] if timeline.memory else ((0.0, 0.0),)
    times = [at for at, _ in curve]
    beyond = {stage: _beyond(stages[stage]) for stage in placement.held(rank)}
    missing = {stage: stages[stage].gradient_bytes for stage in beyond}
    most = 0.0
    for span in timeline.by_rank[rank]:
        kind, stage = span.op.kind, span.op.stage
        held = curve[max(0, bisect_right(times, span.start) - 1)][1] - sum(missing.values())
        first = kind in beyond[stage].first and missing.pop(stage, None) is not None
        most = max(most, held + (beyond[stage].first if first else beyond[stage].usual).get(kind, 0))
    return max(most, curve[-1][1] + _reduction_bytes(rank, placement, stages))


def _reduction_bytes(rank: int, placement: Placement, stages: Sequence[ProfiledStage]) -> int:
    """Returns what a rank holds of shared gradients at the end: its copy, the other owners', and one sum at a time."""
    sizes = {
        stage: (len(placement.owners(stage)), stages[stage].gradient_bytes)
        for stage in placement.held(rank)
        if len(placement.owners(stage)) > 1
    }
    return sum(owners * size for owners, size in sizes.values()) + max((size for _, size in sizes.values()), default=0)
