"""What one microbatch keeps in memory on a stage: storages that autograd saves, the tape of a split backward, peaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import ProfilerConfig, ProfilerState, _disable_profiler_legacy, _enable_profiler_legacy

from penstock.profiler.workbench import Workbench
from penstock.runtime.stage_work import backward_in_one_thread


class Kept(NamedTuple):
    """Bytes of one microbatch on one stage; names as in `LayerProfile`."""

    activation_bytes: int
    keeps_input: bool
    keeps_output: bool
    deferred_bytes: int
    defers_input: bool
    defers_output_grad: bool
    forward_peak_bytes: int
    backward_peak_bytes: int


def kept_by(bench: Workbench, device: torch.device) -> Kept:
    """Returns what one microbatch keeps, and the most it takes while it runs."""
    own = _storages([*bench.stage.parameters(), *bench.stage.buffers(), *bench.batch])
    entering = _storages(bench.given.tensors)
    bench.clear()
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved.update(_storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = bench.forward(split=False)
    leaving = {} if bench.has_loss else _storages(kept)
    bench.work.backward(0, bench.starts(kept))
    del kept
    inside = sum(size for key, size in saved.items() if key not in {*own, *entering, *leaving})
    deferred = _deferred(bench, own, entering)
    peaks = _peaks(bench, device)
    bench.clear()
    return Kept(
        inside,
        bool(saved.keys() & entering.keys()),
        bool(saved.keys() & leaving.keys() - entering.keys()),
        *deferred,
        *peaks,
    )


def _deferred(bench: Workbench, own: Mapping[int, int], entering: Mapping[int, int]) -> tuple[int, bool, bool]:
    """Returns the bytes that lie between I and W, and whether the stage's input and its output's gradient do too."""
    with backward_in_one_thread(True):
        kept = bench.forward(split=True)
        starts = bench.starts(kept)
        del kept
        bench.work.input_grads(0, starts)
        tensors = [
            tensor
            for entry in bench.work.deferred(0)
            for tensor in (entry.grad, entry.call.input, entry.call.options)
            if isinstance(tensor, Tensor)
        ]
        found = _storages(tensors)
        bench.work.weight_grads(0)
    arriving = _storages(starts)
    inside = sum(size for key, size in found.items() if key not in {*own, *entering, *arriving})
    return inside, bool(found.keys() & entering.keys()), bool(found.keys() & arriving.keys())


def _storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Returns identity -> bytes of the memory behind tensors, each piece once; on the meta device too."""
    found = {}
    for tensor in tensors:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse tensors and some subclasses have none of their own
            continue
        found[storage._cdata] = storage.nbytes()
    return found


def _peaks(bench: Workbench, device: torch.device) -> tuple[int, int]:
    """Returns the most bytes that F holds beyond what was there, and likewise B; gradients are there already."""
    kept = bench.forward(split=False)
    starts = bench.starts(kept)
    bench.work.backward(0, starts)
    del kept

    def forward() -> None:
        bench.forward(split=False)

    def backward() -> None:
        bench.work.backward(0, starts)

    if device.type == "cuda":
        return _cuda_peak(device, forward), _cuda_peak(device, backward)
    # One recording for both: the allocator complains of what is freed in a recording and was made before it.
    with _recorded() as events:
        forward()
        with torch.autograd.profiler.record_function(_MARK):
            backward()
    held = most = 0
    peaks: list[int] = []
    for event in events:
        if event.name() == _MARK and not peaks:
            peaks.append(most)
            held = most = 0
        elif str(event.kind()) == "memory_alloc":
            held += event.cpu_memory_usage()
            most = max(most, held)
    return peaks[0], most


_MARK = "penstock: backward"


def _cuda_peak(device: torch.device, work: Callable[[], None]) -> int:
    with most_held(device) as peak:
        work()
    return peak()


@contextmanager
def _recorded() -> Iterator[list[Any]]:
    """Gives a list that afterwards holds what the recorder below torch's older profiler saw in this thread.

    The newer profiler keeps a log of its own start for each recording.
    """
    events: list[Any] = []
    config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
    _enable_profiler_legacy(config)
    try:
        yield events
    finally:
        events.extend(event for thread in _disable_profiler_legacy() for event in thread)


@contextmanager
def most_held(device: torch.device) -> Iterator[Callable[[], int]]:
    """Gives a function that returns the most bytes held at once inside, beyond what was held at the start.

    On the CPU only what the calling thread takes and frees is seen.
    """
    found = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: found
        found = torch.cuda.max_memory_allocated(device) - before
        return
    with _recorded() as events:
        yield lambda: found
    sizes = (event.cpu_memory_usage() for event in events if str(event.kind()) == "memory_alloc")
    found = max(accumulate(sizes, initial=0))
