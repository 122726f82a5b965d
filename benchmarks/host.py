"""Time on the host for each op, beside its compute and the transport's own calls.

python benchmarks/host.py [--steps 60]

One rank of two runs alone, in one process: once the ranks know their shapes, its transport takes every message and
brings every message at once, and says for the other what that one said last. So nothing waits, and
the CPU time of a step is compute and host. The bare loop of contenders.py runs the same instructions on the same
transport; the difference, by the ops of the rank's program (computing, sending and receiving alike) and by those that
compute, is what penstock adds. Smallest times of steps that take turns: what other programs take from the core only
adds to a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from contenders import Job, Raw, bare_loop, loss_fn, ops_of
from runtime import ALL, Scale
from torch import nn

import penstock as ps
from penstock.ir.ops import Channel
from penstock.schedules import named_schedule


class Done:
    """A message that has passed."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return


_DONE = Done()


class Alone:
    """A loopback transport until `alone` is set; then all messages pass at once, their contents aside."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.alone = False
        self._said = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send(self, channel: Channel, tensor: torch.Tensor) -> Any:
        return _DONE if self.alone else self._transport.send(channel, tensor)

    def recv(self, channel: Channel, tensor: torch.Tensor) -> Any:
        return _DONE if self.alone else self._transport.recv(channel, tensor)

    def gather(self, row: torch.Tensor) -> torch.Tensor:
        if not self.alone:
            self._said = self._transport.gather(row)
        elif row.dim() == 1 and len(row) > 1:
            self._said[:, 1] = row[1]  # all ranks count their calls alike
        return self._said

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        if not self.alone:
            self._transport.broadcast(tensor, source)


class Cost(NamedTuple):
    """What penstock adds, in microseconds by op and by op of compute; a step of both in milliseconds."""

    by_op: float
    by_compute: float
    step: float
    bare: float


def cost(schedule: str, rank: int, steps: int) -> Cost:
    """Returns what one rank's host spends on a step."""
    inputs = torch.randn(64, 64)
    sizes = named_schedule(schedule, num_ranks=2, num_microbatches=64)
    layers = [Scale() for _ in range(sizes.num_stages)]

    def run(transport: Any) -> Cost | None:
        way = Alone(transport)
        pipe = ps.Pipeline(nn.Sequential(*layers), loss_fn, transport=way, schedule=sizes)
        for _ in range(2):
            pipe.step(inputs, inputs)
        if transport.rank != rank:
            return None
        way.alone = True
        bare = bare_loop(Job(layers, inputs, inputs, schedule, 64), Raw(way.send, way.recv), rank=rank, num_ranks=2)
        seconds: Sequence[list[float]] = ([], [])
        for _ in range(steps):
            for row, step in zip(seconds, (lambda: pipe.step(inputs, inputs), bare), strict=True):
                begin = time.thread_time()
                step()
                row.append(time.thread_time() - begin)
        ours, floor = map(min, seconds)
        program, added = pipe.plan.proof.program, (ours - floor) * 1e6
        return Cost(added / len(program.ranks[rank]), added / ops_of(program, rank), ours * 1e3, floor * 1e3)

    return next(found for found in ps.run_ranks(run, 2) if found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for schedule in ALL:
        for rank in (0, 1):
            found = cost(schedule, rank, options.steps)
            print(
                f"{schedule:18} rank {rank}  {found.by_op:5.1f} us/op  {found.by_compute:5.1f} us/op of compute  "
                f"({found.step:.2f} ms a step, bare loop {found.bare:.2f} ms)",
                flush=True,
            )
