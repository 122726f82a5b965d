"""Two processes share the matrices of a model as tensor parallelism does: what they save opens anywhere, and back.

Then of their backwards in two halves.
"""

from __future__ import annotations

from pathlib import Path

import torch
from joined import arguments, join, tell
from tensor_parallel import tell_of_halves
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import penstock as ps
from penstock import checkpoint


class Feedforward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value + self.down(self.up(value).relu())


def layers(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(Feedforward(), Feedforward(), nn.Linear(6, 6), nn.BatchNorm1d(6)).double()


def begun(*, spread: bool, seed: int) -> tuple[ps.Pipeline, torch.optim.Optimizer]:
    """A pipeline of one rank beside another with the other half of the matrices, or one of two ranks."""
    model = layers(seed)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("tp", "pp"))
    for layer in model[:2] if spread else ():
        parallelize_module(layer, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    own = {"mesh": mesh["pp"]} if spread else {}
    pipe = ps.Pipeline(model, nn.functional.mse_loss, num_microbatches=2, timeout_seconds=60, **own)
    return pipe, torch.optim.AdamW(pipe.parameters(), lr=0.01)


def train(pipe: ps.Pipeline, optimizer: torch.optim.Optimizer, *steps: int) -> list[float]:
    losses = []
    for step in steps:
        numbers = torch.Generator().manual_seed(step)
        inputs, targets = (torch.randn(4, 6, generator=numbers, dtype=torch.float64) for _ in range(2))
        losses.append(pipe.step(inputs, targets).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


join()
root = Path(arguments[0])
found: dict[str, list[float]] = {}
for spread in (True, False):
    pipe, optimizer = begun(spread=spread, seed=1)
    train(pipe, optimizer, 0, 1)
    with checkpoint.Saver(root / str(spread), pipe) as saver:
        path = saver.save(optimizer=optimizer)
        found[f"{spread} unbroken"] = train(pipe, optimizer, 2, 3)
    manifest = checkpoint.read_manifest(path)
    tell(shapes={name: entry.shape for name, entry in manifest.tensors().items() if name[:6] in ("model/", "optimi")})
    for other in (True, False):
        pipe, optimizer = begun(spread=other, seed=2)
        checkpoint.load(path, pipe, optimizer=optimizer)
        kinds = {type(each).__name__ for each in pipe.state_dict().values()}
        found[f"{spread} {other}"] = train(pipe, optimizer, 2, 3)
        tell(kinds=sorted(kinds), spread=other)
again = checkpoint.save(root / "at once", *begun(spread=True, seed=1)[:1])
tell(found=found, files=[file.name for file in checkpoint.read_manifest(again).files if "model/2.bias" in file.tensors])

plane = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp_shard", "tp"))
model = layers(1)
weight = distribute_tensor(model[2].weight.detach(), plane, [Shard(0), Shard(1)])
model[2].weight = nn.Parameter(weight)
alone = init_device_mesh("cpu", (2, 1), mesh_dim_names=("tp", "pp"))["pp"]
pipe = ps.Pipeline(model, nn.functional.mse_loss, mesh=alone, num_microbatches=2, timeout_seconds=60)
try:
    checkpoint.save(root / "plane", pipe)
except ps.UserError as error:
    tell(refused=str(error), there=(root / "plane").exists())

tell_of_halves(init_device_mesh("cpu", (2, 1), mesh_dim_names=("tp", "pp")))
