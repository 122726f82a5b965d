"""The machine: a device per rank and the links between them, in nested groups (host, rack)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

from penstock.errors import UserError, check_type


@dataclass(frozen=True)
class Device:
    """What one rank computes on.

    Attributes:
        memory_bytes: its memory.
        speed: how many times faster than the device the costs were measured on.
        waking: `(seconds that the rank stood still, seconds that its next op takes longer)`, by rising wait, on lines
            between; the last holds for all longer waits. What a core ran before has left its caches by then.
    """

    memory_bytes: float = math.inf
    speed: float = 1
    waking: tuple[tuple[float, float], ...] = ()

    def waking_seconds(self, stood: float) -> float:
        """Returns how much longer an op takes whose rank stood still for so many seconds before it."""
        before: tuple[float, float] = (0, 0)
        for point in self.waking:
            if stood < point[0]:
                share = (stood - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]


@dataclass(frozen=True)
class Link:
    """A way from one rank to another. A message of n bytes takes `latency_seconds + n / bytes_per_second`.

    The link is busy for the second term only: the next message may start while the last bytes are under way.
    """

    latency_seconds: float = 0
    bytes_per_second: float = math.inf

    def busy_seconds(self, num_bytes: float) -> float:
        """Returns how long a message of `num_bytes` keeps the link from the next message."""
        return 0 if self.bytes_per_second == math.inf else num_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Cluster:
    """Devices by rank, and links by the smallest group that holds both ends.

    Attributes:
        devices: one a rank.
        levels: `(ranks per group, link)` from the innermost out: `((8, nvlink), (64, infiniband))`. The
            first level whose groups hold both ranks gives the link; the last level serves all others.
        host: the link between a device and its host's memory, which serves both ways in turn.
        overlap: whether ranks compute while they send. Without it a rank stands still from a send until its message
            has arrived, and gathers parameters as it computes: one thing at a time.
        pairs: `[source][target]`, where links follow no groups: these count then and levels do not.

    Raises:
        UserError: no device, no level, negative numbers, or pairs of other ranks than there are.
    """

    devices: tuple[Device, ...]
    levels: tuple[tuple[int, Link], ...]
    overlap: bool = True
    host: Link = Link()
    pairs: tuple[tuple[Link, ...], ...] = ()

    def __post_init__(self) -> None:
        check_type("devices", self.devices, tuple, list, example="one a rank, e.g. (penstock.Device(),) * 4")
        check_type("levels", self.levels, tuple, list, example="e.g. ((4, penstock.Link()),)")
        if not self.devices or not self.levels:
            raise UserError(
                f"a cluster of {len(self.devices)} devices and {len(self.levels)} levels of links; it has at "
                "least one of each, e.g. Cluster.uniform(4)"
            )
        if self.pairs and any(len(row) != len(self.devices) for row in (self.pairs, *self.pairs)):
            raise UserError(f"pairs of {len(self.pairs)} ranks for {len(self.devices)} devices; give one link a pair")
        for device in self.devices:
            check_type("a device", device, Device, example="e.g. penstock.Device()")
            if not (_is_number(device.speed) and device.speed > 0):
                raise UserError(f"device speed={device.speed!r}; use a number above 0, 1 for the measured device")
            waits = [0.0, *(stood for stood, _ in device.waking)]
            if any(later <= before for before, later in pairwise(waits)) or any(more < 0 for _, more in device.waking):
                raise UserError(
                    f"device waking={device.waking!r}; give waits that rise from above 0, e.g. ((0.01, 1e-4),)"
                )
        for size, link in self.levels:
            numbers = _is_number(link.latency_seconds) and _is_number(link.bytes_per_second)
            if not numbers or size < 1 or not link.latency_seconds >= 0 or not link.bytes_per_second > 0:
                raise UserError(f"level {size}, {link}: groups hold a rank or more, latency ≥ 0, bandwidth > 0")

    @staticmethod
    def uniform(num_ranks: int, *, latency_seconds: float = 0, bytes_per_second: float = math.inf) -> Cluster:
        """Returns equal devices, every pair joined by an equal link of its own.

        Raises:
            UserError: `num_ranks` is not a whole number of at least 1.
        """
        if isinstance(num_ranks, bool) or not isinstance(num_ranks, int) or num_ranks < 1:
            raise UserError(f"num_ranks={num_ranks!r}; a cluster has a whole number of ranks, e.g. 4")
        return Cluster((Device(),) * num_ranks, ((num_ranks, Link(latency_seconds, bytes_per_second)),))

    def link(self, source: int, target: int) -> Link:
        """Returns the link from rank `source` to rank `target`; to itself, that to its host's memory."""
        if source == target:
            return self.host
        if self.pairs:
            return self.pairs[source][target]
        for size, link in self.levels:
            if source // size == target // size:
                return link
        return self.levels[-1][1]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
