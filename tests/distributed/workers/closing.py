"""Pipelines made, used and closed one after another; tells how many threads and files are open after each.

Argument: "memory" where ranks of one host share memory, else "gloo".
"""

from __future__ import annotations

import gc
import os

import torch
from joined import arguments, join, num_ranks, rank, tell
from torch import distributed as dist
from torch import nn

import penstock as ps
from penstock.errors import HandshakeError
from penstock.runtime.transport.distributed import DistributedTransport


def opened() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


join()
shared = arguments == ["memory"]
theirs = dist.new_group(list(range(num_ranks)), backend="gloo")
inputs, targets = torch.randn(4, 3), torch.randn(4, 3)
for number in range(6):
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(2 * num_ranks)))
    transport = DistributedTransport(timeout_seconds=30, shared_memory=shared)
    pipe = ps.Pipeline(model, nn.functional.mse_loss, transport=transport, schedule="zb_v", num_microbatches=4)
    loss = pipe.step(inputs, targets)
    pipe.trace()
    if rank == 1:
        dist.recv(loss, 0)
    pipe.close()
    if rank == 0:
        dist.send(loss, 1)  # which closes after this one
    total = torch.ones(())
    dist.all_reduce(total, group=theirs)  # and nobody makes the next before all have closed
    threads, files = opened()
    tell(number=number, threads=threads, files=files, finite=bool(loss.isfinite()), total=total.item())
try:
    pipe.step(inputs, targets)
except HandshakeError as error:
    tell(error=str(error))
