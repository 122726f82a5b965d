"""What a step is timed with: penstock, torch.distributed.pipelining, and a bare loop over the same messages.

The bare loop is the floor. It holds a rank's instructions as a list of tuples and does for each only what it cannot do
without: a module's forward, autograd's backward, one raw call to send or to post a receive. It checks, records and
learns nothing, and knows the one shape there is. An I is a full backward there, and a W nothing: it moves the same
messages and adds up to the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, schedules

import penstock as ps
from penstock.ir.dependencies import Value, ValueKind, carried
from penstock.ir.ops import BACKWARD, RECEIVES, SENDS, Channel, Op, OpKind, Transfer
from penstock.ir.program import Program
from penstock.runtime.transport.distributed import DistributedTransport
from penstock.schedules import named_schedule
from penstock.verifier import receive_slots

Step = Callable[[], object]
LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Job(NamedTuple):
    """One case: a model as a list of layers, its batch, the schedule by its name.

    Attributes:
        layers: of the whole model, the same on every rank.
        inputs: the whole batch.
        targets: likewise.
        schedule: its name in penstock.
        num_microbatches: m.
    """

    layers: Sequence[nn.Module]
    inputs: torch.Tensor
    targets: torch.Tensor
    schedule: str
    num_microbatches: int


TORCH_SCHEDULES = {
    "1f1b": schedules.Schedule1F1B,
    "interleaved_1f1b": schedules.ScheduleInterleaved1F1B,
    "zb_v": schedules.ScheduleZBVZeroBubble,
    "dualpipe_v": schedules.ScheduleDualPipeV,
}


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error."""
    return nn.functional.mse_loss(output, target)


def placed(job: Job, rank: int, num_ranks: int) -> tuple[ps.Schedule, dict[int, nn.Module]]:
    """Returns the schedule and this rank's stages, equal numbers of layers each."""
    schedule = named_schedule(job.schedule, num_ranks=num_ranks, num_microbatches=job.num_microbatches)
    count = len(job.layers) // schedule.num_stages
    held = schedule.placement.stages_of(rank)
    return schedule, {stage: nn.Sequential(*job.layers[stage * count : (stage + 1) * count]) for stage in held}


def with_penstock(job: Job, *, shared_memory: bool) -> tuple[Step, ps.Pipeline]:
    """Returns one step of a Pipeline, and the Pipeline."""
    pipe = ps.Pipeline(
        nn.Sequential(*job.layers),
        loss_fn,
        transport=DistributedTransport(shared_memory=shared_memory),
        schedule=job.schedule,
        num_microbatches=job.num_microbatches,
    )
    return (lambda: pipe.step(job.inputs, job.targets)), pipe


def with_torch(job: Job) -> Step:
    """Returns one step of torch's own schedule on the same placement."""
    schedule, parts = placed(job, dist.get_rank(), dist.get_world_size())
    stages = [PipelineStage(part, stage, schedule.num_stages, torch.device("cpu")) for stage, part in parts.items()]
    make: Any = TORCH_SCHEDULES[job.schedule.lower()]
    single = job.schedule.lower() == "1f1b"
    theirs = make(stages[0] if single else stages, job.num_microbatches, loss_fn=loss_fn)
    inputs = (job.inputs,) if 0 in parts else ()
    targets = {"target": job.targets} if schedule.num_stages - 1 in parts else {}
    return lambda: theirs.step(*inputs, **targets)


class Raw(NamedTuple):
    """How the bare loop sends and receives: (channel, tensor) -> something with `wait`."""

    send: Callable[[Channel, torch.Tensor], Any]
    recv: Callable[[Channel, torch.Tensor], Any]


def over_gloo() -> Raw:
    """Returns isend and irecv on the job's own group, one tag for each kind of channel."""
    return Raw(
        lambda channel, tensor: dist.isend(tensor, channel.target, tag=int(channel.kind)),
        lambda channel, tensor: dist.irecv(tensor, channel.source, tag=int(channel.kind)),
    )


def over_shared_memory(program: Program) -> Raw:
    """Returns the raw calls of the rings."""
    transport = DistributedTransport()
    transport.open(program.channels)
    return Raw(transport.send, transport.recv)


def by_hand(job: Job, *, shared_memory: bool) -> Step:
    """Returns one step of the bare loop on this job's ranks."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    raw = over_shared_memory(ps.lower(placed(job, rank, num_ranks)[0])) if shared_memory else over_gloo()
    return bare_loop(job, raw, rank=rank, num_ranks=num_ranks)


def bare_loop(job: Job, raw: Raw, *, rank: int, num_ranks: int) -> Step:
    """Returns one step of the bare loop of one rank."""
    schedule, parts = placed(job, rank, num_ranks)
    xs, ys = job.inputs.chunk(job.num_microbatches), job.targets.chunk(job.num_microbatches)
    bare = _Bare(_instructions(ps.lower(schedule), rank, xs[0]), parts, schedule.num_stages - 1, raw)
    return lambda: bare.step(xs, ys)


Instruction = tuple[str, Any, Any, Any, Any]
"""(what, op or channel, key of what is taken or of the buffer, key of what is given, whether it stays on this rank)."""


def _instructions(program: Program, rank: int, like: torch.Tensor) -> list[Instruction]:
    slots = receive_slots(program)
    buffers: dict[tuple[Channel, int], torch.Tensor] = {}
    found: list[Instruction] = []
    for position, entry in enumerate(program.ranks[rank]):
        if isinstance(entry, Transfer):
            if entry.kind in RECEIVES:
                slot = (entry.channel, slots[entry.channel].slot[position])
                found.append(
                    ("recv", entry.channel, carried(entry), buffers.setdefault(slot, torch.empty_like(like)), 0)
                )
            elif entry.kind in SENDS:
                found.append(("send", entry.channel, carried(entry), None, None))
        elif entry.kind == OpKind.F or entry.kind in BACKWARD:
            step, kind = (1, ValueKind.OUTPUT) if entry.kind == OpKind.F else (-1, ValueKind.INPUT_GRAD)
            taken = Value(kind, entry.stage - step, *entry[2:])
            given = Value(kind, *entry[1:])
            found.append(("F" if step == 1 else "B", entry, taken, given, None))
    return found


class _Bare:
    def __init__(self, instructions: list[Instruction], parts: dict[int, nn.Module], last: int, raw: Raw) -> None:
        self.instructions, self.parts, self.last, self.raw = instructions, parts, last, raw

    def step(self, xs: Sequence[torch.Tensor], ys: Sequence[torch.Tensor]) -> None:
        parts, last, (send, recv) = self.parts, self.last, self.raw
        values: dict[Value, torch.Tensor] = {}
        posted: dict[Value, tuple[Any, torch.Tensor]] = {}
        kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        sends = []

        def take(value: Value) -> torch.Tensor:
            if value in values:
                return values.pop(value)
            pending, buffer = posted.pop(value)
            pending.wait()
            return buffer

        for what, op, first, second, _ in self.instructions:
            if what == "recv":
                posted[first] = (recv(op, second), second)
            elif what == "send":
                value = values.pop(first)
                sends.append((send(op, value), value))
            elif what == "F":
                stage, microbatch = op.stage, op.microbatch
                x = take(first).detach().requires_grad_() if stage else xs[microbatch]
                y = parts[stage](x)
                if stage == last:
                    y = loss_fn(y, ys[microbatch]) / len(xs)
                else:
                    values[second] = y.detach()
                kept[(stage, microbatch)] = (x, y)
            else:
                x, y = kept.pop((op.stage, op.microbatch))
                y.backward(take(first) if op.stage < last else None)
                if op.stage:
                    values[second] = x.grad
        for pending, _ in sends:
            pending.wait()


def ops_of(program: Program, rank: int) -> int:
    """Returns the ops of compute in a rank's program."""
    return sum(isinstance(entry, Op) for entry in program.ranks[rank])
