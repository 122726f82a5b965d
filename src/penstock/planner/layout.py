"""Degrees laid over a fleet: on which devices each rank's copies lie, and which links lie between them.

    outermost "pipeline"                      outermost "data"
    devices 0 1 2 3 | 4 5 6 7                 devices 0 1 2 3 | 4 5 6 7
    rank    0 0 0 0 | 1 1 1 1                 rank    0 0 1 1 | 0 0 1 1
    copy    0 0 1 1 | 0 0 1 1                 copy    0 0 0 0 | 1 1 1 1

The devices of a tensor group are neighbours always. A rank is as slow, and its links are as slow, as those of its
slowest copy: the copies wait for one another at the end of each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from penstock.cluster import Link
from penstock.planner.fleet import Fleet, Numbers
from penstock.simulator.orders import Floats

Outermost = Literal["pipeline", "data"]


class Ring(NamedTuple):
    """How the copies of a rank exchange gradients: first inside hosts, then across them.

    Attributes:
        inside: copies on one host.
        link: between those.
        hosts: that hold copies.
        network: what each device gets between them.
    """

    inside: int
    link: Link
    hosts: int
    network: Link

    def seconds(self, num_bytes: Floats) -> Floats:
        """Returns how long scattering sums of so many bytes over all copies takes, or gathering them."""
        first = (self.inside - 1) / self.inside * _busy(self.link, num_bytes)
        second = (self.hosts - 1) / self.hosts * _busy(self.network, num_bytes / self.inside)
        # Long rings hide their latencies in trees, which take a logarithm of them.
        steps = np.log2(self.hosts) * self.network.latency_seconds + (self.inside - 1) * self.link.latency_seconds
        return np.where(num_bytes > 0, first + second + steps, 0.0)


class RankClass(NamedTuple):
    """What decides how a rank runs layers: kinds of devices, the link inside tensor groups, the ring of its copies."""

    kinds: tuple[int, ...]
    tensor_link: Link
    ring: Ring


class Degrees(NamedTuple):
    """How many ways each dimension is split, and what is outermost on the devices."""

    data: int
    tensor: int
    pipeline: int
    outermost: Outermost = "pipeline"

    @property
    def devices(self) -> int:
        """Devices in use."""
        return self.data * self.tensor * self.pipeline


@dataclass(frozen=True)
class Layout:
    """Degrees on a fleet; see the top of this file."""

    fleet: Fleet
    degrees: Degrees

    @cached_property
    def devices(self) -> Numbers:
        """[rank, copy, member of the tensor group]."""
        data, tensor, pipeline, outermost = self.degrees
        numbers = np.arange(self.degrees.devices)
        if outermost == "pipeline":
            return numbers.reshape(pipeline, data, tensor)
        return numbers.reshape(data, pipeline, tensor).transpose(1, 0, 2)

    @cached_property
    def kinds(self) -> tuple[tuple[int, ...], ...]:
        """Of each rank the kinds of devices that its copies lie on."""
        return tuple(tuple(np.unique(row).tolist()) for row in self.fleet.kind_of[self.devices])

    @cached_property
    def limits(self) -> tuple[float, ...]:
        """Of each rank the memory of its smallest device."""
        usable = [kind.usable_bytes for kind in self.fleet.kinds]
        return tuple(min(usable[kind] for kind in kinds) for kinds in self.kinds)

    @cached_property
    def tensor_links(self) -> tuple[Link, ...]:
        """Of each rank the link inside its tensor groups."""
        return tuple(self._inside(row) for row in self.fleet.host_of[self.devices])

    def _inside(self, groups: Numbers) -> Link:
        """Returns the slowest link inside these groups of hosts, one row a group."""
        first, last = groups[:, 0], groups[:, -1]
        if (first == last).all():
            return _slowest([self.fleet.links_in_hosts[host] for host in np.unique(first).tolist()])
        return self.fleet.network_between(first, last).shared(_most(groups.reshape(-1)))

    @cached_property
    def classes(self) -> tuple[tuple[int, ...], tuple[RankClass, ...]]:
        """Of each rank the number of its class, and the classes: ranks of one run the same layers alike."""
        each = list(map(RankClass, self.kinds, self.tensor_links, self.rings))
        classes = list(dict.fromkeys(each))
        return tuple(map(classes.index, each)), tuple(classes)

    @cached_property
    def boundaries(self) -> tuple[Link, ...]:
        """Of each rank the link to the next, of the last one to the first."""
        hosts = self.fleet.host_of[self.devices]
        return tuple(self._between(hosts[rank], hosts[(rank + 1) % len(hosts)]) for rank in range(len(hosts)))

    def _between(self, here: Numbers, there: Numbers) -> Link:
        crossing = here != there
        inside = [self.fleet.links_in_hosts[host] for host in np.unique(here[~crossing]).tolist()]
        if not crossing.any():
            return _slowest(inside)
        network = self.fleet.network_between(here[crossing], there[crossing])
        # Stages follow one another on a host too: each sends down and up at once, which a full-duplex link carries.
        return _slowest([*inside, network.shared(_most(here[crossing]))])

    @cached_property
    def rings(self) -> tuple[Ring, ...]:
        """Of each rank how its copies exchange gradients."""
        return tuple(self._ring(row) for row in self.fleet.host_of[self.devices][:, :, 0])

    def _ring(self, hosts: Numbers) -> Ring:
        each, counts = np.unique(hosts, return_counts=True)
        inside = int(counts.min())
        link = _slowest([self.fleet.links_in_hosts[host] for host in each.tolist()])
        if len(each) == 1:
            return Ring(inside, link, 1, link)
        network = self.fleet.network_between(np.full(len(each), each[0]), each)
        # At the end of a step all devices of a host exchange at once.
        return Ring(inside, link, len(each), network.shared(self.fleet.most_devices))


def _busy(link: Link, num_bytes: Floats) -> Floats:
    return num_bytes / link.bytes_per_second


def _most(hosts: Numbers) -> int:
    """Returns how often the most frequent host occurs."""
    return int(np.unique(hosts, return_counts=True)[1].max())


def _slowest(links: list[Link]) -> Link:
    return Link(max(link.latency_seconds for link in links), min(link.bytes_per_second for link in links))
