"""What the runtime itself takes, found on layers that do next to nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from statistics import fmean, median

import torch
from torch import Tensor, nn

from penstock.profiler.between import OtherWork
from penstock.profiler.values import HostCosts
from penstock.profiler.walk import walk
from penstock.profiler.workbench import Workbench
from penstock.runtime.pipeline import Pipeline
from penstock.runtime.stage_work import boundary_of
from penstock.runtime.transport.loopback import LoopbackTransport, run_ranks
from penstock.runtime.transport.protocol import Transport
from penstock.schedules import gpipe, interleaved_1f1b
from penstock.timeline import Timeline

_STEPS = 24
_CHUNKS, _MICROBATCHES = 4, 8
_STOOD, _WAKINGS = (1e-3, 3e-3, 1e-2, 3e-2), 9
"""Waits in seconds after which an op is timed, and how often each."""
_BEYOND_CACHES = 4 << 20
"""Bytes that leave nothing else in the caches of a core."""
_REDUCED_BYTES, _REDUCED = 4 << 20, 16
"""Bytes and number of the gradients of a stage that several ranks hold."""


class Scale(nn.Module):
    """Next to nothing.

    Args:
        passes: bytes that it passes through beside, so that the runtime's own are no longer in the core's caches.
    """

    def __init__(self, passes: int = 0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self._beside = torch.zeros(passes // 4)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x times a parameter."""
        self._beside.add_(1)
        return x * self.factor


def host_costs(transport: Transport | None, device: torch.device) -> HostCosts:
    """Returns what an op and a step take beside their work; with several ranks every rank calls it.

    Args:
        transport: between the ranks; None for one rank alone.
        device: that the model runs on.
    """
    op_seconds = run_ranks(_op_seconds, 1)[0]
    step_seconds = _step_seconds(transport) if transport is not None else run_ranks(_step_seconds, 1)[0]
    waking = _waking() if device.type == "cpu" else ()
    return HostCosts(max(0.0, op_seconds), max(0.0, step_seconds), *_reduction_seconds_per_byte(), waking)


def _op_seconds(transport: LoopbackTransport) -> float:
    """Returns what the engine takes for an op that neither sends nor receives, beside the stage's work.

    Between ops that is the time from one's end to the next one's start, where both pass through memory as layers do.
    """
    layers = [Scale() for _ in range(_CHUNKS)]
    bench = Workbench(layers[1], boundary_of(torch.zeros(1, 1, requires_grad=True)))  # type: ignore[arg-type]
    within, alone = [], []
    for timeline in _timelines(layers, transport, steps=_STEPS):
        taken = walk([bench], time.perf_counter, split=False)[0]
        alone.append((taken["forward"] + taken["backward"]) / 2)
        within.append(fmean(span.end - span.start for span in timeline.spans))
    cold = _timelines([Scale(_BEYOND_CACHES) for _ in range(_CHUNKS)], transport, steps=_STEPS // 4)
    between = [after.start - before.end for timeline in cold for before, after in pairwise(timeline.spans)]
    # A difference of two small times: the least of each, because what else runs on the core only adds to them.
    return max(0.0, min(within) - min(alone)) + median(between)


def _waking() -> tuple[tuple[float, float], ...]:
    """Returns how much longer an op takes after waits; a longer wait costs no less than a shorter one.

    Code, not data, is what an op finds cold, so that layers of any size lose about as much.
    """
    work = OtherWork()
    taken: dict[float, list[float]] = {}
    for _ in range(_WAKINGS):
        for stood in (0.0, *_STOOD):
            for _ in range(2):
                work.forward()
            until = time.perf_counter() + stood
            while time.perf_counter() < until:
                os.sched_yield()  # as a rank that waits for shared memory
            begin = time.perf_counter()
            work.forward()
            taken.setdefault(stood, []).append(time.perf_counter() - begin)
    usual = median(taken.pop(0.0))
    longer = accumulate((max(0.0, median(row) - usual) for row in taken.values()), max)
    return tuple(zip(taken, longer, strict=True))


def _timelines(layers: Sequence[Scale], transport: LoopbackTransport, *, steps: int) -> Iterator[Timeline]:
    """Yields the timelines of steps on one rank, but for the first quarter."""
    schedule = interleaved_1f1b(1, _MICROBATCHES, num_chunks=_CHUNKS)
    pipe = Pipeline(nn.Sequential(*layers), _loss, transport=transport, schedule=schedule)
    inputs = torch.zeros(_MICROBATCHES, 1)
    for step in range(steps):
        pipe.step(inputs, inputs)
        (timeline,) = pipe.trace(1)
        if step >= steps // 4:
            yield timeline


def _step_seconds(transport: Transport) -> float:
    """Returns what a step takes from call to return, beside its program."""
    layers = nn.Sequential(*(Scale(_BEYOND_CACHES) for _ in range(transport.num_ranks)))
    pipe = Pipeline(layers, _loss, transport=transport, schedule=gpipe(transport.num_ranks, 2))
    inputs = torch.zeros(2, 1)
    taken = []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        pipe.step(inputs, inputs)
        taken.append(time.perf_counter() - begin)
    kept = _STEPS * 3 // 4
    programs = [timeline.makespan for timeline in pipe.trace(kept)]
    return median(whole - program for whole, program in zip(taken[-kept:], programs, strict=True))


def _reduction_seconds_per_byte() -> tuple[float, float]:
    """Returns what it takes to lay gradients side by side, and to add two such rows up and take them apart again.

    As the runtime does it, in memory that is new each time.
    """
    grads = [torch.zeros(_REDUCED_BYTES // 4 // _REDUCED) for _ in range(_REDUCED)]
    other = torch.zeros(_REDUCED_BYTES // 4)
    gathers, sums = [], []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        row = torch.cat([grad.reshape(-1) for grad in grads])
        gathered = time.perf_counter()
        total = row + other
        for piece, grad in zip(total.split(len(grads[0])), grads, strict=True):
            grad.copy_(piece)
        sums.append(time.perf_counter() - gathered)
        gathers.append(gathered - begin)
    return median(gathers) / _REDUCED_BYTES, median(sums) / _REDUCED_BYTES


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return output.sum()
