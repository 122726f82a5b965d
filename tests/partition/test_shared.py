"""Ranks that hold several stages: what fits them is one memory, told as `simulate` has it, and least runs again."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from random import Random

import numpy as np
import pytest
from tests.partition.everything import Instance, least_step, random_row

import penstock as ps
from penstock.errors import PartitionError
from penstock.partition import LayerCosts, best_partition
from penstock.partition.shared import covering

NAMES = ("interleaved_1f1b", "zb_v", "wave")


def instance(seed: int) -> Instance:
    """Returns five layers, of later seeds six, as four stages on two unlike devices of little memory."""
    random = Random(seed)
    layers = 5 if seed < 6 else 6

    row = partial(random_row, random, layers)
    costs = LayerCosts(
        row(1, 9),
        row(1, 9),
        row(1, 9),
        parameter_bytes=row(1, 5),
        gradient_bytes=row(0, 2),
        optimizer_bytes=row(0, 2),
        activation_bytes=row(1, 6),
        deferred_bytes=row(0, 2),
        boundary_bytes=row(0, 2),
    )
    schedule = ps.named_schedule(NAMES[seed % 3], num_ranks=2, num_microbatches=4)
    devices = tuple(ps.Device(random.choice((50, 65, 90)), random.choice((1, 2))) for _ in range(2))
    return costs, schedule, ps.Cluster(devices, ((2, ps.Link(0.5, 4.0)),))


@pytest.mark.parametrize("seed", range(9))
def test_no_other_partition_that_fits_is_faster(seed: int) -> None:
    costs, schedule, cluster = instance(seed)
    expected = least_step((costs, schedule, cluster), recompute=False)
    if expected is None:
        with pytest.raises(
            PartitionError, match=r"of the even one rank [01] takes .* bytes and has .*; allow recompute"
        ):
            best_partition(costs, schedule, cluster=cluster)
        return
    found = best_partition(costs, schedule, cluster=cluster)
    assert found.proven
    assert found.seconds == pytest.approx(expected)
    timeline = ps.simulate(schedule, costs.stage_costs(found.partition), cluster)
    assert found.memory_bytes == pytest.approx(timeline.peak_memory)


@pytest.mark.parametrize("seed", (1, 2))
def test_with_recompute_all_that_can_fit_fits_and_near_the_best_there_is(seed: int) -> None:
    costs, schedule, cluster = instance(seed)
    expected = least_step((costs, schedule, cluster), recompute=True)
    if expected is None:
        with pytest.raises(PartitionError, match="use more ranks"):
            best_partition(costs, schedule, cluster=cluster, recompute=True)
        return
    found = best_partition(costs, schedule, cluster=cluster, recompute=True)
    timeline = ps.simulate(schedule, costs.stage_costs(found.partition, found.recompute), cluster)
    assert all(held <= device.memory_bytes for held, device in zip(timeline.peak_memory, cluster.devices, strict=True))
    assert found.memory_bytes == pytest.approx(timeline.peak_memory)
    assert expected <= found.seconds * (1 + 1e-12)
    assert found.seconds <= 1.05 * expected
    assert not (found.proven and any(found.recompute))


def test_many_layers_are_brought_within_memory_by_moving_cuts() -> None:
    """Too many layers for all partitions to be timed, and none of the balanced ones fits the small device."""
    layers = 40
    costs = LayerCosts([1.0] * layers, [1.0] * layers, [1.0] * layers, parameter_bytes=[1.0] * layers)
    schedule = ps.named_schedule("interleaved_1f1b", num_ranks=4, num_microbatches=8)
    devices = (ps.Device(4.0), ps.Device(), ps.Device(), ps.Device())
    found = best_partition(costs, schedule, cluster=ps.Cluster(devices, ((4, ps.Link()),)))
    assert found.memory_bytes[0] == 4
    assert not found.proven
    assert found.uniform_seconds == float("inf")
    assert found.reason == "even stages do not fit the memory of their ranks"


@pytest.mark.parametrize("seed", range(8))
def test_the_quickest_layers_that_save_enough_at_all_moments_are_found(seed: int) -> None:
    random = Random(seed)
    layers = [
        (layer, float(random.randint(1, 9)), np.array([float(random.randint(0, 5)) for _ in range(3)]))
        for layer in range(7)
    ]
    for _ in range(20):
        needed = np.array([float(random.randint(1, 20)) for _ in range(3)])
        every = [
            sum(seconds for _, seconds, _ in chosen)
            for count in range(1, 8)
            for chosen in combinations(layers, count)
            if (sum(saved for *_, saved in chosen) >= needed).all()
        ]
        found = covering(layers, needed)
        assert (found is None) == (not every)
        if found is not None:
            assert sum(layers[layer][1] for layer in found) == min(every)
            assert (sum(layers[layer][2] for layer in found) >= needed).all()
