"""How long a step takes under a partition, and whether its stages fit their ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice, pairwise

import numpy as np

from penstock.cluster import Cluster
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule
from penstock.lowering import lower
from penstock.partition.chain import Chain, cut_candidates, longest_stage
from penstock.partition.layers import LayerCosts
from penstock.partition.memory import Fits, stage_memories
from penstock.partition.ranges import Partition
from penstock.partition.recompute import Choice, Knapsack
from penstock.partition.shared import SharedFits, shared_memories
from penstock.simulator import simulated_seconds
from penstock.simulator.orders import Floats, run_words, words_of

_ROUNDING = 1e-12

EVALUATION_OPS = 2000
"""What timing a partition counts as, beside its ops."""

_WEIGHTS = (0.5, 2, 8, 1e6)
"""What all memory of a rank counts beside its mean seconds, where cuts are to spread both."""

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
        self.forward = np.array(costs.forward, float)
        self.saved = np.array(costs.activation_bytes, float) - np.array(costs.recompute_bytes, float)
        self.knapsack = Knapsack(self.forward.tolist(), self.saved.tolist())
        shape = (schedule.num_stages, schedule.num_microbatches)
        self.ends = np.zeros(shape), np.zeros(shape)
        self.starts = np.zeros(self.words[0].shape) if self.words is not None else np.zeros((0, 0))
        rows = [np.array(row, float) for row in (costs.forward, costs.input_grad, costs.weight_grad)]
        letters = (rows[0], rows[1] + rows[2], rows[1], rows[2])
        self.prefixes = np.array([np.concatenate([[0.0], np.cumsum(row)]) for row in letters])
        order = schedule.placement.table[0]
        self.speeds = np.array([cluster.devices[rank].speed for rank in order], float)
        self.links = _links(schedule, cluster)

    @cached_property
    def program(self) -> Program:
        """The schedule lowered, once for all partitions that are simulated."""
        return lower(self.schedule)

    def choice(self, stage: int, first: int, last: int) -> Choice | None:
        """Returns the layers of a stage that run their forward again; None where it fits in no way."""
        key = (stage, first, last)
        if key not in self.chosen:
            excess = -np.inf if self.fits is None else self.fits.excess(*key)
            possible = excess <= 0 or (self.recompute and excess < np.inf)
            self.chosen[key] = self.knapsack.cheapest(first, last, excess) if possible else None
        return self.chosen[key]

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
            return simulated_seconds(self.schedule, costs, self.cluster)
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
        """Returns the bytes that ranks lack together if all layers run again, where they may; 0: they fit."""
        if self.shared is not None:
            return self.shared.lacking(cuts, recompute=self.recompute)
        return 0.0 if self.again(cuts) is not None else np.inf

    def candidates(self, uniform: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yields the even partition and the Pareto points of the chain."""
        yield uniform
        yield from cut_candidates(self.chain(self.extra()), self.schedule.num_microbatches)

    def light(self) -> Iterator[tuple[int, ...]]:
        """Yields cuts that spread what ranks with several stages keep as well as seconds, less and less of these."""
        if self.shared is None:
            return
        prefix = np.concatenate([[0.0], np.cumsum(self.costs.seconds)])
        chunks, num_stages = self.schedule.placement.num_chunks, len(self.speeds)
        held = _spans(self.shared.shares(recompute=self.recompute)) * (chunks * prefix[-1] / num_stages)
        for weight in _WEIGHTS:
            chain = Chain(prefix, self.speeds, np.zeros((num_stages, len(prefix))), held * weight)
            yield from islice(cut_candidates(chain, self.schedule.num_microbatches), 1)

    def chain(self, extra: Floats) -> Chain:
        """Returns what the dynamic programming cuts.

        Args:
            extra: seconds of running forwards again, as `Chain` has it.
        """
        latencies, per_byte = self.links
        boundary = np.array((0.0, *self.costs.boundary_bytes))
        cuts = np.zeros((len(self.speeds), self.costs.num_layers + 1))
        both = zip(latencies[0, :-1] + latencies[1, 1:], per_byte[0, :-1] + per_byte[1, 1:], strict=True)
        for stage, (latency, seconds) in enumerate(both, start=1):
            cuts[stage] = latency + boundary * seconds
        prefix = np.concatenate([[0.0], np.cumsum(self.costs.seconds)])
        return Chain(prefix, self.speeds, cuts, extra)

    def extra(self) -> Floats:
        """Returns for each stage, first layer and number of layers what recomputing takes; infinite where none fits."""
        if self.fits is None:
            return np.zeros((1, 1, 1))
        num_stages, num_layers = len(self.speeds), self.costs.num_layers
        widest = num_layers - num_stages + 1
        first = np.arange(num_layers)[:, None]
        last = np.minimum(first + 1 + np.arange(widest), num_layers)
        useful = self.saved > 0
        seconds, bytes_ = (np.concatenate([[0.0], np.cumsum(row * useful)]) for row in (self.forward, self.saved))
        all_seconds, all_bytes = seconds[last] - seconds[first], bytes_[last] - bytes_[first]
        extra = np.empty((num_stages, num_layers, widest))
        for stage, speed in enumerate(self.speeds):
            excess = self.fits.excesses(stage, widest)
            # Where a stage does not fit as it is, all of its layers run again for a start.
            in_all = all_seconds / speed if self.recompute else np.inf
            extra[stage] = np.where(excess <= 0, 0.0, np.where(excess <= all_bytes, in_all, np.inf))
        return self._knapsacks(extra) if self.recompute else extra

    def _knapsacks(self, extra: Floats) -> Floats:
        """Returns `extra` with the least for stages that may be among the best, none of which takes longer."""
        fits = self.fits
        if fits is None:
            return extra
        prefix = np.concatenate([[0.0], np.cumsum(self.costs.seconds)])
        bound = longest_stage(self.chain(extra), self.schedule.num_microbatches) * (1 + _ROUNDING)
        speeds = self.speeds[:, None]
        for first in range(self.costs.num_layers):
            own = (prefix[first + 1 :] - prefix[first]) / speeds
            narrow = min(int((own <= bound).any(axis=0).sum()), extra.shape[2])
            if not narrow:
                continue
            open_ = (extra[:, first, :narrow] > 0) & (extra[:, first, :narrow] < np.inf) & (own[:, :narrow] <= bound)
            for width in np.flatnonzero(open_.any(axis=0)).tolist():
                sets = self.knapsack.sets(first, first + width + 1)
                for stage in np.flatnonzero(open_[:, width]).tolist():
                    at = int(sets.saving(fits.excess(stage, first, first + width + 1)))
                    extra[stage, first, width] = sets.seconds[min(at, len(sets.seconds) - 1)] / self.speeds[stage]
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
        return simulated_seconds(self.program, self.costs.stage_costs(Partition(cuts), again), self.cluster)

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


def _spans(rows: Floats) -> Floats:
    """Returns for each row, first layer and number of layers the sum over these; infinite past the last one."""
    num_layers = rows.shape[1]
    sums = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(rows, axis=1)], axis=1)
    first = np.arange(num_layers)[:, None]
    ends = first + 1 + np.arange(num_layers - len(rows) + 1)
    spans: Floats = sums[:, np.minimum(ends, num_layers)] - sums[:, first]
    spans[:, ends > num_layers] = np.inf
    return spans


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
