"""Asynchronous schedules on four processes: two data-parallel replicas of two ranks, and four ranks over gloo alone.

Tells for each way of training how far the weights are from the delay rule's in one process, and what they hash to.
"""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from itertools import chain

import torch
from joined import join, rank, tell
from tests.runtime import delay_rules as rules
from tests.runtime.runs import mse
from tests.runtime.zoo import batch, made
from torch.distributed.device_mesh import init_device_mesh

import penstock as ps
from penstock.runtime.transport.distributed import DistributedTransport

BATCHES, MICROBATCHES, SAMPLES = 4, 4, 2
MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def trained(pipe: ps.Pipeline, data: list, *, unbroken: bool) -> tuple[dict, list[float]]:
    losses = list(pipe.run(data)) if unbroken else [pipe.step(*each) for each in data]
    return pipe.state_dict(), [float(loss) for loss in losses]


def told(claim: str, found: dict, losses: list[float], expected: dict) -> None:
    bits = blake2b(digest_size=8)
    for name in sorted(found):
        bits.update(name.encode() + found[name].contiguous().numpy().tobytes())
    worst = max(
        float((value - expected[name]).abs().max() / expected[name].abs().max()) for name, value in found.items()
    )
    tell(claim=claim, worst=worst, bits=bits.hexdigest(), names=sorted(found), losses=losses)


def delay_rule(name: str, data: list, *, sizes: list[int], drained: bool) -> dict:
    """The weights after these batches of microbatches, each begun with nothing in flight if `drained`."""
    model = made(name)
    calls = data if drained else [list(chain.from_iterable(data))]
    optimizers: list[torch.optim.Optimizer] = []
    for microbatches in calls:
        state, _ = rules.trained(
            model,
            mse,
            microbatches,
            sizes=sizes,
            rule=rules.stashing(len(sizes)),
            optimizer=partial(_kept, optimizers, len(sizes)),
        )
        model.load_state_dict(state)
    return model.state_dict()


def _kept(optimizers: list, count: int, parameters: list) -> torch.optim.Optimizer:
    """The optimizer of a stage, with the moments that it had in the call before."""
    optimizer = MOMENTUM(parameters)
    if len(optimizers) >= count:
        before = optimizers[-count]
        for new, old in zip(parameters, before.param_groups[0]["params"], strict=True):
            optimizer.state[new] = before.state[old]
    optimizers.append(optimizer)
    return optimizer


join()
size = MICROBATCHES * SAMPLES
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "pp"))
replica = mesh.get_local_rank("dp_replicate")
given = [[batch(size, seed=10 * at + each) for each in range(2)] for at in range(BATCHES)]
pieces = [
    [
        (torch.cat(xs), torch.cat(ys))
        for xs, ys in zip(
            zip(*(x.split(SAMPLES) for x, _ in both), strict=True),
            zip(*(y.split(SAMPLES) for _, y in both), strict=True),
            strict=True,
        )
    ]
    for both in given
]
for unbroken in (False, True):
    pipe = ps.Pipeline(
        made("dense"),
        mse,
        mesh=mesh,
        schedule=ps.pipedream(2, MICROBATCHES),
        optimizer=MOMENTUM,
        partition=[3, 3],
        timeout_seconds=60,
    )
    found, losses = trained(pipe, [both[replica] for both in given], unbroken=unbroken)
    expected = delay_rule("dense", pieces, sizes=[3, 3], drained=not unbroken)
    told(f"replicas, {'run' if unbroken else 'step'}", found, losses, expected)

alone = DistributedTransport(timeout_seconds=60, shared_memory=False)
pipe = ps.Pipeline(
    made("attention"), mse, transport=alone, schedule=ps.pipedream(4, 5), optimizer=MOMENTUM, partition=[1, 1, 1, 1]
)
data = [batch(5 * SAMPLES, seed=at) for at in range(6)]
found, losses = trained(pipe, data, unbroken=True)
whole = [list(zip(x.split(SAMPLES), y.split(SAMPLES), strict=True)) for x, y in data]
told("gloo, run", found, losses, delay_rule("attention", whole, sizes=[1, 1, 1, 1], drained=False))
assert rank == pipe.rank
