"""Memory follows the schedule: nothing grows with m that the schedule bounds, nothing outlives its use."""

import gc
import time
import weakref

import pytest
import torch
from tests.runtime.runs import SCHEDULES, Counting, mse
from tests.runtime.zoo import WIDTH, batch, frozen_start, made
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import penstock as ps


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.002)
        return x * 2


def held(model: nn.Module, num_microbatches: int, *, calls: tuple[str, ...]) -> list[tuple[int, int]]:
    """Returns per rank how many ring buffers there are and how many sends were under way at most."""

    def rank(transport: ps.LoopbackTransport) -> tuple[int, int]:
        counting = Counting(transport)
        pipe = ps.Pipeline(model, mse, transport=counting, num_microbatches=num_microbatches)
        for call in calls:
            getattr(pipe, call)(*batch(num_microbatches, torch.float32))
            counting.most_under_way = 0  # the first call of a shape learns it
            getattr(pipe, call)(*batch(num_microbatches, torch.float32))
        return len(pipe._links._rings), counting.most_under_way

    return ps.run_ranks(rank, 4, timeout_seconds=20)


def slow_end() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)), Slow())


@pytest.mark.parametrize("calls", [("step",), ("evaluate",)])
@pytest.mark.parametrize("make", [slow_end, frozen_start], ids=["trained", "frozen start"])
def test_rings_and_sends_under_way_do_not_grow_with_m(calls: tuple[str, ...], make):
    """A frozen rank, and any rank in evaluation, waits for nobody behind it: only its sends hold it back.

    Symptom: outputs of all microbatches in memory at once. Cause: nothing waited for a send before the step's end.
    """
    few, many = (held(make(), m, calls=calls) for m in (8, 32))
    assert [rings for rings, _ in few] == [rings for rings, _ in many]
    assert max(rings for rings, _ in many) <= 8
    assert max(sends for _, sends in many) <= 4  # two a channel, two channels out of a rank


class Watched(nn.Module):
    """Notes for each output it made whether it was still in memory when the next forward or backward began."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.outputs: list[weakref.ref] = []
        self.alive: list[list[int]] = []

    def look(self, *_: object) -> None:
        self.alive.append([i for i, output in enumerate(self.outputs) if output() is not None])

    def forward(self, x: Tensor) -> Tensor:
        self.look()
        output = self.linear(x)
        output.register_hook(Look(self))
        self.outputs.append(weakref.ref(output))
        return output


class Look:
    """A hook that is no method, so that the graph holds nothing of the output."""

    def __init__(self, module: Watched) -> None:
        self.module = module

    def __call__(self, _: Tensor) -> None:
        self.module.look()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_output_is_free_once_sent(schedule: str):
    model = nn.Sequential(Watched(), nn.Linear(WIDTH, WIDTH)).double()

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=8)
        for _ in range(2):
            pipe.step(*batch(8))

    ps.run_ranks(rank, 2, timeout_seconds=20)
    assert len(model[0].alive) == 32
    assert max(map(len, model[0].alive)) <= 2  # autograd does not need a Linear's output


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_stays_after_a_call(schedule: str):
    model = made("skips")

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=4)
        links, works = pipe._links, pipe._stages.values()
        for call in (pipe.step, pipe.evaluate, pipe.step):
            call(*batch(8))
            assert not any(work._in_flight for work in works)
            stores = (links._posted, links._read, links._outgoing)
            assert not any(stores)
            assert not any(waiting for queues in (links._unread, links._sending) for waiting in queues.values())
            assert not pipe._training._local

    ps.run_ranks(rank, 4, timeout_seconds=20)


def test_a_step_keeps_no_batch_alive():
    """Symptom: the last batch stayed in memory until the next. Cause: the engine kept its StepBatch."""
    model = made("dense")
    references: list[weakref.ref] = []

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=2)
        inputs, targets = batch(8)
        references.extend([weakref.ref(inputs), weakref.ref(targets)])
        pipe.step(inputs, targets)
        del inputs, targets
        gc.collect()
        assert not any(reference() is not None for reference in references[-2:])

    ps.run_ranks(rank, 1, timeout_seconds=20)


def test_a_loss_does_not_hold_on_to_the_memory_it_stands_in():
    """Symptom: the last stage held bytes of all outputs. Cause: mse_loss gives a number in a buffer of terms."""
    kept: list[StorageWeakRef] = []
    alive: list[int] = []

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        alive.append(sum(not storage.expired() for storage in kept))
        loss = nn.functional.mse_loss(output, target)
        kept.append(StorageWeakRef(loss.untyped_storage()))
        return loss

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(nn.Sequential(nn.Linear(WIDTH, WIDTH)), loss_fn, transport=transport, num_microbatches=8)
        pipe.step(*batch(8, torch.float32))

    ps.run_ranks(rank, 1, timeout_seconds=20)
    assert alive == [0] * 8
