"""A stage raises in mid step while one rank waits for it and another is busy for minutes, as in any user's script."""

from __future__ import annotations

import time

import torch
from joined import arguments, join, num_ranks, rank, tell
from tests.runtime.runs import mse
from torch import Tensor, nn
from torch import distributed as dist

import penstock as ps
from penstock.runtime.transport.distributed import DistributedTransport

BUSY_SECONDS = 300.0


class Layer(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if (rank, self.calls) == (1, 4 + 3):
            store.wait(["busy"])
            tell(raised=time.monotonic())
            raise FloatingPointError("overflow")
        if (rank, self.calls) == (2, 4 + 2):
            store.set("busy", "")
            time.sleep(BUSY_SECONDS)
        return super().forward(x)


join()
store = dist.distributed_c10d._get_default_store()
torch.manual_seed(0)
model = nn.Sequential(*(Layer(6, 6) for _ in range(num_ranks)))
transport = DistributedTransport(shared_memory=arguments == ["shared memory"], timeout_seconds=BUSY_SECONDS)
pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=4)
for _ in range(2):
    pipe.step(torch.ones(8, 6), torch.ones(8, 6))
