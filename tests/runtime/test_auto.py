"""schedule="auto" and partition="auto": the same on every rank, the unsplit model's gradients, and a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penstock as ps
from penstock.errors import HandshakeError, UserError

WIDTH, BATCH = 6, 8


def made(head: int = 3 * WIDTH, blocks: int = 8) -> nn.Sequential:
    """Returns a table, blocks, and a head that is as many times as large as `head` says."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(blocks)]
    return nn.Sequential(nn.Embedding(11, WIDTH), *layers, nn.Linear(WIDTH, head)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(11, (BATCH,), generator=generator), torch.randint(WIDTH, (BATCH,), generator=generator)


def summary_of(num_ranks: int = 2, **arguments: Any) -> str:
    """Returns the summary of a pipeline with these arguments, the same on all ranks."""
    parts = trained(num_ranks, **arguments)
    assert len({summary for summary, _, _ in parts}) == 1
    return parts[0][0]


def trained(
    num_ranks: int = 2,
    *,
    schedule: Any = "auto",
    partition: Any = None,
    costs: Any = None,
    cluster: Any = None,
    memory_limit: Any = None,
) -> list[tuple[str, dict[str, Tensor], ps.Schedule]]:
    """Returns of each rank the summary, its gradients after a step, and the schedule."""

    model = made()  # once: ranks are threads, and would draw from one generator

    def rank(transport: ps.LoopbackTransport) -> tuple[str, dict[str, Tensor], ps.Schedule]:
        pipe = ps.Pipeline(
            model,
            nn.functional.cross_entropy,
            transport=transport,
            schedule=schedule,
            num_microbatches=4,
            partition=partition,
            costs=costs[transport.rank] if isinstance(costs, list) else costs,
            cluster=cluster,
            memory_limit=memory_limit,
        )
        pipe.step(*batch())
        return pipe.summary(), {name: value.grad for name, value in pipe.named_parameters()}, pipe.schedule

    return ps.run_ranks(rank, num_ranks, timeout_seconds=30)


def unsplit() -> dict[str, Tensor]:
    model = made()
    for inputs, targets in zip(*(each.chunk(4) for each in batch()), strict=True):
        (nn.functional.cross_entropy(model(inputs), targets) / 4).backward()
    return {name: value.grad for name, value in model.named_parameters()}


ROWS = [0.5, 1.5, 1.0, 1.0, 2.0, 1.0, 1.0, 0.5, 1.0, 2.5]
LAYERS = ps.LayerCosts(forward=ROWS, input_grad=ROWS, weight_grad=ROWS)


@pytest.mark.parametrize(
    ("num_ranks", "partition", "costs"),
    [(2, None, None), (2, "auto", None), (3, "auto", LAYERS), (2, [3, 2, 2, 3], None), (2, None, LAYERS)],
)
def test_gradients_under_what_was_found_are_those_of_the_unsplit_model(num_ranks: int, partition: Any, costs: Any):
    parts = trained(num_ranks, partition=partition, costs=costs)
    assert len({schedule for _, _, schedule in parts}) == 1
    grads = {name: grad for _, part, _ in parts for name, grad in part.items()}
    expected = unsplit()
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        assert torch.equal(grads[name], grad), name


def test_without_costs_stages_count_the_same_and_the_summary_says_what_was_found():
    summary = summary_of()
    assert "schedule auto: makespan 13, found by zb_h1, no order of these stages is faster" in summary
    assert "F = I = W = 1 on every stage" in summary


def test_costs_decide_the_order_and_no_named_schedule_is_faster():
    costs = ps.StageCosts([1.0, 1.4], [1.2, 0.7], [0.3, 1.1])
    schedule = trained(costs=costs)[0][2]
    found = ps.simulate(schedule, costs).makespan
    for name in ("one_f_one_b", "gpipe", "zb_h1", "zb_auto"):
        named = ps.named_schedule(name, num_ranks=2, num_microbatches=4)
        if max(ps.verify(named).peak_activations) <= 2:
            assert found <= ps.simulate(named, costs).makespan + 1e-12, name


def test_a_head_of_three_layers_moves_layers_away_and_the_reason_names_it():
    """A layer counts its matrices' entries: the table none, the head three blocks."""
    summary = summary_of(schedule="one_f_one_b", partition="auto")
    assert "partition auto: [7, 3] layers a stage" in summary
    assert "even stages take 14.3% more" in summary
    assert "with even stages rank 1 takes" in summary
    assert "among them 9 with" in summary
    assert "a layer counts what its matrices have of entries" in summary


def test_even_stages_are_kept_where_nothing_is_better():
    even = ps.LayerCosts([1.0] * 10, [1.0] * 10, [1.0] * 10)
    assert "[5, 5] layers a stage" in summary_of(schedule="1F1B", partition="auto", costs=even)


def test_ranks_that_search_for_different_costs_are_named():
    costs = [ps.StageCosts([1, 2], 1, 1), ps.StageCosts([2, 1], 1, 1)]
    with pytest.raises(HandshakeError, match="different values of costs, cluster and memory_limit: rank 1 has"):
        trained(costs=costs)


def test_the_memory_limit_of_the_search_is_kept():
    costs = ps.StageCosts([1, 2], [1, 2], [1, 2])
    one = ps.verify(trained(costs=costs, memory_limit=1)[0][2])
    assert max(one.peak_activations) == 1
    assert max(ps.verify(trained(costs=costs, memory_limit=2)[0][2]).peak_activations) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"partition": [2, 3, 5]}, r'schedule="auto" on 2 ranks, and partition is for 3 stages; give a multiple of 2'),
        ({"costs": ps.StageCosts([1, 1, 1])}, "costs are for 3 stages"),
        ({"partition": "auto", "costs": ps.StageCosts()}, r"needs the costs of layers.*LayerCosts with 10 numbers"),
        ({"partition": "auto", "costs": ps.LayerCosts([1, 1])}, "costs are of 2 layers and the model has 10"),
        ({"partition": "even"}, "partition"),
        ({"costs": 3}, "costs is 3, not"),
        ({"cluster": ps.Cluster.uniform(3)}, "the cluster has 3 devices for 2 ranks"),
        ({"memory_limit": 0}, "memory_limit=0 on rank 0"),
        ({"schedule": "1F1B", "memory_limit": 1}, "its order is fixed, so it keeps to no memory limit"),
        ({"schedule": ps.gpipe(2, 4), "memory_limit": 1}, "memory_limit=1 and a schedule whose order is fixed"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_words(arguments: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        trained(**arguments)


def test_zb_auto_is_found_for_the_costs_given():
    costs = ps.StageCosts([1, 3], [2, 1], [1, 2])
    assert trained(schedule="zb_auto", costs=costs)[0][2] == ps.zb_auto(2, 4, costs=costs)
