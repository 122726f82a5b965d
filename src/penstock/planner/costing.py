"""What a plan's parts cost: layers on the devices of a rank, exchange of gradients and parameters, bytes of a rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from penstock.cluster import Link
from penstock.planner.fleet import Fleet
from penstock.planner.layout import Degrees, Layout, RankClass, Ring
from penstock.planner.work import LayerTable, ModelWork
from penstock.simulator.orders import Floats


class RankTable(NamedTuple):
    """The layers as one rank would run them, on the slowest of its kinds of devices.

    Attributes:
        layers: of its kind.
        gathered: [3, layers], seconds that F, I and W take longer than their multiplications because the rank waits
            for parameters to be gathered or gradients to be scattered.
        fixed: bytes of each layer whatever is in flight.
        ending: seconds at the end of a step for each layer: gradients exchanged, parameters updated.
    """

    layers: LayerTable
    gathered: Floats
    fixed: Floats
    ending: Floats


class MeanRank(NamedTuple):
    """A rank that has the mean share of the model: seconds of F, I and W; bytes; what the end of the step takes."""

    seconds: tuple[float, float, float]
    static: float
    activation: float
    deferred: float
    again: float
    limit: float
    tail: float


@dataclass(frozen=True)
class Costing:
    """A model's work on a fleet.

    Attributes:
        work: of the model.
        fleet: the devices.
        global_batch: sequences a step.
        overlap: whether copies exchange gradients and parameters while they compute.
    """

    work: ModelWork
    fleet: Fleet
    global_batch: int
    overlap: bool = True

    def fits_model(self, degrees: Degrees) -> bool:
        """Whether there are layers enough."""
        return degrees.pipeline <= len(self.work.names)

    @cached_property
    def _known(self) -> _Known:
        return _Known({}, {}, {}, {})

    def layout(self, degrees: Degrees) -> Layout:
        """Returns where the ranks lie."""
        if degrees not in self._known.layouts:
            self._known.layouts[degrees] = Layout(self.fleet, degrees)
        return self._known.layouts[degrees]

    def classes(self, degrees: Degrees, size: int, sharding: int) -> list[RankTable]:
        """Returns what the layers take on the classes of ranks that the layout has."""
        known, key = self._known.classes, (degrees, size, sharding)
        if key not in known:
            known[key] = [self._class(one, degrees, size, sharding) for one in self.layout(degrees).classes[1]]
        return known[key]

    def _class(self, one: RankClass, degrees: Degrees, size: int, sharding: int) -> RankTable:
        tables = [self.table(size, degrees.tensor, kind, one.tensor_link) for kind in one.kinds]
        slowest = max(tables, key=lambda table: table.seconds.sum())
        bandwidth = min(self.fleet.kinds[kind].memory_bytes_per_second for kind in one.kinds)
        return _shared(
            slowest, one.ring, sharding=sharding, copies=degrees.data, bandwidth=bandwidth, overlap=self.overlap
        )

    def table(self, size: int, tensor: int, kind: int, link: Link) -> LayerTable:
        """Returns what the layers take on one kind of device."""
        known, key = self._known.tables, (size, tensor, kind, link)
        if key not in known:
            known[key] = self.work.table(size, tensor, self.fleet.kinds[kind], link)
        return known[key]

    def mean_rank(self, degrees: Degrees, size: int, sharding: int) -> MeanRank:
        """Returns a rank's share if layers were spread in proportion to the speed of the ranks."""
        known, key = self._known.means, (degrees, size, sharding)
        if key not in known:
            known[key] = self._mean(degrees, size, sharding)
        return known[key]

    def _mean(self, degrees: Degrees, size: int, sharding: int) -> MeanRank:
        tables, layout = self.classes(degrees, size, sharding), self.layout(degrees)
        each = [(table.layers.seconds + table.gathered).sum(axis=1) for table in tables]
        rates = np.array([1 / seconds.sum() for seconds in each])
        fastest = int(rates.argmax())
        table, seconds = tables[fastest], each[fastest]
        part = 1 / float(rates[list(layout.classes[0])].sum() * seconds.sum())
        if len(tables) == 1:
            # Layers are whole: some rank has at least as many of those between the ends.
            inner = (table.layers.seconds + table.gathered).sum(axis=0)
            whole = -(-(len(inner) - 2) // degrees.pipeline) * float(np.median(inner))
            part = max(part, whole / float(seconds.sum()))
        layers, share = table.layers, 1 / degrees.pipeline
        forward, input_grad, weight_grad = (seconds * part).tolist()
        return MeanRank(
            (forward, input_grad, weight_grad),
            float(table.fixed.sum()) * share,
            float(layers.activation.sum()) * share,
            float(layers.deferred.sum()) * share,
            float(layers.again.sum()) * share,
            float(np.mean(layout.limits)),
            float(table.ending.sum()) * share,
        )


class _Known(NamedTuple):
    """What has been computed."""

    layouts: dict[Degrees, Layout]
    tables: dict[tuple[int, int, int, Link], LayerTable]
    classes: dict[tuple[Degrees, int, int], list[RankTable]]
    means: dict[tuple[Degrees, int, int], MeanRank]


def fixed_bytes(layers: LayerTable, *, sharding: int, copies: int) -> Floats:
    """Returns the bytes of each layer whatever is in flight, if copies share what this ZeRO level says."""
    shared = [copies if sharding >= level else 1 for level in (1, 2, 3)]
    return layers.optimizer / shared[0] + layers.gradient / shared[1] + layers.parameter / shared[2]


def _shared(
    layers: LayerTable, ring: Ring, *, sharding: int, copies: int, bandwidth: float, overlap: bool
) -> RankTable:
    """Returns the table with what a ZeRO level adds and saves.

    Level 0 sums whole gradients over the copies: scattered and gathered. From level 1 on each copy updates its part of
    the parameters, which are gathered in place of gradients. At level 2 gradients are scattered after each microbatch,
    at level 3 parameters are gathered before each F and each backward.

    With `overlap` gradients travel beside the backward that makes them, and parameters beside the forward before the
    one that needs them: what is longer counts. What travels once a step does so beside a single microbatch.
    """
    fixed = fixed_bytes(layers, sharding=sharding, copies=copies)
    stepped = (layers.parameter + layers.gradient + layers.optimizer) / (copies if sharding else 1)
    updated = _UPDATES * stepped / bandwidth
    gathered = np.zeros_like(layers.seconds)
    if copies == 1:
        return RankTable(layers, gathered, fixed, updated)
    scatter, gather = ring.seconds(layers.gradient), ring.seconds(layers.parameter)
    forward, backward = (layers.seconds[0], layers.seconds[1] + layers.seconds[2]) if overlap else (0.0, 0.0)
    if sharding == 3:
        gathered[0] = np.maximum(gather - forward, 0)
        gathered[1] = np.maximum(gather + scatter - backward, 0)
        return RankTable(layers, gathered, fixed, updated)
    if sharding == 2:
        gathered[1] = np.maximum(scatter - backward, 0)
    after_backward = {0: 2 * scatter, 1: scatter, 2: np.zeros_like(scatter)}[sharding]
    before_forward = gather * (sharding > 0)
    ending = updated + np.maximum(after_backward - backward, 0) + np.maximum(before_forward - forward, 0)
    return RankTable(layers, gathered, fixed, ending)


_UPDATES = 2
"""How often the optimizer passes through the memory of what it reads and writes."""
