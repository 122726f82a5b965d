"""Two data-parallel replicas of a pipeline of two differ in one thing after another; tells what each rank hears."""

from __future__ import annotations

import sys

import torch
from joined import join, rank, tell
from tests.runtime.runs import mse
from tests.runtime.zoo import batch, made
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import penstock as ps
from penstock.errors import PenstockError
from penstock.runtime.transport import watch

watch.LOST_SECONDS, watch.GRACE_SECONDS, watch.PERIOD_SECONDS = 5.0, 1.0, 0.1


class Fuse(nn.Module):
    """Blows in the third training forward of one rank of the second replica."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3 and second and rank % 2 == 1:
            raise FloatingPointError("overflow in the fuse")
        return x


def pipeline(model: nn.Module | None = None, **arguments: object) -> ps.Pipeline:
    given = {"num_microbatches": 4, "timeout_seconds": 60.0, **arguments}
    return ps.Pipeline(made("dense") if model is None else model, mse, mesh=mesh, **given)


def heard(claim: str, call: object) -> None:
    try:
        call()  # type: ignore[operator]
        tell(claim=claim, error="")
    except (PenstockError, FloatingPointError) as error:
        tell(claim=claim, error=f"{type(error).__name__}: {error}")


join()
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "pp"))
second = rank >= 2
heard("other microbatches", lambda: pipeline(num_microbatches=8 if second else 4))
heard("no model", lambda: pipeline(model=nn.Sequential() if second else made("dense")))

model = made("dense")
if second:
    with torch.no_grad():
        model[4].weight[0, 0] += 1e-16 + model[4].weight[0, 0].abs() * 1e-15
pipe = pipeline(model)
heard("other weights", lambda: pipe.step(*batch(8)))
heard("evaluation meanwhile", lambda: pipe.evaluate(*batch(8)))
whole = made("dense").state_dict()
pipe.load_state_dict(whole)
heard("the same weights", lambda: pipe.step(*batch(8)))
heard("a refused batch", lambda: pipe.step(*batch(6 if second else 8)))
heard("after that", lambda: pipe.step(*batch(8)))
heard("another call", lambda: pipe.evaluate(*batch(8)) if second else pipe.step(*batch(8)))

pipe = pipeline(nn.Sequential(*made("dense")[:3], Fuse(), *made("dense")[3:]), partition=[3, 4])
try:
    pipe.step(*batch(8))
    tell(claim="a fuse", error="")
except (PenstockError, FloatingPointError) as error:
    tell(claim="a fuse", error=f"{type(error).__name__}: {error}")
    sys.exit(3)
