"""Partitions against the clock and against the best there is.

python benchmarks/partition.py

Seconds are of the process's own CPU, which a busy machine lengthens less than wall clock. Quality is what cuts found by
dynamic programming and moves lack beside the best of all partitions, on instances so small that these can be had.
"""

from __future__ import annotations

import platform
import statistics
import time
from random import Random
from typing import NamedTuple

import penstock as ps
from penstock.errors import PartitionError
from penstock.partition import Balanced, LayerCosts, best_partition, exhaustive


def random_costs(random: Random, layers: int) -> LayerCosts:
    def row(low: int, high: int) -> list[float]:
        return [float(random.randint(low, high)) for _ in range(layers)]

    return LayerCosts(
        row(1, 9), row(1, 9), row(1, 9), parameter_bytes=row(1, 5), activation_bytes=row(1, 6), boundary_bytes=row(0, 4)
    )


def fullest(costs: LayerCosts, schedule: ps.Schedule) -> float:
    """Returns the bytes of the fullest rank under the partition that is best where memory has no end."""
    free = best_partition(costs, schedule)
    return max(ps.simulate(schedule, costs.stage_costs(free.partition)).peak_memory)


class Case(NamedTuple):
    """What is to be laid out; memory as a share of what the fullest rank would take."""

    schedule: ps.Schedule
    memory: float | None
    recompute: bool


LARGE = [
    Case(schedule, memory, recompute)
    for schedule in (ps.one_f_one_b(64, 128), ps.interleaved_1f1b(16, 64, num_chunks=4))
    for memory, recompute in ((None, False), (0.9, False), (0.6, True))
]


def clock() -> None:
    """Prints how long 500 unlike layers on 64 stages take."""
    costs = random_costs(Random(0), 500)
    for case in LARGE:
        schedule = case.schedule
        room = ps.Device() if case.memory is None else ps.Device(case.memory * fullest(costs, schedule))
        cluster = ps.Cluster((room,) * schedule.num_ranks, ((schedule.num_ranks, ps.Link()),))
        begin = time.process_time()
        found = best_partition(costs, schedule, cluster=cluster, recompute=case.recompute)
        spent = time.process_time() - begin
        memory = "no limit" if case.memory is None else f"{case.memory:.0%} of the fullest rank's memory"
        even = f"{found.uniform_seconds / found.seconds - 1:.1%} more" if found.uniform_seconds < 1e99 else "do not fit"
        again = f", {sum(found.recompute)} layers run again" if case.recompute else ""
        print(
            f"500 layers, {schedule.name} on {schedule.num_stages} stages, {memory}: {spent:.2f} s{again}; even: {even}"
        )


SMALL = [("one_f_one_b", 4, 14), ("zb_h1", 4, 12), ("eager_1f1b", 3, 12), ("interleaved_1f1b", 2, 12), ("zb_v", 2, 12)]


def moved(costs: LayerCosts, case: Case, cluster: ps.Cluster, partitions: int) -> Balanced | None:
    """Returns what is found if so many partitions may be gone through one by one; None where none fits."""
    exhaustive._MOST = partitions
    try:
        return best_partition(costs, case.schedule, cluster=cluster, recompute=case.recompute)
    except PartitionError:
        return None


def quality(count: int) -> None:
    """Prints how near moved cuts come to the best of all partitions."""
    for name, ranks, layers in SMALL:
        gaps, missed = [], 0
        for seed in range(count):
            random = Random(seed)
            costs, schedule = random_costs(random, layers), ps.named_schedule(name, num_ranks=ranks, num_microbatches=8)
            memory = 0.8 * fullest(costs, schedule)
            speeds = [random.choice((0.5, 1, 2)) for _ in range(ranks)]
            for recompute in (False, True):
                case = Case(schedule, memory, recompute)
                devices = tuple(ps.Device(memory, speed) for speed in speeds)
                cluster = ps.Cluster(devices, ((ranks, ps.Link(0.5, 4.0)),))
                optimum, found = (moved(costs, case, cluster, most) for most in (200_000, 0))
                if optimum is not None and found is not None:
                    gaps.append(found.seconds / optimum.seconds - 1)
                missed += optimum is not None and found is None
        best, among = sum(gap < 1e-9 for gap in gaps), len(gaps) + missed
        print(
            f"{name}, {layers} layers on {ranks} unlike ranks of 80 % of the memory: {best} of {among} best of all, "
            f"on the mean {statistics.mean(gaps):.2%} above it, at most {max(gaps):.2%}; {missed} not found"
        )


if __name__ == "__main__":
    best_partition(random_costs(Random(1), 12), ps.one_f_one_b(3, 4))  # compiles
    print(f"python {platform.python_version()}, penstock {ps.__version__}")
    clock()
    quality(20)
