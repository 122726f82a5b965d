"""How long a step takes under a partition, and whether its stages fit their ranks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from penstock.cluster import Cluster
from penstock.ir.schedule import Schedule
from penstock.partition.chain import Chain, cut_candidates
from penstock.partition.layers import LayerCosts
from penstock.partition.memory import Fits, stage_memories
from penstock.partition.ranges import Partition
from penstock.partition.recompute import Choice, cheapest, choices
from penstock.partition.shared import SharedFits, shared_memories
from penstock.simulator import simulate
from penstock.simulator.orders import Floats, run_words, words_of

_SLOW_OP = 200
"""What an op of a schedule that only `simulate` times counts as."""


class Bench:
    """Times partitions under one schedule."""

    def __init__(self, costs: LayerCosts, schedule: Schedule, cluster: Cluster, recompute: bool) -> None:
        self.costs, self.schedule, self.cluster, self.recompute = costs, schedule, cluster, recompute
        self.words = words_of(schedule)
        total = sum(map(len, schedule.ranks))
        self.ops = total if self.words is not None else total * _SLOW_OP
        limited = any(device.memory_bytes < np.inf for device in cluster.devices)
        several = schedule.placement.num_chunks > 1
        self.memories = stage_memories(schedule, cluster)
        self.fits = None if self.memories is None else Fits(costs, self.memories)
        # Where ranks hold several stages their memory is one, and no table by stage can tell what fits.
        self.shared = SharedFits(costs, shared_memories(schedule, cluster)) if limited and several else None
        self.chosen: dict[tuple[int, int, int], Choice | None] = {}
        shape = (schedule.num_stages, schedule.num_microbatches)
        self.ends = np.zeros(shape), np.zeros(shape)
        self.starts = np.zeros(self.words[0].shape) if self.words is not None else np.zeros((0, 0))
        rows = [np.array(row, float) for row in (costs.forward, costs.input_grad, costs.weight_grad)]
        letters = (rows[0], rows[1] + rows[2], rows[1], rows[2])
        self.prefixes = np.array([np.concatenate([[0.0], np.cumsum(row)]) for row in letters])
        order = schedule.placement.table[0]
        self.speeds = np.array([cluster.devices[rank].speed for rank in order], float)
        self.links = _links(schedule, cluster)

    def choice(self, stage: int, first: int, last: int) -> Choice | None:
        """Returns the layers of a stage that run their forward again; None where it fits in no way."""
        key = (stage, first, last)
        if key not in self.chosen:
            self.fill(stage, first, last)
        return self.chosen[key]

    def fill(self, stage: int, first: int, last: int) -> None:
        """Decides for stages that begin at layer `first` and end at `last` or before."""
        costs = self.costs
        saved = [much - little for much, little in zip(costs.activation_bytes, costs.recompute_bytes, strict=True)]
        layers = ((layer, costs.forward[layer], saved[layer]) for layer in range(first, last))
        for end, sets in zip(range(first + 1, last + 1), choices(layers), strict=True):
            excess = -np.inf if self.fits is None else self.fits.excess(stage, first, end)
            possible = sets if self.recompute else sets[:1]
            self.chosen[stage, first, end] = None if excess == np.inf else cheapest(possible, excess)

    def again(self, cuts: tuple[int, ...]) -> tuple[bool, ...] | None:
        """Returns of each layer whether its forward runs again; None where a stage does not fit."""
        if self.shared is not None:
            chosen = self.shared.chosen(cuts, recompute=self.recompute)
            if chosen is None:
                return None
            twice = set(chosen)
            return tuple(layer in twice for layer in range(self.costs.num_layers))
        if self.fits is None:
            return (False,) * self.costs.num_layers
        found = [self.choice(stage, first, last) for stage, (first, last) in enumerate(pairwise(cuts))]
        if any(choice is None for choice in found):
            return None
        twice = {layer for choice in found if choice is not None for layer in choice.layers}
        return tuple(layer in twice for layer in range(self.costs.num_layers))

    def seconds(self, cuts: tuple[int, ...]) -> float:
        """Returns the step under these cuts, messages taken as delays; infinite where a stage does not fit."""
        again = self.again(cuts)
        if again is None:
            return np.inf
        if self.words is None:
            costs = self.costs.stage_costs(Partition(cuts), again)
            return simulate(self.schedule, costs, self.cluster).makespan
        at = np.array(cuts)
        table = self.prefixes[:, at[1:]] - self.prefixes[:, at[:-1]]
        if any(again):
            twice = np.concatenate([[0.0], np.cumsum(np.where(again, self.costs.forward, 0))])
            table[1:3] += twice[at[1:]] - twice[at[:-1]]
        seconds = np.ascontiguousarray((table / self.speeds).T).reshape(-1)
        latencies, per_byte = self.links
        boundary = np.array(self.costs.boundary_bytes, float)[at[1:] - 1]
        down = latencies[0] + boundary * per_byte[0]
        up = latencies[1] + np.concatenate([[0.0], boundary[:-1]]) * per_byte[1]
        makespan, _ = run_words(*self.words, seconds, down, up, self.starts, *self.ends)
        return float(makespan)

    def lacking(self, cuts: tuple[int, ...]) -> float:
        """Returns the bytes that ranks with several stages lack; infinite where `chain` decides what fits."""
        return np.inf if self.shared is None else self.shared.lacking(cuts, recompute=self.recompute)

    def candidates(self, uniform: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yields the even partition and the Pareto points of the chain."""
        yield uniform
        yield from cut_candidates(self.chain(), self.schedule.num_microbatches)

    def chain(self) -> Chain:
        """Returns what the dynamic programming cuts."""
        latencies, per_byte = self.links
        boundary = np.array((0.0, *self.costs.boundary_bytes))
        cuts = np.zeros((len(self.speeds), self.costs.num_layers + 1))
        both = zip(latencies[0, :-1] + latencies[1, 1:], per_byte[0, :-1] + per_byte[1, 1:], strict=True)
        for stage, (latency, seconds) in enumerate(both, start=1):
            cuts[stage] = latency + boundary * seconds
        prefix = np.concatenate([[0.0], np.cumsum(self.costs.seconds)])
        return Chain(prefix, self.speeds, cuts, self.extra(self.speeds))

    def extra(self, speeds: Floats) -> Floats:
        """Returns for each stage, first layer and number of layers what recomputing takes; infinite where none fits."""
        if self.fits is None:
            return np.zeros((1, 1, 1))
        num_stages, num_layers = len(speeds), self.costs.num_layers
        widest = num_layers - num_stages + 1
        extra = np.full((num_stages, num_layers, widest), np.inf)
        for stage in range(num_stages):
            for first in range(stage, num_layers - (num_stages - 1 - stage)):
                last = min(first + widest, num_layers)
                self.fill(stage, first, last)
                for end in range(first + 1, last + 1):
                    choice = self.chosen[stage, first, end]
                    if choice is not None:
                        extra[stage, first, end - first - 1] = choice.seconds / speeds[stage]
        return extra

    def too_large(self) -> str:
        """Returns what is wrong where nothing fits: the rank that lacks most under the even partition."""
        num_layers, num_stages = self.costs.num_layers, self.schedule.num_stages
        even = Partition.uniform(num_layers, num_stages).boundaries
        if self.shared is not None:
            lacks = [
                (held - memory.limit, held, rank)
                for rank, (held, memory) in enumerate(
                    zip(self.shared.held(even, ()), self.shared.memories, strict=True)
                )
            ]
            return self._told("rank", max(lacks))
        if self.fits is None or self.memories is None:
            return f"no partition of {num_layers} layers into {num_stages} stages"
        lacks = []
        for stage, (first, last) in enumerate(pairwise(even)):
            held = self.fits.bytes_of(stage, first, last, 0)
            lacks.append((held - self.memories[stage].limit, held, stage))
        return self._told("stage", max(lacks))

    def _told(self, what: str, lack: tuple[float, float, int]) -> str:
        missing, held, number = lack
        way = "use more ranks, or fewer microbatches in flight" if self.recompute else "allow recompute"
        sizes = f"{self.costs.num_layers} layers into {self.schedule.num_stages} stages"
        return (
            f"no partition of {sizes} fits: of the even one {what} {number} takes {held:.4g} bytes and has "
            f"{held - missing:.4g}; {way}, or use devices with more memory"
        )

    def simulated(self, cuts: tuple[int, ...]) -> float:
        """Returns the step as `simulate` has it; infinite where a stage does not fit."""
        again = self.again(cuts)
        if again is None:
            return np.inf
        return simulate(self.schedule, self.costs.stage_costs(Partition(cuts), again), self.cluster).makespan

    def stage_seconds(self, cuts: tuple[int, ...]) -> tuple[float, ...]:
        """Returns the seconds of F, I and W of one microbatch on each stage."""
        again = self.again(cuts) or (False,) * self.costs.num_layers
        spent = [
            seconds + (forward if twice else 0)
            for seconds, forward, twice in zip(self.costs.seconds, self.costs.forward, again, strict=True)
        ]
        speeds = [self.cluster.devices[rank].speed for rank in self.schedule.placement.table[0]]
        return tuple(
            sum(spent[first:last]) / speed for (first, last), speed in zip(pairwise(cuts), speeds, strict=True)
        )

    def memory_bytes(self, cuts: tuple[int, ...]) -> tuple[float, ...]:
        """Returns the bytes of each rank's stage; empty where nothing limits them."""
        if self.shared is not None:
            return tuple(self.shared.held(cuts, np.flatnonzero(self.again(cuts) or ()).tolist()))
        if self.fits is None:
            return ()
        held = {}
        for stage, (first, last) in enumerate(pairwise(cuts)):
            choice = self.choice(stage, first, last)
            saved = choice.saved if choice is not None else 0
            held[self.schedule.placement.rank_of(stage)] = self.fits.bytes_of(stage, first, last, saved)
        return tuple(held[rank] for rank in sorted(held))


def _links(schedule: Schedule, cluster: Cluster) -> tuple[Floats, Floats]:
    """Returns latency and seconds a byte: [0, s] from stage s to the next, [1, s] to the one before."""
    order = schedule.placement.table[0]
    latencies, per_byte = np.zeros((2, len(order))), np.zeros((2, len(order)))
    for stage, (before, here) in enumerate(pairwise(order), start=1):
        if before != here:
            for way, link in ((0, cluster.link(before, here)), (1, cluster.link(here, before))):
                latencies[way, stage - 1 + way] = link.latency_seconds
                per_byte[way, stage - 1 + way] = 1 / link.bytes_per_second
    return latencies, per_byte
