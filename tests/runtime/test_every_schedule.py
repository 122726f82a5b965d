"""Every registered schedule trains: gradients are the unsplit model's, on every rank that holds them.

Every buffer is full of NaN when its receive is posted, so a value that is read too late or twice is seen.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tests.runtime.runs import Poisoning, assert_close, grads_of, mse
from tests.runtime.zoo import WIDTH, batch
from torch import Tensor, nn

import penstock as ps
from penstock.errors import ScheduleError
from penstock.ir.steps import SYNCHRONOUS
from penstock.schedules.registry import SCHEDULES
from penstock.testing import reference_gradients

SIZES = [(1, 2), (2, 1), (2, 3), (2, 4), (3, 7), (4, 3), (4, 8)]
WIDE = ("one_f_one_b", "gis", "zb_v", "bpipe", "chimera", "dualpipe", "pipedream")
"""One of each kind, on eight ranks."""
STEPS = 2


def model(num_stages: int) -> nn.Sequential:
    """Returns one layer a stage, some with a shape in between that the boundary does not have."""
    torch.manual_seed(11)
    layers = [
        nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3), nn.Tanh(), nn.Linear(3, WIDTH))
        if stage % 2
        else nn.Linear(WIDTH, WIDTH)
        for stage in range(num_stages)
    ]
    return nn.Sequential(*layers).double()


def made(name: str, num_ranks: int, num_microbatches: int) -> ps.Schedule | None:
    """Returns the schedule, None where it is not defined for these sizes, which its own message says."""
    try:
        return ps.named_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    except ScheduleError as error:
        assert name in str(error)
        return None


def check(schedule: ps.Schedule) -> None:
    whole, data = model(schedule.num_stages), batch(schedule.num_microbatches)
    loss, grads = reference_gradients(whole, mse, *data, num_microbatches=schedule.num_microbatches)

    def rank(transport: ps.LoopbackTransport) -> tuple[list[Tensor], dict[str, Tensor]]:
        pipe = ps.Pipeline(whole, mse, transport=Poisoning(transport), schedule=schedule)
        return [pipe.step(*data) for _ in range(STEPS)], grads_of(pipe)

    merged: dict[str, Tensor] = {}
    for losses, found in ps.run_ranks(rank, schedule.num_ranks, timeout_seconds=20):
        assert all(torch.equal(each, loss) for each in losses)
        for name, grad in found.items():
            assert torch.equal(grad, merged.setdefault(name, grad)), f"copies of {name} differ"
    assert_close(merged, {name: STEPS * grad for name, grad in grads.items()})


def trained(name: str, num_ranks: int, num_microbatches: int) -> bool:
    schedule = made(name, num_ranks, num_microbatches)
    if schedule is None:
        return False
    if schedule.weight_rule in SYNCHRONOUS:
        check(schedule)
        return True
    data = batch(num_microbatches)
    whole = model(schedule.num_stages)

    def rank(transport: ps.LoopbackTransport) -> Tensor:
        optimizer = partial(torch.optim.SGD, lr=0.01)
        pipe = ps.Pipeline(whole, mse, transport=Poisoning(transport), schedule=schedule, optimizer=optimizer)
        pipe.step(*data)
        return pipe.step(*data)

    losses = ps.run_ranks(rank, num_ranks, timeout_seconds=20)
    assert len({float(loss) for loss in losses}) == 1
    assert math.isfinite(losses[0])
    return True


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_trains_at_every_size_that_it_is_defined_for(name: str) -> None:
    assert sum(trained(name, *sizes) for sizes in SIZES) >= 2


@pytest.mark.parametrize("name", WIDE)
def test_it_trains_on_eight_ranks(name: str) -> None:
    assert trained(name, 8, 16)
