"""A fleet as a file, TOML or JSON, checked on load.

[devices.h100]
memory_bytes = 80e9
flops_per_second = 989e12
efficiency = 0.62

[[hosts]]
device = "h100"
devices = 8
count = 128
latency_seconds = 5e-6
bytes_per_second = 400e9

[[network]]                # one table a level, from the innermost out
hosts = 0                  # how many hosts it joins; 0, as for the last level: all
latency_seconds = 1e-5
bytes_per_second = 45e9    # of each device
host_bytes_per_second = 360e9
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

import msgspec

from penstock.cluster import Link
from penstock.errors import UserError, check_type
from penstock.planner.fleet import DeviceKind, Fleet, Hosts, Network, check_above_zero


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    memory_bytes: float
    flops_per_second: float
    efficiency: float = 0.7
    memory_bytes_per_second: float = math.inf
    reserved_bytes: float = 0.0
    speed: float = 1.0


class _Hosts(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    devices: int
    bytes_per_second: float = math.inf
    latency_seconds: float = 0.0
    count: int = 1


class _Network(msgspec.Struct, forbid_unknown_fields=True):
    bytes_per_second: float
    latency_seconds: float = 0.0
    hosts: int = 0
    host_bytes_per_second: float = math.inf


class _File(msgspec.Struct, forbid_unknown_fields=True):
    devices: dict[str, _Device]
    hosts: list[_Hosts]
    network: list[_Network] = []


def load_fleet(path: str | Path) -> Fleet:
    """Returns the fleet that the TOML or JSON file at `path` describes.

    Raises:
        UserError: a file that cannot be read, an unknown or missing key, or a number out of range.
    """
    check_type("path", path, str, Path, example='e.g. "cluster.toml"')
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"cannot read {path}: {reason}; name a TOML or JSON file of a cluster") from None
    try:
        return fleet_from_toml(text) if path.suffix != ".json" else _fleet(json.loads(text))
    except (UserError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def fleet_from_toml(text: str) -> Fleet:
    """Returns the fleet that TOML text describes.

    Raises:
        UserError: as `load_fleet`.
    """
    try:
        return _fleet(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not valid TOML: {error}") from None


def _fleet(table: object) -> Fleet:
    try:
        file = msgspec.convert(table, _File)
    except msgspec.ValidationError as error:
        raise UserError(
            f"no cluster: {error}; describe [devices.NAME], [[hosts]] and, for several hosts, [[network]]"
        ) from None
    kinds = tuple(DeviceKind(name, *msgspec.structs.astuple(device)) for name, device in file.devices.items())
    hosts = tuple(
        Hosts(
            one.device,
            one.devices,
            one.count,
            _link(f"hosts of {one.device}", one.latency_seconds, one.bytes_per_second),
        )
        for one in file.hosts
    )
    network = tuple(
        Network(_link("network", one.latency_seconds, one.bytes_per_second), one.hosts, one.host_bytes_per_second)
        for one in file.network
    )
    return Fleet(kinds, hosts, network)


def _link(what: str, latency_seconds: float, bytes_per_second: float) -> Link:
    check_above_zero(f"{what}: bytes_per_second", bytes_per_second)
    if not latency_seconds >= 0:
        raise UserError(f"{what}: latency_seconds={latency_seconds}; use 0 or more, e.g. 1e-5")
    return Link(latency_seconds, bytes_per_second)
