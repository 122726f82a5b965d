"""Unlike devices, slow links, little memory and recompute: no partition there is takes less, as simulated."""

from __future__ import annotations

from functools import cache, partial
from random import Random

import pytest
from tests.partition.everything import Instance, least_step, random_row

import penstock as ps
from penstock.errors import PartitionError, UserError
from penstock.partition import Balanced, LayerCosts, Partition, best_partition


def instance(seed: int) -> Instance:
    """Returns four or five layers on two or three devices of other speeds and memories, in two hosts."""
    random = Random(seed)
    layers, p = random.randint(4, 5), random.choice((2, 3))

    row = partial(random_row, random, layers)
    costs = LayerCosts(
        row(1, 9),
        row(1, 9),
        row(1, 9),
        parameter_bytes=row(1, 5),
        activation_bytes=row(1, 6),
        deferred_bytes=row(0, 2),
        boundary_bytes=row(0, 4),
    )
    name = random.choice(("one_f_one_b", "gpipe", "zb_h1"))
    schedule = ps.named_schedule(name, num_ranks=p, num_microbatches=random.choice((2, 4)))
    devices = tuple(ps.Device(random.choice((25, 35, 60)), random.choice((0.5, 1, 2))) for _ in range(p))
    near = ps.Link(random.choice((0, 0.5)), random.choice((1.0, 2.0, 4.0)))
    return costs, schedule, ps.Cluster(devices, ((2, near), (p + 1, ps.Link(1, 0.7))))


SEEDS = (2, 3, 4, 6, 14, 15, 19, 20)
"""Instances of four layers in which memory matters."""


@cache
def brute_force(seed: int, *, recompute: bool) -> float | None:
    return least_step(instance(seed), recompute=recompute)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_other_partition_that_fits_is_faster(seed: int, recompute: bool):
    costs, schedule, cluster = instance(seed)
    expected = brute_force(seed, recompute=recompute)
    if expected is None:
        with pytest.raises(PartitionError, match="fits: of the even one stage"):
            best_partition(costs, schedule, cluster=cluster, recompute=recompute)
        return
    found = best_partition(costs, schedule, cluster=cluster, recompute=recompute)
    assert found.seconds == pytest.approx(expected)
    timeline = ps.simulate(schedule, costs.stage_costs(found.partition, found.recompute), cluster)
    assert found.seconds == timeline.makespan
    assert found.memory_bytes == pytest.approx(timeline.peak_memory)
    assert all(held <= device.memory_bytes for held, device in zip(found.memory_bytes, cluster.devices, strict=True))


def test_the_instances_have_all_that_can_happen():
    """Of those above some gain by recompute, some need it, some are best without."""
    pairs = [(brute_force(seed, recompute=False), brute_force(seed, recompute=True)) for seed in SEEDS]
    assert any(without is None and again is not None for without, again in pairs)
    assert any(without is not None and again is not None and again < without for without, again in pairs)
    assert any(without is not None and without == again for without, again in pairs)


def test_a_device_of_twice_the_speed_gets_twice_the_layers():
    ones = (1.0,) * 12
    costs = LayerCosts(ones, ones, ones)
    cluster = ps.Cluster((ps.Device(speed=1), ps.Device(speed=2)), ((2, ps.Link()),))
    found = best_partition(costs, ps.one_f_one_b(2, 16), cluster=cluster)
    assert found.partition == Partition.of_sizes([4, 8])


def test_a_cut_is_not_laid_where_a_boundary_is_wide():
    """Layers 0 to 5 with a wide output of layer 2: the even cut would send it over a slow link."""
    ones = (1.0,) * 6
    costs = LayerCosts(ones, ones, ones, boundary_bytes=(1.0, 1.0, 40.0, 1.0, 1.0, 1.0))
    cluster = ps.Cluster.uniform(2, bytes_per_second=4)
    found = best_partition(costs, ps.one_f_one_b(2, 8), cluster=cluster)
    assert found.partition.boundaries[1] in (2, 4)
    assert found.seconds < found.uniform_seconds


def test_recompute_runs_again_no_more_than_it_takes():
    """Two of four layers of stage 0 fit once the layer with the cheapest forward a byte runs again."""
    costs = LayerCosts(
        (4.0, 1.0, 4.0, 4.0), (4.0,) * 4, (4.0,) * 4, activation_bytes=(4.0,) * 4, boundary_bytes=(1.0,) * 4
    )
    schedule = ps.one_f_one_b(2, 4)
    need = ps.simulate(schedule, costs.stage_costs(Partition.of_sizes([2, 2]))).peak_memory[0]
    cluster = ps.Cluster((ps.Device(need - 1), ps.Device()), ((2, ps.Link()),))
    found = best_partition(costs, schedule, cluster=cluster, recompute=True)
    assert found.recompute[:2] == (False, True)
    assert not any(found.recompute[2:])


@pytest.mark.parametrize("name", ["one_f_one_b", "zb_h1", "interleaved_1f1b", "zb_v", "wave", "gpipe", "eager_1f1b"])
def test_it_is_never_worse_than_even_stages(name: str):
    for seed in range(4):
        random = Random(seed)
        rows = [[random.uniform(0.5, 2.0) for _ in range(21)] for _ in range(3)]
        schedule = ps.named_schedule(name, num_ranks=4, num_microbatches=8)
        found: Balanced = best_partition(LayerCosts(*rows), schedule)
        even = LayerCosts(*rows).stage_costs(Partition.uniform(21, schedule.num_stages))
        assert found.uniform_seconds == ps.simulate(schedule, even).makespan
        assert found.seconds <= found.uniform_seconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cluster": ps.Cluster.uniform(3)}, "the cluster has 3 devices for 2 ranks"),
        ({"schedule": ps.chimera(2, 2)}, "several replicas"),
        ({"costs": LayerCosts((1.0,) * 5_001)}, "5,001 layers take too long .* so that there are 5,000 or fewer"),
    ],
)
def test_what_cannot_be_partitioned_is_said(arguments: dict[str, object], words: str):
    given: dict[str, object] = {"costs": LayerCosts((1.0,) * 8), "schedule": ps.one_f_one_b(2, 4)} | arguments
    with pytest.raises(UserError, match=words):
        best_partition(given["costs"], given["schedule"], cluster=given.get("cluster"))  # type: ignore[arg-type]
