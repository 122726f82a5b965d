"""Two data-parallel replicas of a pipeline of two, against the unsplit model on the union of their batches."""

from __future__ import annotations

import copy

import torch
from joined import join, rank, tell
from tests.runtime.runs import SCHEDULES, grads_of, mse
from tests.runtime.zoo import batch, made
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import penstock as ps
from penstock.testing import reference_step


def halves(seed: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Returns the whole batch and this replica's part: 4 and 12 samples, so that shares differ."""
    whole = batch(16, seed=seed)
    return whole, tuple(each[:4] if rank < 2 else each[4:] for each in whole)


join()
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "pp"))
for schedule in SCHEDULES:
    model = made("dense")
    oracle = copy.deepcopy(model)
    pipe = ps.Pipeline(model, mse, mesh=mesh, schedule=schedule, num_microbatches=4, timeout_seconds=30)
    optimizer, unsplit = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (pipe, oracle))
    worst = losses = 0.0
    for turn in range(5):
        for part in range(2):  # two steps accumulate
            whole, mine = halves(10 * turn + part)
            loss = pipe.step(*mine)
            losses = max(losses, abs(float(loss) - float(reference_step(oracle, mse, *whole, num_microbatches=1))))
        expected = grads_of(oracle)
        for name, grad in grads_of(pipe).items():
            worst = max(worst, float((grad - expected[name]).abs().max() / expected[name].abs().max()))
        for each in (optimizer, unsplit):
            each.step()
            each.zero_grad()
    evaluated = float(pipe.evaluate(*halves(99)[1]))
    everywhere = [torch.empty(0)] * 4
    bits = torch.cat([parameter.detach().flatten() for parameter in pipe.parameters()])
    rows = [torch.zeros(200, dtype=bits.dtype) for _ in range(4)]
    dist.all_gather(rows, torch.nn.functional.pad(bits, (0, 200 - len(bits))))
    tell(
        schedule=schedule,
        worst=worst,
        losses=losses,
        same=torch.equal(rows[0], rows[2]) and torch.equal(rows[1], rows[3]),
        evaluated=abs(evaluated - float(mse(oracle(halves(99)[0][0]), halves(99)[0][1]).detach())),
    )

# Dropout: microbatch i of replica r is microbatch 4 r + i of one process that has them all, on every step.
model = made("dropout")
oracle = copy.deepcopy(model)
pipe = ps.Pipeline(model, mse, mesh=mesh, num_microbatches=4, seed=3, timeout_seconds=30)
worst = 0.0
for step in range(2):
    whole = batch(16, seed=step)
    loss = pipe.step(*(each.chunk(2)[rank // 2] for each in whole))
    worst = max(
        worst, abs(float(loss) - float(reference_step(oracle, mse, *whole, num_microbatches=8, seed=3, step=step)))
    )
expected = grads_of(oracle)
for name, grad in grads_of(pipe).items():
    worst = max(worst, float((grad - expected[name]).abs().max() / expected[name].abs().max()))
tell(dropped=worst)
