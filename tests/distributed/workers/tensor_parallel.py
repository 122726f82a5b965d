"""What `spread.py` tells of backwards in two halves: I and W of a model with shared matrices are far apart."""

from __future__ import annotations

import copy
from typing import Any

import torch
from joined import tell
from tests.runtime.runs import mse
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import penstock as ps
from penstock.ir import Op, OpKind, Placement, Schedule
from penstock.runtime.stage_work import StageWork
from penstock.testing import reference_gradients

M = 3
APART = Schedule(
    "halves apart",
    Placement.looped(1, 1),
    M,
    (tuple(Op(kind, 0, i) for kind in (OpKind.F, OpKind.I, OpKind.W) for i in range(M)),),
)


class Feedforward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value + self.down(self.up(self.norm(value)).relu())


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def spread(model: nn.Sequential, mesh: DeviceMesh) -> nn.Sequential:
    """Returns a copy whose first layer takes the batch, which needs no gradient, with a spread matrix already."""
    model = copy.deepcopy(model)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    for layer in model[2:4]:
        parallelize_module(layer, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def halves(model: nn.Sequential, mesh: DeviceMesh, inputs: torch.Tensor) -> None:
    """Tells what has a gradient after I, and what I put off."""
    stage = StageWork(spread(model, mesh), loss_fn=None)
    with torch.autograd.set_multithreading_enabled(False):
        output = stage.forward(inputs, split=True)
        stage.keep(0, (), (output,))
        stage.input_grads(0, [torch.ones_like(output)])
    names = {id(parameter): name for name, parameter in stage.module.named_parameters()}
    put_off = sorted(names[id(entry.weights.weight.parameter)] for entry in stage.deferred(0))
    early = sorted(name for name, parameter in stage.module.named_parameters() if parameter.grad is not None)
    tell(claim="halves", put_off=put_off, early=early)


def gradients(claim: str, model: nn.Sequential, mesh: DeviceMesh, batch: list[torch.Tensor], **arguments: Any) -> None:
    _, expected = reference_gradients(model, mse, *batch, num_microbatches=M)
    pipe = ps.Pipeline(spread(model, mesh), mse, mesh=mesh["pp"], schedule=APART, timeout_seconds=30, **arguments)
    for _ in range(2):  # the second adds to gradients that are there
        pipe.step(*batch)
    found = {name: whole(parameter.grad) / 2 for name, parameter in pipe.named_parameters()}
    kinds = sorted({type(parameter.grad).__name__ for parameter in pipe.parameters()})
    worst = max(float((found[name] - grad).abs().max() / grad.abs().max()) for name, grad in expected.items())
    tell(claim=claim, worst=worst, names=sorted(found) == sorted(expected), types=kinds)


def tell_of_halves(mesh: DeviceMesh) -> None:
    """Tells it; the axes of `mesh` are "tp" and "pp"."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 10), nn.Linear(10, 6), Feedforward(), Feedforward(), nn.Linear(6, 6)
    model = nn.Sequential(*layers).double()
    batch = list(torch.randn(2, 2 * M, 6, dtype=torch.float64))
    halves(model, mesh, batch[0])
    gradients("gradients", model, mesh, batch)
    gradients("recomputed", model, mesh, batch, recompute="full")
