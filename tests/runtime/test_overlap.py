"""Messages travel while ranks compute: over a slow link a step takes as long as simulated, no longer.

Compute sleeps, so that four ranks run side by side on any machine, and a message takes a stated time from the moment
both its ends are posted.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.runtime.runs import mse
from torch import Tensor, nn

import penstock as ps
from penstock.ir.ops import Channel
from penstock.runtime.transport.protocol import Pending
from penstock.timeline import Timeline

FORWARD, BACKWARD = 0.040, 0.060


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        time.sleep(FORWARD)
        return x + weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        time.sleep(BACKWARD)
        return grad, grad.sum(0)


class Sleeping(nn.Module):
    """Adds a weight, in the time of a larger layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return _Sleep.apply(x, self.weight)


class _Late:
    """A receive that ends `seconds` after both ends were posted and the link was free."""

    def __init__(self, link: SlowLinks, pending: Pending, channel: Channel) -> None:
        self.link, self.pending, self.channel, self.posted = link, pending, channel, time.perf_counter()
        self.turn = link.received[channel]
        link.received[channel] += 1

    def done(self) -> bool:
        return False

    def wait(self) -> None:
        self.pending.wait()
        start = max(self.posted, self.link.sent[self.channel][self.turn], self.link.free[self.channel])
        self.link.free[self.channel] = start + self.link.seconds
        time.sleep(max(0.0, start + self.link.seconds - time.perf_counter()))


class SlowLinks:
    """A loopback transport on which a message keeps its link for `seconds`."""

    def __init__(self, transport: ps.LoopbackTransport, sent: dict[Channel, list[float]], seconds: float) -> None:
        self._transport, self.sent, self.seconds = transport, sent, seconds
        self.received: dict[Channel, int] = defaultdict(int)
        self.free: dict[Channel, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send(self, channel: Channel, tensor: Tensor) -> Pending:
        self.sent[channel].append(time.perf_counter())
        return self._transport.send(channel, tensor)

    def recv(self, channel: Channel, tensor: Tensor) -> _Late:
        return _Late(self, self._transport.recv(channel, tensor), channel)


def steps_over(schedule: ps.Schedule, seconds: float) -> list[tuple[float, Timeline]]:
    """Returns how long two steps took the slowest rank, over links that are slow only after all shapes are known."""
    model = nn.Sequential(*(Sleeping() for _ in range(schedule.num_stages)))
    data = torch.ones(2 * schedule.num_microbatches, 4)
    sent: dict[Channel, list[float]] = defaultdict(list)

    def rank(transport: ps.LoopbackTransport) -> tuple[list[float], list[Timeline]]:
        links = SlowLinks(transport, sent, 0.0)
        pipe = ps.Pipeline(model, mse, transport=links, schedule=schedule)
        pipe.step(data, data)
        links.seconds = seconds
        for _ in range(2):
            pipe.step(data, data)
        steps = pipe._training.recorder.last(2)
        return [step.end - step.start for step in steps], pipe.trace(2)

    rows, (timelines, *_) = zip(*ps.run_ranks(rank, schedule.num_ranks, timeout_seconds=30), strict=True)
    return list(zip(map(max, zip(*rows, strict=True)), timelines, strict=True))


@pytest.mark.parametrize(
    ("schedule", "seconds"),
    [
        (ps.gpipe(3, 6), 0.030),
        (ps.eager_1f1b(3, 6), 0.050),
        (ps.interleaved_1f1b(2, 4, num_chunks=2), 0.030),
    ],
    ids=lambda value: value.name if isinstance(value, ps.Schedule) else str(value),
)
def test_a_step_over_slow_links_takes_as_long_as_simulated(schedule: ps.Schedule, seconds: float) -> None:
    costs = ps.StageCosts(forward=FORWARD, backward=BACKWARD, boundary_bytes=1)
    cluster = ps.Cluster.uniform(schedule.num_ranks, bytes_per_second=1 / seconds)
    planned = ps.simulate(schedule, costs, cluster).makespan
    one_at_a_time = ps.simulate(schedule, costs, replace(cluster, overlap=False)).makespan
    assert one_at_a_time > 1.1 * planned
    measured = math.inf
    for _ in range(8):  # no step is shorter than its sleeps; on a busy machine one may be longer
        measured = min(measured, *(length for length, _ in steps_over(schedule, seconds)))
        if measured < 1.045 * planned:
            break
    assert measured == pytest.approx(planned, rel=0.05)


def test_a_measured_wait_is_split_into_that_for_the_neighbour_and_that_for_the_message() -> None:
    """As simulated: rank 1 waits for a forward of rank 0, then for what it sent; rank 0 for both ops of rank 1."""
    schedule, seconds = ps.gpipe(2, 1), 0.050
    costs = ps.StageCosts(forward=FORWARD, backward=BACKWARD, boundary_bytes=1)
    planned = ps.simulate(schedule, costs, ps.Cluster.uniform(2, bytes_per_second=1 / seconds))
    assert [planned.shares(rank)[:3] for rank in (0, 1)] == [
        pytest.approx((FORWARD + BACKWARD, FORWARD + seconds + BACKWARD, seconds)),
        pytest.approx((FORWARD + BACKWARD, FORWARD, seconds)),
    ]
    found: list[Timeline] = []
    for _ in range(8):  # as above
        found += [timeline for _, timeline in steps_over(schedule, seconds)]
        shortest = min(found, key=lambda timeline: timeline.makespan)
        if shortest.makespan < 1.03 * planned.makespan:
            break
    for rank in (0, 1):
        assert shortest.shares(rank)[:3] == pytest.approx(planned.shares(rank)[:3], abs=0.2 * seconds)
    assert {(wait.rank, wait.source) for wait in shortest.waits} == {(0, 1), (1, 0)}
