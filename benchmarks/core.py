"""Operations a second of the core: generate, lower, verify, simulate, and timing a program again under other costs.

python benchmarks/core.py [--large]

Interleaved 1F1B, with --large a second size (minutes, 2 GB), in one process, beside what torch.distributed.pipelining
does of the same: its order of ops and its sends and receives (`_add_send_recv`); it has no verifier or simulator to
compare. Figures are CPU seconds (`time.process_time`), so that waiting for a busy machine is not counted; a core shared
with others is still slower.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TypeVar

import torch
from torch.distributed.pipelining import schedules as theirs

import penstock as ps
from penstock.simulator.replay import Replay

SIZES = [(32, 4, 512), (64, 8, 1024)]
"""(p, v, m)"""

REPLAYS = 20

_R = TypeVar("_R")


class Table:
    """Prints one line a phase and adds up their seconds."""

    def __init__(self, num_ops: int) -> None:
        self.num_ops, self.seconds = num_ops, 0.0

    def timed(self, phase: str, work: Callable[[], _R]) -> _R:
        """Returns what `work` returns, after a line about how long it took."""
        begin = time.process_time()
        result = work()
        seconds = time.process_time() - begin
        self.seconds += seconds
        self.line(phase, seconds)
        return result

    def line(self, phase: str, seconds: float) -> None:
        """Prints seconds, ops a second and microseconds an op."""
        rate = self.num_ops / seconds
        print(f"  {phase:38} {seconds:9.3f} s {rate:14,.0f} ops/s {1e6 / rate:9.3f} µs/op", flush=True)


def ours(num_ranks: int, num_chunks: int, num_microbatches: int) -> None:
    """Times the chain."""
    table = Table(2 * num_ranks * num_chunks * num_microbatches)
    schedule = table.timed(
        "penstock generate", lambda: ps.interleaved_1f1b(num_ranks, num_microbatches, num_chunks=num_chunks)
    )
    program = table.timed("penstock lower", lambda: ps.lower(schedule))
    table.timed("penstock verify", lambda: ps.verify(program))
    table.timed("penstock simulate", lambda: ps.simulate(program, ps.StageCosts()))
    table.line("penstock, the whole chain", table.seconds)


def again(num_ranks: int, num_chunks: int, num_microbatches: int) -> None:
    """Times a compiled program under other costs."""
    table = Table(2 * num_ranks * num_chunks * num_microbatches)
    program = ps.lower(ps.interleaved_1f1b(num_ranks, num_microbatches, num_chunks=num_chunks))
    replay = table.timed("penstock compile for re-evaluation", lambda: Replay(program))
    replay.makespan(ps.StageCosts())  # compiles the kernel
    begin = time.process_time()
    for number in range(REPLAYS):
        replay.makespan(ps.StageCosts(forward=1 + number / REPLAYS, backward=2))
    table.line(f"penstock re-evaluate, mean of {REPLAYS}", (time.process_time() - begin) / REPLAYS)


def torchs(num_ranks: int, num_chunks: int, num_microbatches: int) -> None:
    """Times torch's class, which makes the orders of all ranks, and its pass that adds sends and receives."""
    num_stages = num_ranks * num_chunks
    stage = SimpleNamespace(group_size=num_ranks, group_rank=0, num_stages=num_stages)
    table = Table(2 * num_stages * num_microbatches)
    made = table.timed(
        "torch ScheduleInterleaved1F1B",
        lambda: theirs.ScheduleInterleaved1F1B([stage] * num_chunks, num_microbatches),
    )
    orders = {rank: list(actions) for rank, actions in made.pipeline_order.items()}
    table.timed(
        "torch _add_send_recv",
        lambda: theirs._add_send_recv(orders, lambda index: index % num_ranks, num_stages),
    )
    table.line("torch, both", table.seconds)


CONTENDERS = {SIZES[0]: (ours, again, torchs), SIZES[1]: (ours, torchs)}
"""What is timed at which size; how fast a program is timed again does not depend on it."""


def main(sizes: list[tuple[int, int, int]]) -> None:
    """Prints all figures."""
    numba = "with numba" if importlib.util.find_spec("numba") else "without numba"
    print(f"python {platform.python_version()}, torch {torch.__version__}, penstock {ps.__version__} {numba}")
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores, {time.strftime('%Y-%m-%d %H:%M')}")
    for size in sizes:
        num_ranks, num_chunks, num_microbatches = size
        num_ops = 2 * num_ranks * num_chunks * num_microbatches
        print(f"interleaved_1f1b p={num_ranks} v={num_chunks} m={num_microbatches}: {num_ops:,} ops")
        for contender in CONTENDERS[size]:
            contender(*size)
            gc.collect()
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the second size too")
    main(SIZES if parser.parse_args().large else SIZES[:1])
