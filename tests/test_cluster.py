"""Clusters: devices, nested links, and those that are refused."""

import math
from fractions import Fraction
from typing import Any

import pytest

from penstock import Cluster, Device, Link
from penstock.errors import UserError

NVLINK, ETHERNET = Link(1, 400), Link(10, 100)


def test_the_innermost_group_that_holds_both_ranks_gives_the_link() -> None:
    rack = Link(50, 10)
    cluster = Cluster((Device(),) * 8, ((2, NVLINK), (4, ETHERNET), (8, rack)))
    assert cluster.link(0, 1) is cluster.link(1, 0) is NVLINK
    assert cluster.link(6, 7) is NVLINK
    assert cluster.link(1, 2) is cluster.link(0, 3) is ETHERNET
    assert cluster.link(3, 4) is cluster.link(7, 0) is rack


def test_the_last_level_serves_ranks_that_share_no_group() -> None:
    cluster = Cluster((Device(),) * 4, ((2, NVLINK),))
    assert cluster.link(1, 2) is NVLINK


def test_a_uniform_cluster_joins_every_pair_alike() -> None:
    cluster = Cluster.uniform(3, latency_seconds=2, bytes_per_second=5)
    assert len(cluster.devices) == 3
    assert {cluster.link(a, b) for a in range(3) for b in range(3) if a != b} == {Link(2, 5)}


def test_a_rank_reaches_itself_by_the_link_to_its_hosts_memory() -> None:
    cluster = Cluster((Device(),) * 2, ((2, Link(2, 5)),), host=Link(1, 7))
    assert cluster.link(1, 1) == Link(1, 7)
    assert cluster.link(0, 1) == Link(2, 5)


def test_a_link_is_busy_for_the_bytes_and_not_for_the_latency() -> None:
    assert Link(latency_seconds=7, bytes_per_second=4).busy_seconds(8) == 2
    assert Link(latency_seconds=7).busy_seconds(10**30) == 0
    assert Link(bytes_per_second=Fraction(3)).busy_seconds(1) == Fraction(1, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((), ((1, Link()),)), "a cluster of 0 devices and 1 levels of links"),
        (((Device(),), ()), "a cluster of 1 devices and 0 levels of links; it has at least one of each, e.g."),
        (((Device(speed=0),), ((1, Link()),)), "device speed=0; use a number above 0, 1 for the measured device"),
        (((Device(speed=-2),), ((1, Link()),)), "device speed=-2; use"),
        (((Device(speed=math.nan),), ((1, Link()),)), "device speed=nan; use"),
        (((Device(waking=((2, 1), (2, 3))),), ((1, Link()),)), "waking=((2, 1), (2, 3)); give waits that rise"),
        (((Device(waking=((2, -1),)),), ((1, Link()),)), "waking=((2, -1),); give waits that rise"),
        (((Device(speed="fast"),), ((1, Link()),)), "device speed='fast'; use"),  # type: ignore[arg-type]
        (((Device(),), ((0, Link()),)), "level 0, "),
        (((Device(),), ((1, Link(latency_seconds=-1)),)), "latency_seconds=-1"),
        (((Device(),), ((1, Link(latency_seconds=math.nan)),)), "latency_seconds=nan"),
        (((Device(),), ((1, Link(bytes_per_second=0)),)), "bytes_per_second=0"),
        (((Device(),), ((1, Link(bytes_per_second="1G")),)), "bytes_per_second='1G'"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_is_refused(arguments: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        Cluster(*arguments)
    assert said in str(refused.value)
    if "level " in said or ("=" in said and "speed" not in said and "waking" not in said):
        assert "groups hold a rank or more, latency ≥ 0, bandwidth > 0" in str(refused.value)


@pytest.mark.parametrize("num_ranks", [0, -1, 2.5, True, "4"])
def test_a_number_of_ranks_that_is_none_is_refused(num_ranks: Any) -> None:
    with pytest.raises(UserError) as refused:
        Cluster.uniform(num_ranks)
    assert str(refused.value) == f"num_ranks={num_ranks!r}; a cluster has a whole number of ranks, e.g. 4"


def test_an_op_takes_longer_after_a_wait_on_lines_between_what_is_known() -> None:
    device = Device(waking=((2, 4), (6, 6)))
    assert [device.waking_seconds(stood) for stood in (0, 1, 2, 4, 6, 99)] == [0, 2, 4, 5, 6, 6]
    assert Device().waking_seconds(5) == 0


def test_links_that_follow_no_groups_are_given_pair_by_pair() -> None:
    near, far = Link(0, 10), Link(1, 1)
    cluster = Cluster((Device(),) * 2, ((2, near),), pairs=((near, far), (near, near)))
    assert cluster.link(0, 1) == far
    assert cluster.link(1, 0) == near
    with pytest.raises(UserError, match="pairs of 1 ranks for 2 devices; give one link a pair"):
        Cluster((Device(),) * 2, ((2, near),), pairs=((near, far),))
