"""How many bytes a stage takes on its rank under a schedule, as a function of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from penstock.cluster import Cluster
from penstock.ir.ops import Op, OpKind
from penstock.ir.schedule import Schedule
from penstock.partition.layers import LayerCosts
from penstock.simulator.orders import Floats, Ints

Held = tuple[int, int]
"""Microbatches that a stage keeps at one moment: between F and B or I, and between I and W."""


@dataclass(frozen=True)
class StageMemory:
    """What fills the memory of a rank with one stage.

    Attributes:
        limit: bytes of the rank's device.
        held: the moments of the schedule that none beats: what is kept then.
        inputs: buffers for what comes from the stage before.
        gradients: buffers for what comes back from the stage after.
    """

    limit: float
    held: tuple[Held, ...]
    inputs: int
    gradients: int


def stage_memories(schedule: Schedule, cluster: Cluster) -> list[StageMemory] | None:
    """Returns the memory of each stage; None where devices have all they want, or a rank holds several stages.

    Buffers are counted as lowering posts them: a receive is posted one message ahead, and the buffer is taken until the
    last op of its microbatch on the rank.
    """
    if schedule.placement.num_chunks > 1 or schedule.placement.num_replicas > 1:
        return None
    if all(device.memory_bytes == np.inf for device in cluster.devices):
        return None
    from penstock.verifier import verify

    slots = dict(verify(schedule).receive_slots)
    memories = []
    for rank, ops in enumerate(schedule.ranks):
        counts = {OpKind.F: 0, OpKind.B: 0}
        for channel, count in slots.items():
            if channel.target == rank:
                counts[channel.kind] += count
        memories.append(
            StageMemory(cluster.devices[rank].memory_bytes, _moments(ops), counts[OpKind.F], counts[OpKind.B])
        )
    return [memories[rank] for rank in schedule.placement.table[0]]


_CHANGE = {OpKind.F: (1, 0), OpKind.B: (-1, 0), OpKind.I: (-1, 1), OpKind.W: (0, -1)}


def _moments(ops: tuple[Op, ...]) -> tuple[Held, ...]:
    steps = [_CHANGE.get(op.kind, (0, 0)) for op in ops]
    seen = set(accumulate(steps, lambda held, step: (held[0] + step[0], held[1] + step[1])))
    return tuple(sorted(one for one in seen if not any(_beats(other, one) for other in seen)))


def _beats(other: Held, one: Held) -> bool:
    return other != one and other[0] >= one[0] and other[1] >= one[1]


class Fits:
    """Whether layers fit on the rank of their stage, and what must be saved where they do not."""

    def __init__(self, costs: LayerCosts, memories: list[StageMemory]) -> None:
        self.memories = memories
        self.boundary = np.array((0.0, *costs.boundary_bytes))  # of the layer before, that of the input counted as 0
        static = zip(costs.parameter_bytes, costs.gradient_bytes, costs.optimizer_bytes, strict=True)
        self.static = _prefix([sum(row) for row in static])
        self.activation, self.deferred = _prefix(costs.activation_bytes), _prefix(costs.deferred_bytes)
        self.num_layers = costs.num_layers

    def excess(self, stage: int, first: int, last: int) -> float:
        """Returns the bytes a microbatch in flight that the stage of layers `first` to `last - 1` has too many."""
        return float(self._excess(stage, np.array(first), np.array(last)))

    def excesses(self, stage: int, widest: int) -> Floats:
        """Returns [layers, widest] the same for all first layers and numbers of layers; infinite past the last one."""
        first, count = np.arange(self.num_layers)[:, None], 1 + np.arange(widest)
        found = self._excess(stage, first, np.minimum(first + count, self.num_layers))
        found[first + count > self.num_layers] = np.inf
        return found

    def _excess(self, stage: int, first: Ints, last: Ints) -> Floats:
        memory = self.memories[stage]
        static = self.static[last] - self.static[first] + memory.inputs * self.boundary[first]
        static += memory.gradients * np.where(last < self.num_layers, self.boundary[last], 0)
        activation = self.activation[last] - self.activation[first]
        deferred = self.deferred[last] - self.deferred[first]
        worst = np.full(activation.shape, -np.inf)
        for live, waiting in memory.held:
            over = static + live * activation + waiting * deferred - memory.limit
            # Where nothing is in flight, nothing can be saved.
            worst = np.maximum(worst, np.where(over > 0, over / live if live else np.inf, over))
        return worst

    def bytes_of(self, stage: int, first: int, last: int, saved: float) -> float:
        """Returns the bytes of the stage, of which `saved` are not kept for each microbatch in flight."""
        memory = self.memories[stage]
        static = self.static[last] - self.static[first] + memory.inputs * self.boundary[first]
        static += memory.gradients * (self.boundary[last] if last < self.num_layers else 0)
        activation = self.activation[last] - self.activation[first] - saved
        deferred = self.deferred[last] - self.deferred[first]
        return float(static + max(live * activation + waiting * deferred for live, waiting in memory.held))


def _prefix(row: object) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.array(row, float))])
