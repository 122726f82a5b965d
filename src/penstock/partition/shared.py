"""Whether stages fit ranks that hold several of them: their memory is one, so what runs again is chosen by rank.

A knapsack with a row a moment. Under a schedule a rank keeps so many microbatches of each of its stages at each moment;
a layer that runs its forward again saves its bytes times that many, and takes its forward once more. At all moments the
rank must be within its memory, in the fewest seconds. Layer by layer the sets of choices are extended, and a set goes
when another one saves as much at all moments in as little time, as in `recompute` for a single moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from penstock.cluster import Cluster
from penstock.ir.dependencies import carried
from penstock.ir.ops import RECEIVES, Channel, Op, OpKind, Transfer
from penstock.ir.schedule import Schedule
from penstock.partition.layers import LayerCosts
from penstock.simulator.orders import Floats

_MOST = 256
"""Sets that are kept; more come up only where many layers differ. Then of neighbours every other is dropped."""

_ROUNDING = 1e-12


class Ring(NamedTuple):
    """Receive buffers of a channel: their number, and the stages behind which lie the boundaries that pass."""

    buffers: int
    behind: tuple[int, ...]


class SharedMemory(NamedTuple):
    """What fills the memory of a rank with its stages.

    Attributes:
        limit: bytes of its device.
        stages: that it holds.
        live: [moments, stages], microbatches between F and B or I.
        waiting: likewise, between I and W.
        rings: its receive buffers.
    """

    limit: float
    stages: tuple[int, ...]
    live: Floats
    waiting: Floats
    rings: tuple[Ring, ...]


def shared_memories(schedule: Schedule, cluster: Cluster) -> list[SharedMemory]:
    """Returns the memory of each rank, by the rules of `penstock.simulator.memory`."""
    from penstock.verifier import verify

    proof = verify(schedule)
    behind: dict[Channel, set[int]] = {}
    for _, _, entry in proof.program.instructions():
        if isinstance(entry, Transfer) and entry.kind in RECEIVES:
            behind.setdefault(entry.channel, set()).add(min(carried(entry).stage, entry.stage))
    memories = []
    for rank, ops in enumerate(schedule.ranks):
        stages = schedule.placement.stages_of(rank)
        rings = tuple(
            Ring(buffers, tuple(sorted(behind[channel])))
            for channel, buffers in proof.receive_slots
            if channel.target == rank and channel in behind
        )
        live, waiting = _moments(ops, stages)
        memories.append(SharedMemory(cluster.devices[rank].memory_bytes, stages, live, waiting, rings))
    return memories


_LIVE = {OpKind.F: 1, OpKind.B: -1, OpKind.I: -1}
_WAITING = {OpKind.I: 1, OpKind.W: -1}


def _moments(ops: tuple[Op, ...], stages: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Returns the moments of which none holds as much of everything as another, or more."""
    steps = np.zeros((len(ops), 2 * len(stages)), np.int64)
    for row, op in zip(steps, ops, strict=True):
        at = stages.index(op.stage)
        row[at] += _LIVE.get(op.kind, 0)
        row[len(stages) + at] += _WAITING.get(op.kind, 0)
    rows = np.unique(np.cumsum(steps, axis=0), axis=0)
    rows = rows[np.argsort(-rows.sum(axis=1), kind="stable")]
    kept: list[Floats] = []
    for one in rows:
        if not kept or not (np.array(kept) >= one).all(axis=1).any():
            kept.append(one)
    held = np.array(kept, float).reshape(len(kept), 2 * len(stages))
    return held[:, : len(stages)], held[:, len(stages) :]


class SharedFits:
    """Which layers run again so that every rank fits, and what the ranks hold then."""

    def __init__(self, costs: LayerCosts, memories: list[SharedMemory]) -> None:
        self.memories, self.num_layers = memories, costs.num_layers
        self.forward = np.array(costs.forward, float)
        self.much, self.little = np.array(costs.activation_bytes, float), np.array(costs.recompute_bytes, float)
        self.deferred = np.array(costs.deferred_bytes, float)
        self.boundary = np.array(costs.boundary_bytes, float)
        static = zip(costs.parameter_bytes, costs.gradient_bytes, costs.optimizer_bytes, strict=True)
        self.static = np.array([sum(row) for row in static], float)
        self.known: dict[tuple[int, tuple[int, ...]], tuple[int, ...] | None] = {}

    def held(self, cuts: tuple[int, ...], again: Iterable[int]) -> list[float]:
        """Returns the most bytes that each rank holds if the layers `again` run their forward again."""
        kept = self.much.copy()
        chosen = list(again)
        kept[chosen] = self.little[chosen]
        return [float(self._moments(memory, cuts, kept).max(initial=0.0)) for memory in self.memories]

    def _moments(self, memory: SharedMemory, cuts: tuple[int, ...], kept: Floats) -> Floats:
        """Returns the bytes of a rank at each moment."""
        own = [slice(cuts[stage], cuts[stage + 1]) for stage in memory.stages]
        static = sum(float(self.static[layers].sum()) for layers in own)
        # A ring's buffers are as large as the largest message of its channel.
        static += sum(
            ring.buffers * max(self.boundary[cuts[stage + 1] - 1] for stage in ring.behind) for ring in memory.rings
        )
        live = np.array([kept[layers].sum() for layers in own])
        waiting = np.array([self.deferred[layers].sum() for layers in own])
        moments: Floats = static + memory.live @ live + memory.waiting @ waiting
        return moments

    def chosen(self, cuts: tuple[int, ...], *, recompute: bool) -> tuple[int, ...] | None:
        """Returns the layers that run again, the fewest seconds by which every rank fits; None where none do."""
        every: list[int] = []
        for rank, memory in enumerate(self.memories):
            # What a rank holds depends on its own stages, and on the boundaries before them.
            key = rank, tuple(cut for stage in memory.stages for cut in cuts[stage : stage + 2])
            if key not in self.known:
                self.known[key] = self._chosen(memory, cuts, recompute)
            found = self.known[key]
            if found is None:
                return None
            every.extend(found)
        return tuple(sorted(every))

    def _chosen(self, memory: SharedMemory, cuts: tuple[int, ...], recompute: bool) -> tuple[int, ...] | None:
        over = self._moments(memory, cuts, self.much) - memory.limit
        over[over <= abs(memory.limit) * _ROUNDING] = 0
        if not (over > 0).any():
            return ()
        if not recompute:
            return None
        tight = over > 0
        layers = [
            (layer, float(self.forward[layer]), memory.live[tight, at] * (self.much[layer] - self.little[layer]))
            for at, stage in enumerate(memory.stages)
            for layer in range(cuts[stage], cuts[stage + 1])
        ]
        return covering(layers, over[tight])

    def shares(self, *, recompute: bool) -> Floats:
        """Returns [stages, layers] the share of its rank's memory that a layer takes at the fullest moment there.

        Args:
            recompute: whether all layers run again, where that saves.
        """
        kept = np.minimum(self.much, self.little) if recompute else self.much
        rows = {}
        for memory in self.memories:
            fullest = int((memory.live.sum(axis=1) + memory.waiting.sum(axis=1)).argmax())
            for at, stage in enumerate(memory.stages):
                moving = memory.live[fullest, at] * kept + memory.waiting[fullest, at] * self.deferred
                rows[stage] = (self.static + moving) / memory.limit
        return np.array([rows[stage] for stage in sorted(rows)])

    def lacking(self, cuts: tuple[int, ...], *, recompute: bool) -> float:
        """Returns the bytes that the ranks lack together if all layers run again, where they may; 0: they fit."""
        again = np.flatnonzero(self.much > self.little).tolist() if recompute else []
        held = self.held(cuts, again)
        return sum(max(most - memory.limit, 0.0) for most, memory in zip(held, self.memories, strict=True))


def covering(layers: Iterable[tuple[int, float, Floats]], needed: Floats) -> tuple[int, ...] | None:
    """Returns the layers that save at least `needed` at every moment in the fewest seconds; None where all do not.

    Args:
        layers: (index, seconds of running it again, bytes that this saves at each moment).
        needed: bytes to be saved at each moment, above 0.
    """
    useful = [(layer, seconds, np.maximum(saved, 0)) for layer, seconds, saved in layers if (saved > 0).any()]
    rows = np.array([saved for *_, saved in useful]).reshape(-1, len(needed))
    # Behind each layer, what all later ones save; behind the last nothing, exactly.
    later = np.concatenate([rows[::-1].cumsum(axis=0)[::-1], np.zeros((1, len(needed)))])
    enough = needed - _ROUNDING * (needed + later[0])
    if not (later[0] >= enough).all():
        return None
    spent, saves = np.zeros(1), np.zeros((1, len(needed)))
    sets: list[tuple[int, ...]] = [()]
    for (layer, seconds, saved), left in zip(useful, later[1:], strict=True):
        spent = np.concatenate([spent, spent + seconds])
        # What is saved beyond the need counts for nothing.
        saves = np.minimum(np.concatenate([saves, saves + saved]), needed)
        sets = [*sets, *((*one, layer) for one in sets)]
        possible = (saves + left >= enough).all(axis=1)
        order = np.lexsort((-saves.sum(axis=1), spent))
        kept = _undominated(saves, order[possible[order]])
        spent, saves, sets = spent[kept], saves[kept], [sets[one] for one in kept]
    return sets[0]


def _undominated(saves: Floats, order: Floats) -> list[int]:
    """Returns those of `order`, the quickest first, that no earlier one equals or beats at all moments."""
    kept: list[int] = []
    rows = np.zeros((len(order), saves.shape[1]))
    for one in order.tolist():
        if not (rows[: len(kept)] >= saves[one]).all(axis=1).any():
            rows[len(kept)] = saves[one]
            kept.append(one)
    while len(kept) > _MOST:
        kept = [*kept[:-1:2], kept[-1]]
    return kept
