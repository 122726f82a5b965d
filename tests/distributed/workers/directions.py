"""Schedules of every kind over gloo: directions, split backwards, steps inside, activations kept elsewhere."""

from __future__ import annotations

import copy
from functools import partial

import torch
from joined import arguments, join, rank, tell
from tests.runtime import delay_rules as rules
from tests.runtime.runs import grads_of, mse
from tests.runtime.zoo import WIDTH, batch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import penstock as ps
from penstock.testing import reference_step

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def model(num_layers: int) -> nn.Sequential:
    torch.manual_seed(5)
    layers = [nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(num_layers)]
    return nn.Sequential(*layers).double()


def same_everywhere(pipe: ps.Pipeline, tensors: dict[str, torch.Tensor]) -> bool:
    """Returns whether every rank that holds a tensor of a name holds the same bits."""
    mine = {name: tensor.detach().double().tolist() for name, tensor in tensors.items()}
    everywhere: list[dict] = [{}] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    merged: dict[str, list] = {}
    return all(merged.setdefault(name, value) == value for row in everywhere for name, value in row.items())


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return max(
        (float((grad - expected[name]).abs().max() / expected[name].abs().max()) for name, grad in found.items())
    )


def synchronous(schedule: ps.Schedule) -> None:
    """Two steps, so that the second knows all shapes, over uneven numbers of microbatches too."""
    whole = model(schedule.num_stages)
    oracle = copy.deepcopy(whole)
    pipe = ps.Pipeline(whole, mse, schedule=schedule, timeout_seconds=30)
    for seed in (1, 2):
        data = batch(2 * schedule.num_microbatches, seed=seed)
        expected = reference_step(oracle, mse, *data, num_microbatches=schedule.num_microbatches)
        loss = pipe.step(*data)
    same = same_everywhere(pipe, grads_of(pipe))
    norm = float(pipe.clip_grad_norm_(1e9))
    expected_norm = float(nn.utils.clip_grad_norm_(oracle.parameters(), 1e9))
    tell(
        name=f"{schedule.name} m={schedule.num_microbatches}",
        worst=worst(grads_of(pipe), grads_of(oracle)),
        loss=abs(float(loss) - float(expected)),
        norm=abs(norm / expected_norm - 1),
        same=same,
    )
    pipe.close()


def asynchronous(schedule: ps.Schedule, rule: rules.Rule, sizes: list[int]) -> None:
    whole, data = model(sum(sizes)), batch(2 * schedule.num_microbatches)
    pieces = list(zip(data[0].split(2), data[1].split(2), strict=True))
    expected, _ = rules.trained(whole, mse, pieces, sizes=sizes, rule=rule, optimizer=SGD)
    pipe = ps.Pipeline(whole, mse, schedule=schedule, optimizer=SGD, partition=sizes, timeout_seconds=30)
    loss = pipe.step(*data)
    held = {name: value.detach() for name, value in pipe.named_parameters()}
    exact = all(torch.equal(value, expected[name]) for name, value in held.items())
    tell(name=schedule.name, worst=0.0 if exact else 1.0, loss=0.0 * float(loss), norm=0.0, same=exact)
    pipe.close()


def replicated() -> None:
    """Two data-parallel replicas of a pipeline whose stages have two copies each."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "pp"))
    schedule = ps.chimera(2, 3)
    whole = model(2)
    oracle = copy.deepcopy(whole)
    pipe = ps.Pipeline(whole, mse, mesh=mesh, schedule=schedule, timeout_seconds=30)
    m = schedule.num_microbatches
    for seed in (1, 2):
        inputs, targets = batch(4 * m, seed=seed)
        part = slice(None, 2 * m) if rank < 2 else slice(2 * m, None)
        loss = pipe.step(inputs[part], targets[part])
        expected = reference_step(oracle, mse, inputs, targets, num_microbatches=1)
    tell(
        name=f"{schedule.name} twice",
        worst=worst(grads_of(pipe), grads_of(oracle)),
        loss=abs(float(loss) - float(expected)),
        norm=0.0,
        same=same_everywhere(pipe, grads_of(pipe)),
    )
    schedule = ps.pipedream_2bw(2, 12, microbatches_per_version=3)
    whole, (inputs, targets) = model(2), batch(24)
    halves = [inputs[::2], inputs[1::2]], [targets[::2], targets[1::2]]
    pipe = ps.Pipeline(whole, mse, mesh=mesh, schedule=schedule, optimizer=SGD, timeout_seconds=30)
    pieces = list(zip(inputs.split(2), targets.split(2), strict=True))
    expected_weights, _ = rules.trained(whole, mse, pieces, sizes=[1, 1], rule=rules.double_buffered(3), optimizer=SGD)
    pipe.step(halves[0][rank // 2], halves[1][rank // 2])
    held = {name: value.detach() for name, value in pipe.named_parameters()}
    tell(
        name="pipedream_2bw twice",
        worst=worst(held, expected_weights),
        loss=0.0,
        norm=0.0,
        same=same_everywhere(pipe, held),
    )


join()
if arguments == ["replicated"]:
    replicated()
elif dist.get_world_size() == 2:
    for each in (ps.chimera(2, 3), ps.dualpipe_v(2, 5), ps.zb_v(2, 4)):
        synchronous(each)
    asynchronous(ps.pipedream(2, 12), rules.stashing(2), [1, 1])
else:
    for each in (ps.chimera(4, 7), ps.chimera(4, 5, num_replicas=4), ps.dualpipe(4, 8), ps.bpipe(4, 8)):
        synchronous(each)
    asynchronous(ps.pipedream(4, 12, replicas=(2, 1, 1)), rules.replicated((2, 1, 1)), [1] * 3)
