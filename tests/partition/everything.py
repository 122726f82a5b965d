"""Small partition problems: rows of costs, and the least step of everything there is to choose."""

from __future__ import annotations

from itertools import combinations, product
from random import Random

import penstock as ps
from penstock.partition import LayerCosts, Partition

Instance = tuple[LayerCosts, ps.Schedule, ps.Cluster]


def random_row(random: Random, layers: int, low: int, high: int) -> list[float]:
    """Returns a whole number a layer."""
    return [float(random.randint(low, high)) for _ in range(layers)]


def least_step(instance: Instance, *, recompute: bool) -> float | None:
    """Returns the least step of all partitions, and of all choices of layers to run again, that fit their devices."""
    costs, schedule, cluster = instance
    best = None
    for cut in combinations(range(1, costs.num_layers), schedule.num_stages - 1):
        choices = product((False, True), repeat=costs.num_layers) if recompute else [(False,) * costs.num_layers]
        for again in choices:
            partition = Partition((0, *cut, costs.num_layers))
            timeline = ps.simulate(schedule, costs.stage_costs(partition, again), cluster)
            devices = zip(timeline.peak_memory, cluster.devices, strict=True)
            if all(held <= device.memory_bytes for held, device in devices):
                best = timeline.makespan if best is None else min(best, timeline.makespan)
    return best
