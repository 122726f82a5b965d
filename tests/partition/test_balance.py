"""The best partition: proven by brute force where few, never worse than the even one, within memory, with a reason."""

from __future__ import annotations

import time
from itertools import combinations
from random import Random

import pytest

import penstock as ps
from penstock.errors import PartitionError, UserError
from penstock.partition import LayerCosts, Partition, best_partition


def step(costs: LayerCosts, partition: Partition, schedule: ps.Schedule) -> float:
    """Returns the makespan with every stage's seconds summed over its layers, by the simulator alone."""
    stages = [partition.layers_of(stage) for stage in range(partition.num_stages)]

    def summed(row: tuple[float, ...]) -> list[float]:
        return [sum(row[layer] for layer in layers) for layers in stages]

    return ps.simulate(
        schedule,
        ps.StageCosts(
            forward=summed(costs.forward), input_grad=summed(costs.input_grad), weight_grad=summed(costs.weight_grad)
        ),
    ).makespan


def random_costs(seed: int, layers: int) -> LayerCosts:
    random = Random(seed)
    rows = [tuple(float(random.randint(1, 9)) for _ in range(layers)) for _ in range(3)]
    return LayerCosts(forward=rows[0], input_grad=rows[1], weight_grad=rows[2])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("name", "p", "layers"), [("one_f_one_b", 3, 7), ("gpipe", 2, 6), ("interleaved_1f1b", 2, 8)])
def test_no_other_partition_is_faster(seed: int, name: str, p: int, layers: int):
    costs, schedule = random_costs(seed, layers), ps.named_schedule(name, num_ranks=p, num_microbatches=4)
    found = best_partition(costs, schedule)
    cuts = combinations(range(1, layers), schedule.num_stages - 1)
    best = min(step(costs, Partition((0, *cut, layers)), schedule) for cut in cuts)
    assert found.proven
    assert found.seconds == pytest.approx(best)
    assert found.seconds == pytest.approx(step(costs, found.partition, schedule))


def test_a_head_of_three_layers_is_paid_for_and_the_reason_names_it():
    forward = (*(1.0,) * 16, 3.0)
    names = (*(f"block {i}" for i in range(16)), "head")
    costs = LayerCosts(forward=forward, input_grad=forward, weight_grad=forward, names=names)
    found = best_partition(costs, ps.one_f_one_b(num_ranks=4, num_microbatches=8))
    assert found.seconds < 0.9 * found.uniform_seconds
    assert "head" in found.reason
    assert "rank 3" in found.reason


def test_500_layers_on_64_stages_are_laid_out_fast_and_not_worse_than_evenly():
    costs = random_costs(0, 500)
    schedule = ps.one_f_one_b(num_ranks=64, num_microbatches=128)
    best_partition(random_costs(1, 12), ps.one_f_one_b(num_ranks=3, num_microbatches=4))  # compiles
    begin = time.process_time()
    found = best_partition(costs, schedule)
    assert time.process_time() - begin < 10  # a second on an idle machine, see benchmarks
    assert found.seconds < found.uniform_seconds


def test_memory_limits_move_layers_and_what_does_not_fit_is_said():
    ones = (1.0,) * 8
    costs = LayerCosts(forward=ones, input_grad=ones, weight_grad=ones, parameter_bytes=(10.0,) * 8)
    schedule = ps.one_f_one_b(num_ranks=2, num_microbatches=4)

    def cluster(*memory: float) -> ps.Cluster:
        return ps.Cluster(tuple(ps.Device(memory_bytes=each) for each in memory), ((2, ps.Link()),))

    even = best_partition(costs, schedule, cluster=cluster(1e9, 1e9))
    assert [len(even.partition.layers_of(stage)) for stage in range(2)] == [4, 4]
    tight = best_partition(costs, schedule, cluster=cluster(25.0, 1e9))
    assert len(tight.partition.layers_of(0)) == 2
    with pytest.raises(PartitionError, match="stage 1 takes 40 bytes and has 25; allow recompute"):
        best_partition(costs, schedule, cluster=cluster(25.0, 25.0))


def test_wrong_costs_and_sizes_are_said():
    schedule = ps.one_f_one_b(num_ranks=2, num_microbatches=4)
    with pytest.raises(UserError, match="a cost is finite and not negative"):
        LayerCosts(forward=(1.0, float("nan")))
    with pytest.raises(UserError, match="has 1 values for 2 layers"):
        LayerCosts(forward=(1.0, 2.0), input_grad=(1.0,))
    with pytest.raises(PartitionError):
        best_partition(LayerCosts(forward=(1.0,)), schedule)
