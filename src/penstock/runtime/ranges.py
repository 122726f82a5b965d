"""What torch.profiler shows of a program: a range around every instruction, named after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.autograd.profiler as profiler
from torch.profiler import record_function

from penstock.ir.ops import NO_MICROBATCH, SENDS, Transfer
from penstock.ir.program import Instruction

Call = Callable[[], None]


def is_profiling() -> bool:
    """Returns whether torch.profiler, or emit_nvtx, records this process."""
    return profiler._is_profiler_enabled


def with_ranges(entries: Sequence[Instruction], calls: Sequence[Call]) -> list[Call]:
    """Returns each instruction's call inside a range of its name."""
    return [partial(_ranged, range_name(entry), call) for entry, call in zip(entries, calls, strict=True)]


def range_name(entry: Instruction) -> str:
    """Returns what the profiler shows: `penstock F stage 1 microbatch 3`, of a message also where it goes."""
    name = f"penstock {entry.kind.name} stage {entry.stage}"
    if entry.microbatch != NO_MICROBATCH:
        name += f" microbatch {entry.microbatch}"
    if entry.replica:
        name += f" replica {entry.replica}"
    if isinstance(entry, Transfer):
        name += f" to rank {entry.channel.target}" if entry.kind in SENDS else f" from rank {entry.channel.source}"
    return name


def _ranged(name: str, call: Call) -> None:
    with record_function(name):
        call()
