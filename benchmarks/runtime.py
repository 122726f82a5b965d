"""Step time of penstock against torch.distributed.pipelining and a hand-written loop, in one run.

python benchmarks/runtime.py [--windows 9] [--steps 10]

Two processes over gloo, one core and one thread each, 1F1B. The hand-written loop posts the same messages with isend
and irecv and runs the same modules: the floor. Contenders take turns in windows of steps, so that a busy machine
is busy for all of them; the figures are medians over windows, and ratios to the floor.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable

import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import penstock as ps

Step = Callable[[], object]


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


CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], int]] = {
    "empty stages, m=64": (Scale, 2, (1, 64), 64),
    "d=64, 8 layers, 32 tokens, m=8": (lambda: transformer(64), 8, (1, 32, 64), 8),
    "d=256, 8 layers, 128 tokens, m=8": (lambda: transformer(256), 8, (1, 128, 256), 8),
}
"""Name -> layer, number of layers, shape of one microbatch, microbatches."""


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error."""
    return nn.functional.mse_loss(output, target)


def with_penstock(model: nn.Sequential, inputs: torch.Tensor, targets: torch.Tensor, num_microbatches: int) -> Step:
    """Returns one step of a Pipeline."""
    pipe = ps.Pipeline(model, loss_fn, schedule="1F1B", num_microbatches=num_microbatches)
    return lambda: pipe.step(inputs, targets)


def with_torch(model: nn.Sequential, inputs: torch.Tensor, targets: torch.Tensor, num_microbatches: int) -> Step:
    """Returns one step of torch's own schedule."""
    rank, half = dist.get_rank(), len(model) // 2
    part = model[:half] if rank == 0 else model[half:]
    stage = PipelineStage(part, rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, num_microbatches, loss_fn=loss_fn)
    return (lambda: schedule.step(inputs)) if rank == 0 else (lambda: schedule.step(target=targets))


def by_hand(model: nn.Sequential, inputs: torch.Tensor, targets: torch.Tensor, num_microbatches: int) -> Step:
    """Returns one step of 1F1B for two ranks, written out."""
    half = len(model) // 2
    xs, ys = inputs.chunk(num_microbatches), targets.chunk(num_microbatches)
    buffers = [torch.empty_like(xs[0]) for _ in range(2)]
    step = _first_rank if dist.get_rank() == 0 else _last_rank
    part = model[:half] if dist.get_rank() == 0 else model[half:]
    return lambda: step(part, xs, ys, buffers)


def _first_rank(part: nn.Module, xs: tuple, ys: tuple, buffers: list[torch.Tensor]) -> None:
    count = len(xs)
    outputs, sends = {}, []
    receive = dist.irecv(buffers[0], 1)
    outputs[0] = part(xs[0])
    sends.append(dist.isend(outputs[0].detach(), 1))
    for i in range(count):
        if i + 1 < count:
            outputs[i + 1] = part(xs[i + 1])
            sends.append(dist.isend(outputs[i + 1].detach(), 1))
        receive.wait()
        if i + 1 < count:
            receive = dist.irecv(buffers[(i + 1) % 2], 1)
        outputs.pop(i).backward(buffers[i % 2])
    for send in sends:
        send.wait()


def _last_rank(part: nn.Module, xs: tuple, ys: tuple, buffers: list[torch.Tensor]) -> None:
    count = len(xs)
    sends = []
    receive = dist.irecv(buffers[0], 0)
    for i in range(count):
        receive.wait()
        if i + 1 < count:
            receive = dist.irecv(buffers[(i + 1) % 2], 0)
        x = buffers[i % 2].detach().clone().requires_grad_()
        (loss_fn(part(x), ys[i]) / count).backward()
        sends.append(dist.isend(x.grad, 0))
    for send in sends:
        send.wait()


CONTENDERS = {"penstock": with_penstock, "torch": with_torch, "by hand": by_hand}


def main(rank: int, port: int, windows: int, steps: int) -> None:
    """Runs all cases on one rank; rank 0 prints."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name, (layer, num_layers, shape, num_microbatches) in CASES.items():
        rows = _time_case(layer, num_layers, shape, num_microbatches, windows, steps)
        if rank == 0:
            floor = statistics.median(rows["by hand"])
            for contender, seconds in rows.items():
                middle = statistics.median(seconds)
                spread = (min(seconds) * 1e3, max(seconds) * 1e3)
                print(
                    f"{name:34} {contender:9} {middle * 1e3:8.2f} ms  {middle / floor:5.2f} x  "
                    f"(windows {spread[0]:.2f} to {spread[1]:.2f})",
                    flush=True,
                )
    dist.destroy_process_group()


def _time_case(
    layer: Callable[[], nn.Module],
    num_layers: int,
    shape: tuple[int, ...],
    num_microbatches: int,
    windows: int,
    steps: int,
) -> dict[str, list[float]]:
    torch.manual_seed(0)
    inputs = torch.randn(num_microbatches * shape[0], *shape[1:])
    targets = torch.randn_like(inputs)
    contenders = {}
    for name, make in CONTENDERS.items():
        torch.manual_seed(0)
        model = nn.Sequential(*[layer() for _ in range(num_layers)])
        contenders[name] = make(model, inputs, targets, num_microbatches)
    rows: dict[str, list[float]] = {name: [] for name in contenders}
    for window in range(windows + 1):
        for name, step in contenders.items():
            dist.barrier()
            begin = time.perf_counter()
            for _ in range(steps):
                step()
            dist.barrier()
            if window:  # the first is the warm-up
                rows[name].append((time.perf_counter() - begin) / steps)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores")
    multiprocessing.spawn(main, (port, options.windows, options.steps), nprocs=2)
