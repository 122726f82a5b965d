"""A cluster file becomes a fleet, or is refused in one sentence."""

import math
from pathlib import Path

import pytest

from penstock.cluster import Link
from penstock.errors import UserError
from penstock.planner import DeviceKind, Fleet, Hosts, Network, fleet_from_toml, load_fleet

TEXT = """
[devices.big]
memory_bytes = 80e9
flops_per_second = 1e15
efficiency = 0.6
memory_bytes_per_second = 3e12
reserved_bytes = 5e9

[devices.small]
memory_bytes = 24e9
flops_per_second = 1e14

[[hosts]]
device = "big"
devices = 2
count = 2
latency_seconds = 1e-6
bytes_per_second = 4e11

[[hosts]]
device = "small"
devices = 4

[[network]]
hosts = 2
bytes_per_second = 5e10

[[network]]
bytes_per_second = 1e9
latency_seconds = 1e-4
host_bytes_per_second = 2e9
"""

FLEET = Fleet(
    (
        DeviceKind("big", 80e9, 1e15, 0.6, 3e12, 5e9),
        DeviceKind("small", 24e9, 1e14),
    ),
    (Hosts("big", 2, 2, Link(1e-6, 4e11)), Hosts("small", 4)),
    (Network(Link(0.0, 5e10), 2), Network(Link(1e-4, 1e9), 0, 2e9)),
)


def test_a_file_says_devices_hosts_and_network(tmp_path: Path) -> None:
    assert fleet_from_toml(TEXT) == FLEET
    path = tmp_path / "cluster.toml"
    path.write_text(TEXT)
    assert load_fleet(path) == FLEET


def test_json_says_the_same(tmp_path: Path) -> None:
    import json
    import tomllib

    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(tomllib.loads(TEXT)))
    assert load_fleet(path) == FLEET


def test_devices_are_numbered_host_by_host() -> None:
    assert FLEET.num_devices == 8
    assert FLEET.kind_of.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert FLEET.host_of.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    assert FLEET.kinds[0].usable_bytes == 75e9


def test_devices_of_a_host_share_what_the_host_has() -> None:
    way = FLEET.network[1]
    assert way.shared(1) == Link(1e-4, 1e9), "one sender is bound by its own device"
    assert way.shared(4) == Link(1e-4, 5e8)
    assert Network(Link(0, 1e9)).shared(8).bytes_per_second == 1e9, "with ways of their own none is slowed"


def test_examples_are_readable() -> None:
    counts = {
        path.stem: load_fleet(path).num_devices
        for path in (Path(__file__).parents[2] / "examples/clusters").glob("*.toml")
    }
    assert counts == {"a100": 1024, "h100": 1024, "mixed": 16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("memory_bytes = 80e9", "memory = 80e9"), "no cluster: .*memory"),
        (("efficiency = 0.6", "efficiency = 60"), r"device big: efficiency=60.*it is a share of the peak, e.g. 0.7"),
        (("flops_per_second = 1e15", "flops_per_second = 0"), "device big: flops_per_second=0.*use a number above 0"),
        (("reserved_bytes = 5e9", "reserved_bytes = 90e9"), "reserved_bytes=90.*use less than the memory"),
        (('device = "small"', 'device = "tiny"'), 'hosts of "tiny", a kind that is not described; known: big, small'),
        (("devices = 4", "devices = 0"), "hosts of small: devices=0; use a whole number of at least 1"),
        (("bytes_per_second = 5e10", "bytes_per_second = -1"), "network: bytes_per_second=-1"),
        (("latency_seconds = 1e-4", "latency_seconds = -1.0"), "network: latency_seconds=-1.0; use 0 or more"),
        (("[devices.big]", "[devices.big"), "not valid TOML"),
    ],
)
def test_a_faulty_file_is_told_in_one_sentence(change: tuple[str, str], message: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(UserError, match=message):
        fleet_from_toml(TEXT.replace(*change, 1))


def test_hosts_without_a_network_are_refused() -> None:
    with pytest.raises(UserError, match="several hosts and no network"):
        Fleet(FLEET.kinds, FLEET.hosts)
    assert Fleet(FLEET.kinds, (Hosts("big", 2),)).network == ()
    assert Hosts("big", 2).link.bytes_per_second == math.inf


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.toml: No such file"):
        load_fleet(tmp_path / "none.toml")
