"""A pipeline in which something befalls one rank in mid step; tells what the others get to know."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from joined import arguments, join, num_ranks, rank, tell
from tests.runtime.runs import mse
from torch import Tensor, nn

import penstock as ps
from penstock.errors import RankFailedError
from penstock.runtime.transport import watch

watch.LOST_SECONDS, watch.GRACE_SECONDS, watch.PERIOD_SECONDS = 2.0, 1.0, 0.1
what, culprit = arguments[0], int(arguments[1])
DEADLINE_SECONDS = 1.5


def befall() -> None:
    time.sleep(0.4)  # so that the others have heard where this rank is
    if what == "slow":
        time.sleep(4 * DEADLINE_SECONDS)
        return
    if what == "raise":
        raise FloatingPointError("overflow")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[what])


class Layer(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 4 + 3 and rank == culprit and what in ("raise", "kill", "stop", "slow"):
            befall()
        return super().forward(x)


join(own_store=len(arguments) > 2)
torch.manual_seed(0)
pipe = ps.Pipeline(
    nn.Sequential(*(Layer(6, 6) for _ in range(num_ranks))),
    mse,
    num_microbatches=4,
    timeout_seconds=DEADLINE_SECONDS if what == "slow" else 300,
)
data = torch.ones(8, 6), torch.ones(8, 6)
for step in range(3):
    if step == 1 and what == "leave" and rank == culprit:
        sys.exit(0)
    try:
        pipe.step(*data)
    except (RankFailedError, FloatingPointError) as error:
        tell(kind=type(error).__name__, text=str(error), notes=getattr(error, "__notes__", []))
        try:
            pipe.step(*data)
        except RankFailedError as again:
            tell(again=str(again))
        sys.exit(3)
tell(kind="nothing", text="", notes=[])
