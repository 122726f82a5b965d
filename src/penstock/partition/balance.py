"""The partition under which a schedule takes least time, and why it is not the even one.

few layers: all partitions, those left out that a bound says take more ─> the best there is
many layers: Pareto points of the chain's dynamic programming, the uniform partition
    ─> timed under the schedule ─> cuts moved while that helps
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.cluster import Cluster
from penstock.errors import PartitionError, UserError
from penstock.ir.schedule import Schedule
from penstock.partition.bench import Bench
from penstock.partition.exhaustive import all_timed
from penstock.partition.layers import LayerCosts
from penstock.partition.moves import Moves
from penstock.partition.ranges import Partition

MOST_LAYERS = 5_000
"""What a minute or so suffices for."""


@dataclass(frozen=True)
class Balanced:
    """A partition and what it comes to.

    Attributes:
        partition: layers of each stage.
        recompute: of each layer, whether its forward runs again before its backward.
        seconds: the step under the schedule, as `simulate` has it.
        uniform_seconds: the step of the even partition; infinite where that does not fit.
        stage_seconds: per stage F, I and W of one microbatch on its rank's device.
        memory_bytes: per rank what its stage takes; empty where nothing limits it.
        proven: whether no partition is better: all were timed but those that a bound says take more. Where ranks hold
            several stages and layers run again, other layers of a rank could do so in as few seconds: then nothing is
            proven.
        reason: in a sentence, what the even partition lacks.
    """

    partition: Partition
    recompute: tuple[bool, ...]
    seconds: float
    uniform_seconds: float
    stage_seconds: tuple[float, ...]
    memory_bytes: tuple[float, ...]
    proven: bool
    reason: str


def best_partition(
    costs: LayerCosts, schedule: Schedule, *, cluster: Cluster | None = None, recompute: bool = False
) -> Balanced:
    """Returns the partition of these layers under which `schedule` takes the least time that was found.

    Never slower than the even one, which is among those timed. For few layers it is the best of all (`proven`). For
    many, with one stage a rank, the best by the closed form of `chain` is among those timed, and cuts are moved from
    there. Where devices have finite memory, only those that fit are looked at: parameters,
    gradients, optimizer state, receive buffers, and activations of as many microbatches as the schedule keeps, of all
    stages of a rank together.

    Args:
        costs: of each layer on a device of speed 1.
        schedule: placement, microbatches, and the order under which a partition is timed.
        cluster: devices and links; None means equal devices, memory without end, and messages that take no time.
        recompute: whether layers may run their forward again where their activations do not fit.

    Raises:
        PartitionError: fewer layers than stages, or no partition that fits, with the rank that lacks most.
        UserError: a cluster of another size, or more layers than a minute or so suffices for.
    """
    if costs.num_layers > MOST_LAYERS:
        raise UserError(
            f"{costs.num_layers:,} layers take too long to lay out; add up the costs of neighbours that stay together, "
            f"so that there are {MOST_LAYERS:,} or fewer"
        )
    cluster = cluster or Cluster.uniform(schedule.num_ranks)
    if len(cluster.devices) != schedule.num_ranks:
        raise UserError(
            f"the cluster has {len(cluster.devices)} devices for {schedule.num_ranks} ranks; give one a rank"
        )
    if schedule.placement.num_replicas > 1:
        raise UserError(f"{schedule.name} has several replicas; partition for a schedule of one direction")
    bench = Bench(costs, schedule, cluster, recompute)
    uniform = Partition.uniform(costs.num_layers, schedule.num_stages).boundaries
    timed = {uniform: bench.seconds(uniform)}
    everything = all_timed(bench, timed)
    if not everything:
        timed |= {cuts: bench.seconds(cuts) for cuts in bench.candidates(uniform) if cuts not in timed}
        if np.inf in timed.values():
            timed |= {cuts: bench.seconds(cuts) for cuts in bench.light() if cuts not in timed}
        best = Moves(bench, timed).best()
    else:
        best = min(timed, key=lambda cuts: (timed[cuts], cuts))
    if timed[best] == np.inf:
        raise PartitionError(bench.too_large())
    seconds, uniform_seconds = bench.simulated(best), bench.simulated(uniform)
    if uniform_seconds <= seconds:  # where messages queue, a simulation may differ from what was timed
        best, seconds = uniform, uniform_seconds
    again = bench.again(best) or (False,) * costs.num_layers
    return Balanced(
        Partition(best),
        again,
        seconds,
        uniform_seconds,
        bench.stage_seconds(best),
        bench.memory_bytes(best),
        everything and not (any(again) and schedule.placement.num_chunks > 1),
        _reason(bench, uniform, best),
    )


def _reason(bench: Bench, uniform: tuple[int, ...], best: tuple[int, ...]) -> str:
    """Returns in a sentence what the even partition lacks."""
    if best == uniform:
        return "even stages are best: no other partition that was timed takes less"
    if bench.again(uniform) is None:
        return "even stages do not fit the memory of their ranks"
    each, chosen = bench.stage_seconds(uniform), bench.stage_seconds(best)
    ranks = bench.schedule.placement.table[0]
    loads, after = np.bincount(ranks, each), np.bincount(ranks, chosen)
    slowest = int(loads.argmax())
    stage = max((each[stage], stage) for stage in bench.schedule.placement.stages_of(slowest))[1]
    first, last = uniform[stage], uniform[stage + 1]
    heaviest = max(range(first, last), key=lambda layer: bench.costs.seconds[layer])
    return (
        f"with even stages rank {slowest} takes {loads[slowest]:.4g} s a microbatch, "
        f"{loads[slowest] / loads.mean():.2f} times the mean of the ranks, and the others wait for it: "
        f"its stage {stage} has layers {first} to {last - 1}, "
        f"among them {bench.costs.names[heaviest]} with {bench.costs.seconds[heaviest]:.4g} s; now the slowest is rank "
        f"{int(after.argmax())} with {after.max():.4g} s, {after.max() / after.mean():.2f} times the mean"
    )
