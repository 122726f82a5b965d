"""What a flush between batches costs: `step` after `step` beside `run`, on stages that take a stated time.

python benchmarks/unbroken.py [--ranks 4] [--milliseconds 4] [--batches 12]

Each stage sleeps for its forward and twice as long for its backward, so that the ranks, threads of one process, need no
core of their own: what is measured is who waits for whom. Times are medians of three interleaved runs, a batch;
expected is what the simulator says.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from statistics import median
from typing import Any

import torch
from torch import nn

import penstock as ps
from penstock.simulator.steady import simulate_steady


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(2 * ctx.seconds)
        return grad, None


class Stage(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear, self.seconds = nn.Linear(8, 8), seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Slow.apply(self.linear(x), self.seconds)


def seconds_a_batch(schedule: ps.Schedule, *, seconds: float, batches: int, unbroken: bool) -> float:
    """Returns the time of one batch: of all but the first two and the last, which fill and drain."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Stage(seconds) for _ in range(schedule.num_ranks)))
    data = torch.randn(schedule.num_microbatches, 8)

    def rank(transport: ps.LoopbackTransport) -> float:
        pipe = ps.Pipeline(
            model,
            nn.functional.mse_loss,
            transport=transport,
            schedule=schedule,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        )
        moments = []
        if unbroken:
            for _ in pipe.run((data, data) for _ in range(batches)):
                moments.append(time.perf_counter())
        else:
            for _ in range(batches):
                pipe.step(data, data)
                moments.append(time.perf_counter())
        return (moments[-2] - moments[1]) / (batches - 3)

    return max(ps.run_ranks(rank, schedule.num_ranks))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--milliseconds", type=float, default=4.0)
    parser.add_argument("--batches", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    p, seconds = options.ranks, options.milliseconds / 1e3
    costs = ps.StageCosts(forward=seconds, input_grad=seconds, weight_grad=seconds)
    print(f"python {platform.python_version()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, p={p}")
    print(f"{'schedule':16} {'m':>3} {'step':>18} {'run':>18}   ms a batch, expected in parentheses")
    for schedule in (ps.pipedream(p, p), ps.pipedream(p, 4 * p), ps.pipedream_2bw(p, p), ps.pipemare(p, 2 * p)):
        found: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(3):
            for unbroken, times in found.items():
                times.append(seconds_a_batch(schedule, seconds=seconds, batches=options.batches, unbroken=unbroken))
        whole = ps.simulate(schedule, costs).makespan
        idle = simulate_steady(schedule, costs, batches=4).bubble_fraction
        each = 3 * seconds * schedule.num_microbatches / (1 - idle)
        cells = [f"{1e3 * median(found[way]):8.1f} ({1e3 * want:6.1f})" for way, want in ((False, whole), (True, each))]
        print(f"{schedule.name:16} {schedule.num_microbatches:3} {cells[0]:>18} {cells[1]:>18}", flush=True)


if __name__ == "__main__":
    main()
