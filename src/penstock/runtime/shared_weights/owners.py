"""Stages that several ranks of one pipeline hold: the same weights at the start, the same sum of gradients after.

Two owners of two stages may complete their gradients in different orders:

    rank 0: … B(stage 0) REDUCE_GRAD0 … B(stage 3) REDUCE_GRAD3      1  sends what it has, posts a receive
    rank 3: … B(stage 3) REDUCE_GRAD3 … B(stage 0) REDUCE_GRAD0      2  waits, when the program has ended or at an S

So nothing waits at 1. A channel is first in, first out, and both ends know both programs: receives are posted in the
order in which the other end sends. At 2 every owner adds up the same numbers in the same order, that of the owners in
the placement, so that all copies hold the same bits.
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, permutations

import torch
from torch import nn

from penstock.ir.ops import Channel, OpKind
from penstock.ir.placement import Placement
from penstock.ir.program import Program
from penstock.ir.steps import SYNCHRONOUS
from penstock.models import Stage
from penstock.runtime.transport.protocol import Pending, Transport

Flat = list[torch.Tensor]
"""Gradients of a stage as one row of numbers for each of their types."""


def owner_channels(placement: Placement) -> list[Channel]:
    """Returns the channels between ranks that hold a stage together."""
    pairs = {pair for stage in range(placement.num_stages) for pair in permutations(placement.owners(stage), 2)}
    return sorted(Channel(source, target, OpKind.REDUCE_GRAD) for source, target in pairs)


def reductions_of(program: Program, rank: int) -> dict[int, int]:
    """Returns position -> stage of the instructions of `rank` that reduce.

    Without an S a rank that stands for a stage in several rows has a REDUCE_GRAD for each row, and one gradient: the
    last of them reduces it.
    """
    found = [(at, entry.stage) for at, entry in enumerate(program.ranks[rank]) if entry.kind == OpKind.REDUCE_GRAD]
    if program.schedule.weight_rule in SYNCHRONOUS:
        last = {stage: at for at, stage in found}
        found = [(at, stage) for stage, at in last.items()]
    return dict(sorted(found))


def stages_to_copy(transport: Transport, placement: Placement, model: object) -> frozenset[int]:
    """Returns the stages for which this rank needs modules of its own. Every rank calls it.

    Threads of one process may be given the very same model; the first owner of a stage keeps the user's modules.
    """
    rows = transport.gather(torch.tensor([os.getpid(), id(model)])).tolist()
    me = transport.rank
    held = placement.held(me)
    before = {stage: owners[: owners.index(me)] for stage in held if (owners := placement.owners(stage))}
    return frozenset(stage for stage, earlier in before.items() if any(rows[other] == rows[me] for other in earlier))


def copy_of(stage: Stage) -> Stage:
    """Returns a copy of a stage: weights, and the gradients that are there already."""
    twin = copy.deepcopy(stage)
    for copied, parameter in zip(twin.parameters(), stage.parameters(), strict=True):
        copied.grad = None if parameter.grad is None else parameter.grad.clone()
    return twin


@dataclass
class _Peer:
    """What passes between this rank and one other: both directions in the order of the sender's program."""

    expected: deque[int]
    arriving: dict[int, deque[tuple[list[Pending], Flat]]] = field(default_factory=lambda: defaultdict(deque))
    leaving: deque[tuple[list[Pending], Flat]] = field(default_factory=deque)
    sent: int = 0
    received: int = 0
    posted: int = 0


class Owners:
    """This rank's part in the stages that it holds together with others.

    Args:
        program: its REDUCE_GRADs say who sends when.
        modules: this rank's stages, by number.
        transport: channels of `owner_channels` are open.
        apart: parameters that are summed elsewhere: those of several stages.
    """

    def __init__(
        self,
        program: Program,
        modules: Mapping[int, nn.Module],
        transport: Transport,
        *,
        apart: frozenset[nn.Parameter] = frozenset(),
    ) -> None:
        self._program, self._modules, self._transport = program, modules, transport
        self.apart = apart
        self._me = transport.rank
        placement = program.schedule.placement
        self.shared = {stage: placement.owners(stage) for stage in sorted(modules) if len(placement.owners(stage)) > 1}
        self._orders = {
            peer: [stage for stage in reductions_of(program, peer).values() if stage in self.shared]
            for peer in sorted(set(chain.from_iterable(self.shared.values())) - {self._me})
        }
        self._peers: dict[int, _Peer] = {}
        self._mine: dict[int, Flat] = {}
        self.begin()

    def share_weights(self) -> None:
        """Overwrites parameters and buffers of every copy by those of the stage's first owner. Every owner calls it."""
        waiting: list[tuple[Pending, torch.Tensor, torch.Tensor]] = []
        for stage, owners in self.shared.items():
            first = owners[0]
            for tensor in _weights(self._modules[stage]):
                if self._me == first:
                    row = tensor.contiguous()
                    waiting += [(self._send(other, row), row, row) for other in owners[1:]]
                else:
                    row = torch.empty_like(tensor, memory_format=torch.contiguous_format)
                    waiting.append((self._receive(first, row), row, tensor))
        for pending, row, tensor in waiting:
            pending.wait()
            if row is not tensor:
                tensor.copy_(row)

    def begin(self) -> None:
        """Starts a step, or forgets one that failed."""
        self._mine.clear()
        self._peers = {peer: _Peer(deque(order)) for peer, order in self._orders.items()}

    def post(self, stage: int) -> None:
        """Sends this rank's gradients of `stage` to its other owners; waits for nothing."""
        mine = self._mine[stage] = _flat(self.trained(stage))
        for peer in self._others(stage):
            lane = self._peers[peer]
            lane.leaving.append(([self._send(peer, row) for row in mine], mine))
            lane.sent += 1
            if lane.posted < lane.sent:
                self._expect(peer)

    def complete(self, stage: int) -> None:
        """Waits for the other owners' gradients of `stage` and puts the sum in place of this rank's."""
        mine = self._mine.pop(stage)
        parts = [mine if owner == self._me else self._arrived(owner, stage) for owner in self.shared[stage]]
        _unflatten([_sum(rows) for rows in zip(*parts, strict=True)], self.trained(stage))

    def finish(self) -> None:
        """Waits until everything sent has left."""
        for lane in self._peers.values():
            while lane.leaving:
                _wait(lane.leaving.popleft()[0])

    def trained(self, stage: int) -> list[nn.Parameter]:
        """Returns the parameters of `stage` whose gradients its owners and replicas sum."""
        parameters = self._modules[stage].parameters()
        return [p for p in parameters if p.requires_grad and p.numel() and p not in self.apart]

    def _others(self, stage: int) -> list[int]:
        return [owner for owner in self.shared[stage] if owner != self._me]

    def _expect(self, peer: int) -> None:
        """Posts the receive of what `peer` sends next."""
        lane = self._peers[peer]
        stage = lane.expected.popleft()
        rows = _empty(self.trained(stage))
        lane.arriving[stage].append(([self._receive(peer, row) for row in rows], rows))
        lane.posted += 1

    def _arrived(self, peer: int, stage: int) -> Flat:
        lane = self._peers[peer]
        while not lane.arriving[stage]:
            self._expect(peer)
        pending, rows = lane.arriving[stage].popleft()
        _wait(pending)
        lane.received += 1
        # With its k-th message the peer has posted the receive of ours: that one has left, and its memory is free.
        while lane.leaving and lane.sent - len(lane.leaving) < lane.received:
            _wait(lane.leaving.popleft()[0])
        return rows

    def _send(self, peer: int, tensor: torch.Tensor) -> Pending:
        return self._transport.send(Channel(self._me, peer, OpKind.REDUCE_GRAD), tensor)

    def _receive(self, peer: int, tensor: torch.Tensor) -> Pending:
        return self._transport.recv(Channel(peer, self._me, OpKind.REDUCE_GRAD), tensor)


def _weights(module: nn.Module) -> Iterable[torch.Tensor]:
    tensors = (tensor.detach() for tensor in chain(module.parameters(), module.buffers()))
    return (tensor for tensor in tensors if tensor.numel())


def _by_dtype(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.dtype].append(parameter)
    return list(groups.values())


def _flat(parameters: Sequence[nn.Parameter]) -> Flat:
    """Returns a copy of all gradients; one that is not there counts as zeros."""
    return [
        torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).detach().reshape(-1) for p in group])
        for group in _by_dtype(parameters)
    ]


def _empty(parameters: Sequence[nn.Parameter]) -> Flat:
    return [group[0].detach().new_empty(sum(p.numel() for p in group)) for group in _by_dtype(parameters)]


def _unflatten(rows: Flat, parameters: Sequence[nn.Parameter]) -> None:
    for row, group in zip(rows, _by_dtype(parameters), strict=True):
        for piece, parameter in zip(row.split([p.numel() for p in group]), group, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(piece.view_as(parameter))


def _sum(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the sum from the first to the last; the rows may be under way still."""
    total = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    return total


def _wait(pending: Iterable[Pending]) -> None:
    for each in pending:
        each.wait()
