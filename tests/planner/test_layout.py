"""Degrees lie on devices as drawn, and get the links that lie between these."""

import numpy as np
import pytest
from tests.planner.machines import INSIDE, OUTSIDE, fleet

from penstock.cluster import Link
from penstock.planner import DeviceKind, Fleet, Hosts, Network
from penstock.planner.layout import Degrees, Layout

BIG, SMALL = DeviceKind("big", 80e9, 1e15), DeviceKind("small", 24e9, 1e14)
SLOW = Link(1e-3, 1e8)


def test_with_the_pipeline_outermost_each_rank_has_neighbouring_devices() -> None:
    found = Layout(fleet(), Degrees(data=2, tensor=2, pipeline=2)).devices
    assert found.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_with_data_outermost_each_copy_has_neighbouring_devices() -> None:
    found = Layout(fleet(), Degrees(2, 2, 2, "data")).devices
    assert found.tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_what_is_outermost_crosses_hosts() -> None:
    pipeline, data = (Layout(fleet(), Degrees(2, 2, 2, one)) for one in ("pipeline", "data"))
    assert pipeline.boundaries == (OUTSIDE, OUTSIDE)
    assert data.boundaries == (INSIDE, INSIDE)
    assert [(ring.inside, ring.hosts) for ring in pipeline.rings] == [(2, 1), (2, 1)]
    assert [(ring.inside, ring.hosts) for ring in data.rings] == [(1, 2), (1, 2)]


def test_a_tensor_group_larger_than_a_host_has_the_network_between() -> None:
    assert Layout(fleet(), Degrees(1, 4, 2)).tensor_links == (INSIDE, INSIDE)
    assert Layout(fleet(), Degrees(1, 8, 1)).tensor_links == (OUTSIDE,)


def test_copies_on_one_host_share_its_way_out() -> None:
    hosts = (Hosts("big", 4, 2, INSIDE),)
    shared = Fleet((BIG,), hosts, (Network(OUTSIDE, host_bytes_per_second=1e9),))
    assert Layout(shared, Degrees(4, 1, 2)).boundaries[0].bytes_per_second == 1e9 / 4
    assert Layout(shared, Degrees(1, 4, 2)).boundaries[0].bytes_per_second == 1e9 / 4
    assert Layout(shared, Degrees(2, 1, 4)).boundaries[1].bytes_per_second == 1e9 / 2, "two copies cross here"
    assert Layout(shared, Degrees(2, 1, 4)).boundaries[0] == INSIDE


def test_racks_are_crossed_only_where_they_must() -> None:
    racks = Fleet((BIG,), (Hosts("big", 1, 4, INSIDE),), (Network(OUTSIDE, hosts=2), Network(SLOW)))
    assert Layout(racks, Degrees(1, 1, 4)).boundaries == (OUTSIDE, SLOW, OUTSIDE, SLOW)


def test_a_rank_is_as_small_as_its_smallest_device() -> None:
    mixed = Fleet((BIG, SMALL), (Hosts("big", 2), Hosts("small", 2)), (Network(OUTSIDE),))
    apart, joined = Layout(mixed, Degrees(2, 1, 2)), Layout(mixed, Degrees(2, 1, 2, "data"))
    assert apart.kinds == ((0,), (1,))
    assert apart.limits == (80e9, 24e9)
    assert joined.kinds == ((0, 1), (0, 1))
    assert joined.limits == (24e9, 24e9)


def test_ranks_that_run_layers_alike_are_of_one_class() -> None:
    numbers, classes = Layout(fleet(), Degrees(1, 1, 8)).classes
    assert numbers == (0,) * 8
    assert len(classes) == 1


@pytest.mark.parametrize("inside", [1, 4])
def test_a_ring_takes_the_published_time(inside: int) -> None:
    # Scattering B bytes over n members moves (n-1)/n of them over each link: on one host, then between hosts a part.
    layout = Layout(fleet(hosts=2, devices=inside), Degrees(2 * inside, 1, 1))
    ring, size = layout.rings[0], 1e9
    expected = (inside - 1) / inside * size / 1e10 + 1 / 2 * size / inside / 1e9
    latencies = (inside - 1) * 1e-6 + 1e-5
    assert ring.seconds(np.array([size, 0.0])) == pytest.approx([expected + latencies, 0])
