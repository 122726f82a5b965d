"""A pipeline through shared memory beside one over gloo; tells what it found."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from joined import join, num_ranks, rank, tell
from tests.runtime.runs import grads_of, mse
from tests.runtime.zoo import batch, made

import penstock as ps
from penstock.ir.ops import Channel, OpKind
from penstock.runtime.transport.distributed import DistributedTransport
from penstock.testing import reference_step


def files() -> tuple[list[str], int]:
    """What lies in /dev/shm, and how many Unix sockets this process holds; gloo's are of another kind."""
    local = {f"socket:[{line.split()[6]}]" for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    sockets = [link for link in os.listdir("/proc/self/fd") if opened(link) in local]
    return sorted(os.listdir("/dev/shm")), len(sockets)


def opened(link: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{link}")
    except FileNotFoundError:  # the folder's own
        return ""


def stepped(schedule: str, **arguments: bool) -> tuple[ps.Pipeline, DistributedTransport, dict[str, torch.Tensor]]:
    transport = DistributedTransport(timeout_seconds=30, **arguments)
    pipe = ps.Pipeline(made("skips", torch.float32), mse, transport=transport, schedule=schedule, num_microbatches=8)
    for seed in (1, 2):
        pipe.step(*batch(8, torch.float32, seed=seed))
    return pipe, transport, grads_of(pipe)


def ways(transport: DistributedTransport, kind: OpKind = OpKind.F) -> list[bool]:
    """Whether each of this rank's outgoing channels passes through shared memory."""
    neighbours = [other for other in (rank - 1, rank + 1) if 0 <= other < num_ranks]
    lanes = transport._lanes.sending
    return [Channel(rank, other, kind if other > rank else OpKind.B) in lanes for other in neighbours]


def same_gradients() -> None:
    oracle = copy.deepcopy(made("skips", torch.float32))
    for seed in (1, 2):
        reference_step(oracle, mse, *batch(8, torch.float32, seed=seed), num_microbatches=8)
    expected = grads_of(oracle)
    for schedule in ("one_f_one_b", "gpipe"):
        pipe, near, found = stepped(schedule)
        other, far, over_gloo = stepped(schedule, shared_memory=False)
        tell(
            schedule=schedule,
            gradients=len(found),
            same=all(torch.equal(grad, over_gloo[name]) for name, grad in found.items()),
            right=all(torch.equal(grad, expected[name]) for name, grad in found.items()),
            near=ways(near),
            far=ways(far),
            everyone=[near._lanes.everyone, far._lanes.everyone],
        )
        for each in (pipe, other):
            each.close()


def a_rank_apart() -> None:
    """The last rank takes no part, as if on another host: its channels go over gloo, all others stay."""
    pipe, transport, found = stepped("one_f_one_b", shared_memory=rank != num_ranks - 1)
    other, _, over_gloo = stepped("one_f_one_b", shared_memory=False)
    loss = pipe.evaluate(*batch(5, torch.float32))
    tell(
        apart=ways(transport),
        everyone=transport._lanes.everyone,
        same=all(torch.equal(grad, over_gloo[name]) for name, grad in found.items()),
        loss=float(loss).hex(),
    )
    for each in (pipe, other):
        each.close()


def nothing_left() -> None:
    names, before = files()
    pipe, transport, _ = stepped("one_f_one_b")
    own = sum(len(lanes) for lanes in (transport._lanes.sending, transport._lanes.receiving))
    held = files()[1] - before
    pipe.close()
    tell(shm=files()[0] == names, own=own, held=held, left=files()[1] - before)


join()
same_gradients()
a_rank_apart()
nothing_left()
