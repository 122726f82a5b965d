"""The devices there are: kinds, hosts that hold them, and the network between hosts.

A `Cluster` is what one pipeline sees, a rank a device. A `Fleet` is what all of training runs on, and degrees are laid
over it; `layout` makes the one into the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from penstock.cluster import Link
from penstock.errors import UserError, check_type

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DeviceKind:
    """A kind of device.

    Attributes:
        name: of the kind.
        memory_bytes: its memory.
        flops_per_second: its peak in the type that training multiplies in: what MFU is counted by.
        efficiency: share of the peak that a large matrix multiplication reaches.
        memory_bytes_per_second: bandwidth of its memory.
        reserved_bytes: memory that tensors cannot have: driver, communication buffers, fragmentation.
        speed: how many times faster than the device a profile was measured on; used with profiles only.
    """

    name: str
    memory_bytes: float
    flops_per_second: float
    efficiency: float = 0.7
    memory_bytes_per_second: float = math.inf
    reserved_bytes: float = 0.0
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "flops_per_second", "efficiency", "memory_bytes_per_second", "speed"):
            check_above_zero(f"device {self.name}: {name}", getattr(self, name))
        if self.efficiency > 1:
            raise UserError(f"device {self.name}: efficiency={self.efficiency}; it is a share of the peak, e.g. 0.7")
        if not 0 <= self.reserved_bytes < self.memory_bytes:
            raise UserError(
                f"device {self.name}: reserved_bytes={self.reserved_bytes} of memory_bytes={self.memory_bytes}; "
                "use less than the memory, e.g. 6e9"
            )

    @property
    def usable_bytes(self) -> float:
        """Memory that tensors can have."""
        return self.memory_bytes - self.reserved_bytes


@dataclass(frozen=True)
class Hosts:
    """So many equal hosts.

    Attributes:
        device: name of the kind of their devices.
        devices: on each host.
        count: of hosts.
        link: between two devices of a host, in one direction.
    """

    device: str
    devices: int
    count: int = 1
    link: Link = field(default_factory=Link)

    def __post_init__(self) -> None:
        for name in ("devices", "count"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"hosts of {self.device}: {name}={value!r}; use a whole number of at least 1, e.g. 8")


@dataclass(frozen=True)
class Network:
    """A level of the network between hosts.

    Attributes:
        link: what one device gets of it, in one direction.
        hosts: how many hosts it joins, in the order in which they are listed; 0: all of them.
        host_bytes_per_second: what all devices of a host get together; infinite where each has a way of its own.
    """

    link: Link
    hosts: int = 0
    host_bytes_per_second: float = math.inf

    def shared(self, senders: int) -> Link:
        """Returns what each of `senders` devices of a host gets."""
        rate = min(self.link.bytes_per_second, self.host_bytes_per_second / max(senders, 1))
        return Link(self.link.latency_seconds, rate)


@dataclass(frozen=True)
class Fleet:
    """All devices, host by host.

    Attributes:
        kinds: of devices.
        hosts: in the order in which ranks are laid over them.
        network: from the innermost level out; the last joins all hosts. May be empty for a single host.

    Raises:
        UserError: no host, a kind that is not described, or several hosts without a network.
    """

    kinds: tuple[DeviceKind, ...]
    hosts: tuple[Hosts, ...]
    network: tuple[Network, ...] = ()

    def __post_init__(self) -> None:
        check_type("kinds", self.kinds, tuple, list, example='e.g. (DeviceKind("h100", 80e9, 989e12),)')
        check_type("hosts", self.hosts, tuple, list, example='e.g. (Hosts("h100", devices=8),)')
        names = [kind.name for kind in self.kinds]
        if not self.hosts:
            raise UserError('a fleet without hosts; list at least one, e.g. Hosts("h100", devices=8)')
        for hosts in self.hosts:
            if hosts.device not in names:
                raise UserError(f'hosts of "{hosts.device}", a kind that is not described; known: {", ".join(names)}')
        if sum(hosts.count for hosts in self.hosts) > 1 and not self.network:
            raise UserError(
                "several hosts and no network; say what joins them, e.g. network=(Network(Link(1e-5, 5e10)),)"
            )

    @cached_property
    def num_devices(self) -> int:
        """Devices over all hosts."""
        return sum(hosts.devices * hosts.count for hosts in self.hosts)

    @cached_property
    def kind_of(self) -> Numbers:
        """Of each device the index of its kind."""
        names = [kind.name for kind in self.kinds]
        each = [np.full(hosts.devices * hosts.count, names.index(hosts.device)) for hosts in self.hosts]
        return np.concatenate(each)

    @cached_property
    def host_of(self) -> Numbers:
        """Of each device the number of its host."""
        sizes = [hosts.devices for hosts in self.hosts for _ in range(hosts.count)]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def links_in_hosts(self) -> tuple[Link, ...]:
        """Of each host the link between its devices."""
        return tuple(hosts.link for hosts in self.hosts for _ in range(hosts.count))

    @property
    def most_devices(self) -> int:
        """Devices of the largest host."""
        return max(hosts.devices for hosts in self.hosts)

    def network_between(self, first: Numbers, second: Numbers) -> Network:
        """Returns the outermost level that some of these pairs of hosts need."""
        for level in self.network[:-1]:
            if level.hosts and (first // level.hosts == second // level.hosts).all():
                return level
        return self.network[-1]


def check_above_zero(name: str, value: object) -> None:
    """Refuses what is no number above 0.

    Raises:
        UserError: so it is.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{name}={value!r}; use a number above 0")
