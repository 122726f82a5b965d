"""Two data-parallel replicas of a pipeline of two save; they resume, and so do one of four ranks and four of one."""

from __future__ import annotations

from pathlib import Path

import torch
from joined import arguments, join, rank, tell
from tests.checkpoint.runs import eight, mse
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import penstock as ps
from penstock import checkpoint

WIDTH = 6


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.randn(16, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def begun(shape: tuple[int, int], seed: int) -> tuple[ps.Pipeline, torch.optim.Optimizer]:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp_replicate", "pp"))
    pipe = ps.Pipeline(eight(seed), mse, mesh=mesh, schedule="gpipe", num_microbatches=2, timeout_seconds=30)
    return pipe, torch.optim.AdamW(pipe.parameters(), lr=0.01)


def decaying(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def four_times_two(seed: int) -> tuple[ps.Pipeline, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    mesh = init_device_mesh("cpu", (1, 4), mesh_dim_names=("dp_replicate", "pp"))
    schedule = ps.interleaved_1f1b(4, 4, num_chunks=2)
    pipe = ps.Pipeline(eight(seed), mse, mesh=mesh, schedule=schedule, timeout_seconds=30)
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=0.01)
    return pipe, optimizer, decaying(optimizer)


class Order:
    """Where a loop is in its data."""

    def __init__(self, drawn: int) -> None:
        self.drawn = drawn

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


def train(
    pipe: ps.Pipeline,
    optimizer: torch.optim.Optimizer,
    steps: range,
    replicas: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> list[float]:
    losses = []
    share = 16 // replicas
    replica = rank // (4 // replicas)
    for step in steps:
        own = [each[replica * share : (replica + 1) * share] for each in batch(step)]
        losses.append(pipe.step(*own).item())
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
    return losses


join()
root = Path(arguments[0])
pipe, optimizer = begun((2, 2), seed=1)
train(pipe, optimizer, range(2), 2)
with checkpoint.Saver(root, pipe) as saver:
    path = saver.save(optimizer=optimizer)
    unbroken = train(pipe, optimizer, range(2, 4), 2)
again = checkpoint.save(root, pipe, optimizer=optimizer, step=9)
for shape in ((2, 2), (1, 4), (4, 1)):
    pipe, optimizer = begun(shape, seed=2)
    step = checkpoint.load(path, pipe, optimizer=optimizer).step
    losses = train(pipe, optimizer, range(step, step + 2), shape[0])
    worst = max(abs(a - b) / b for a, b in zip(losses, unbroken, strict=True))
    tell(shape=shape, worst=worst, same=losses == unbroken, files=len(checkpoint.read_manifest(again).files))
pipe, optimizer, scheduler = four_times_two(seed=1)
train(pipe, optimizer, range(2), 1, scheduler)
loader = Order(2)
chunked = checkpoint.save(root / "chunked", pipe, optimizer=optimizer, scheduler=scheduler, state={"loader": loader})
unbroken = train(pipe, optimizer, range(2, 4), 1, scheduler)
for shape in ((1, 4), (2, 2), (4, 1)):
    pipe, optimizer = begun(shape, seed=2)
    scheduler, loader = decaying(optimizer), Order(0)
    checkpoint.load(chunked, pipe, optimizer=optimizer, scheduler=scheduler, state={"loader": loader})
    losses = train(pipe, optimizer, range(loader.drawn, 4), shape[0], scheduler)
    worst = max(abs(a - b) / b for a, b in zip(losses, unbroken, strict=True))
    tell(chunked=shape, worst=worst, same=losses == unbroken, rate=scheduler.get_last_lr()[0])
if rank == 3:
    (path / "rank-1.safetensors").write_bytes(b"")
dist.barrier()
try:
    checkpoint.load(path, pipe)
except ps.UserError as error:
    tell(refused=str(error))
