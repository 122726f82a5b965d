"""Step time, host time, start and memory of penstock beside torch.distributed.pipelining and a bare loop, in one run.

python benchmarks/runtime.py [--cases empty tiny d256 d512 start memory] [--beside floors schedules] [--windows 9]
                             [--steps 10]

Two processes, one core and one thread each. The bare loop (contenders.py) makes the same messages and runs the same
modules, over gloo and over the raw calls of penstock's shared memory: the floors. Contenders take turns in windows of
steps, so that a busy machine is busy for all of them. Times are medians over windows, ratios are medians over windows
of one contender by another in the same window.

- `x gloo`, `x ring`: the time by that of the floor over gloo or over shared memory of the same schedule.
- `x 1F1B`, `x torch's best`: all schedules in one group, in penstock and by hand over shared memory and in torch; the
  time by penstock's 1F1B, and by torch's best schedule there.
- `host`: CPU time of the busier rank's main thread beyond the bare loop's, by the ops of compute of its program.
- `x planned`: the time by the makespans that the simulator gives for the op times measured in each of these steps, by
  their medians and by their means.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from contenders import TORCH_SCHEDULES, Job, Step, by_hand, ops_of, with_penstock, with_torch
from torch import distributed as dist
from torch import multiprocessing, nn

import penstock as ps
from penstock.costs import measured_costs


class Scale(nn.Module):
    """Next to nothing: what is timed is the pipeline itself."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x times a parameter."""
        return x * self.factor


def transformer(width: int) -> nn.Module:
    """Returns one pre-norm encoder layer."""
    return nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)


class Case(NamedTuple):
    """A model and the schedules that run it.

    Attributes:
        layer: makes one layer.
        num_layers: of the model.
        shape: of one microbatch.
        microbatches: numbers of them, each a row of its own.
        schedules: names.
        effort: of the steps asked for, how many a window has: large steps need fewer.
    """

    layer: Callable[[], nn.Module]
    num_layers: int
    shape: tuple[int, ...]
    microbatches: tuple[int, ...]
    schedules: tuple[str, ...]
    effort: float = 1.0


ALL = ("1F1B", "interleaved_1f1b", "zb_v", "dualpipe_v")
CASES = {
    "empty": Case(Scale, 4, (1, 64), (64,), ALL),
    "tiny": Case(lambda: transformer(64), 8, (1, 32, 64), (8,), ALL[:3]),
    "d256": Case(lambda: transformer(256), 8, (1, 128, 256), (4, 8, 16), ALL[:3], 0.2),
    "d512": Case(lambda: transformer(512), 8, (1, 256, 512), (4, 8, 16), ALL[:3], 0.1),
}


class Row(NamedTuple):
    """One contender's windows: seconds a step, and seconds of CPU a step of this rank's main thread."""

    seconds: list[float]
    cpu: list[float]

    def by(self, other: Row) -> float:
        """Returns the time by another contender's in the same window, the median over windows."""
        return statistics.median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=True))


def main(rank: int, port: int, options: argparse.Namespace) -> None:
    """Runs the cases on one rank; rank 0 prints."""
    join(rank, port)
    for name in options.cases:
        if name not in CASES:
            continue
        case = CASES[name]
        steps = max(1, round(options.steps * case.effort))
        for count in case.microbatches:
            for schedule in case.schedules if "floors" in options.beside else ():
                _beside_floors(name, case, count, schedule, options.windows, steps)
            if "schedules" in options.beside:
                _beside_schedules(name, case, count, options.windows, steps)
    dist.destroy_process_group()


def join(rank: int, port: int) -> None:
    """Pins this process to a core of its own and joins the job."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)


def job_of(case: Case, count: int, schedule: str) -> Job:
    """Returns the case with random data; every call makes the same."""
    torch.manual_seed(0)
    layers = [case.layer() for _ in range(case.num_layers)]
    inputs = torch.randn(count * case.shape[0], *case.shape[1:])
    return Job(layers, inputs, torch.randn_like(inputs), schedule, count)


def _beside_schedules(name: str, case: Case, count: int, windows: int, steps: int) -> None:
    """Times all schedules in turns, each in penstock, in torch and by hand."""
    contenders: dict[str, Step] = {}
    pipes = []
    for schedule in case.schedules:
        contenders[f"penstock {schedule}"], pipe = with_penstock(job_of(case, count, schedule), shared_memory=True)
        pipes.append(pipe)
        if schedule.lower() in TORCH_SCHEDULES:
            contenders[f"torch {schedule}"] = with_torch(job_of(case, count, schedule))
        contenders[f"by hand {schedule}"] = by_hand(job_of(case, count, schedule), shared_memory=True)
    rows = _time(contenders, windows, steps)
    for pipe in pipes:
        pipe.close()
    if dist.get_rank() == 0:
        _, best = min((statistics.median(row.seconds), who) for who, row in rows.items() if who.startswith("torch"))
        for who, row in rows.items():
            print(
                f"{name + f' m={count}':12} {who:26} {statistics.median(row.seconds) * 1e3:9.2f} ms  "
                f"{row.by(rows['penstock 1F1B']):5.2f} x 1F1B  {row.by(rows[best]):5.2f} x torch's best ({best[6:]})",
                flush=True,
            )


def _beside_floors(name: str, case: Case, count: int, schedule: str, windows: int, steps: int) -> None:
    """Times one schedule in penstock, in torch and by hand, over gloo and over shared memory."""
    job = lambda: job_of(case, count, schedule)  # noqa: E731
    gloo, far = with_penstock(job(), shared_memory=False)
    ring, near = with_penstock(job(), shared_memory=True)
    contenders: dict[str, Step] = {"penstock, gloo": gloo, "penstock, ring": ring}
    if schedule.lower() in TORCH_SCHEDULES:
        contenders["torch"] = with_torch(job())
    contenders |= {
        "by hand, gloo": by_hand(job(), shared_memory=False),
        "by hand, ring": by_hand(job(), shared_memory=True),
    }
    pipes = {"penstock, gloo": far, "penstock, ring": near}
    by_median, by_mean = ({who: Row([], []) for who in pipes} for _ in range(2))

    def plan(who: str) -> None:
        if who in pipes:
            timelines, program = pipes[who].trace(min(steps, 32)), pipes[who].plan.proof.program
            for average, rows in ((statistics.median, by_median), (statistics.fmean, by_mean)):
                costs = [measured_costs([timeline], average=average) for timeline in timelines]
                rows[who].seconds.append(statistics.fmean(ps.simulate(program, each).makespan for each in costs))

    rows = _time(contenders, windows, steps, after=plan)
    ops = ops_of(near.plan.proof.program, dist.get_rank())
    cpu = {each: statistics.median(row.cpu) for each, row in rows.items()}
    host = {who: (cpu[who] - cpu[who.replace("penstock", "by hand")]) / ops for who in pipes}
    tables: list[dict[str, float] | None] = [None, None]
    dist.all_gather_object(tables, host)
    for pipe in pipes.values():
        pipe.close()
    if dist.get_rank() == 0:
        busier = {who: max(table[who] for table in tables if table) for who in pipes}
        _print(f"{name} {schedule} m={count}", rows, busier, by_median, by_mean)


def _time(
    contenders: dict[str, Step], windows: int, steps: int, after: Callable[[str], None] | None = None
) -> dict[str, Row]:
    """Returns each contender's windows; `after` is called with its name behind each of them, untimed."""
    rows = {name: Row([], []) for name in contenders}
    for window in range(windows + 1):
        for name, step in contenders.items():
            dist.barrier()
            begin, used = time.perf_counter(), time.thread_time()
            for _ in range(steps):
                step()
            used = time.thread_time() - used
            dist.barrier()
            if window:  # the first is the warm-up
                rows[name].seconds.append((time.perf_counter() - begin) / steps)
                rows[name].cpu.append(used / steps)
                if after is not None:
                    after(name)
    return rows


def _print(
    title: str,
    rows: dict[str, Row],
    host: dict[str, float],
    by_median: dict[str, Row],
    by_mean: dict[str, Row],
) -> None:
    for name, row in rows.items():
        extra = ""
        if name in host:
            planned = f"{row.by(by_median[name]):5.3f} and {row.by(by_mean[name]):5.3f} x planned"
            extra = f"  host {host[name] * 1e6:5.1f} us/op  {planned}"
        print(
            f"{title:28} {name:15} {statistics.median(row.seconds) * 1e3:9.2f} ms  "
            f"{row.by(rows['by hand, gloo']):5.2f} x gloo {row.by(rows['by hand, ring']):5.2f} x ring  "
            f"({min(row.seconds) * 1e3:.2f} to {max(row.seconds) * 1e3:.2f}){extra}",
            flush=True,
        )


# --------------------------------------------------------------------------------------- start, memory


def single(rank: int, port: int, who: str, count: int, steps: int) -> None:
    """Trains a few steps and tells, on rank 0, how much memory each rank had at most beyond an empty job's."""
    join(rank, port)
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job = job_of(Case(lambda: transformer(256), 8, (1, 512, 256), (count,), ("1F1B",)), count, "1F1B")
    step = with_torch(job) if who == "torch" else with_penstock(job, shared_memory=who.endswith("ring"))[0]
    for _ in range(steps):
        step()
    peaks = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
    dist.all_gather(peaks, torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - empty]))
    if rank == 0:
        print(" ".join(f"{peak.item() / 1024:.1f}" for peak in peaks), flush=True)


WHO = ("penstock, ring", "penstock, gloo", "torch")


def _fresh(who: str, count: int, steps: int) -> tuple[float, str]:
    """Returns the seconds and the output of a job of processes of its own."""
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--single", who, str(count), str(steps)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - begin, out.strip()


def start(repeats: int) -> None:
    """Prints the time from the start of a job to the end of its processes after one step."""
    rows: dict[str, list[float]] = {who: [] for who in WHO}
    for _ in range(repeats):
        for who in WHO:
            rows[who].append(_fresh(who, 8, 1)[0])
    for who, seconds in rows.items():
        print(
            f"start, to the end of step 1  {who:15} {statistics.median(seconds):9.2f} s   "
            f"({min(seconds):.2f} to {max(seconds):.2f})"
        )


def memory() -> None:
    """Prints the peaks of resident memory by microbatches."""
    for count in (8, 64):
        for who in WHO:
            print(
                f"memory 1F1B m={count:<14} {who:15} {_fresh(who, count, 3)[1]:>14} MiB beyond an empty job, by rank",
                flush=True,
            )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[*CASES, "start", "memory"])
    parser.add_argument("--beside", nargs="+", default=["floors", "schedules"], choices=["floors", "schedules"])
    parser.add_argument("--windows", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--single", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.single:
        who, count, steps = options.single
        multiprocessing.spawn(single, (free_port(), who, int(count), int(steps)), nprocs=2)
        sys.exit()
    print(
        f"penstock {ps.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}, "
        f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores"
    )
    if any(name in CASES for name in options.cases):
        multiprocessing.spawn(main, (free_port(), options), nprocs=2)
    if "start" in options.cases:
        start(max(3, options.windows // 3))
    if "memory" in options.cases:
        memory()
