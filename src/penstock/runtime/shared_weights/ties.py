"""Parameters that several stages share, such as an embedding that is also the head.

Every rank that uses a tied parameter holds it once, whatever stages and directions it runs. All start from the first
holder's numbers. A step's gradient is summed here and nowhere else, when the program has ended: over the ranks of the
pipeline in the order of the holders, then over data-parallel replicas. Equal optimizers keep the copies equal.

    stage 0 ─┬─ parameter of rank 0 ──┐                  A stage's own sum (`REDUCE_GRAD`) leaves it out: of two stages
    stage 3 ─┘                        ├─ sum ─> .grad    of one rank it would be added twice, the first time before the
    stage 0' ── parameter of rank 3 ──┘                  other stage has given its part.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn

from penstock.errors import ModelError
from penstock.ir.ops import Channel, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS
from penstock.models import Stage
from penstock.models.cut import Tie
from penstock.runtime.shared_weights.replicas import Replicas
from penstock.runtime.transport.protocol import Transport


def check_ties(ties: Sequence[Tie], schedule: Schedule) -> None:
    """Refuses ties where every stage is stepped by itself: its copies would get a part of their gradient each.

    Raises:
        ModelError: a parameter on several stages of a schedule that steps inside.
    """
    if ties and schedule.weight_rule not in SYNCHRONOUS:
        names = " and ".join(f"{name} on stage {stage}" for stage, name in ties[0].holders)
        raise ModelError(
            f"{names} are one tied parameter, and {schedule.name} steps each stage by itself, at times of its own; use "
            "a schedule with a flush, e.g. one_f_one_b, or put these layers on one stage with partition="
        )


def tie_channels(ties: Sequence[Tie], placement: Placement) -> list[Channel]:
    """Returns the channels between ranks that hold a tied parameter together."""
    groups = [_ranks(tie, placement) for tie in ties]
    return sorted(
        {Channel(a, b, OpKind.REDUCE_GRAD) for ranks in groups for a in ranks for b in ranks if a != b},
    )


class _Held(NamedTuple):
    """A tied parameter of this rank, and all ranks of the pipeline that have it."""

    ranks: list[int]
    parameter: nn.Parameter


class Ties:
    """This rank's part in tied parameters.

    Args:
        ties: those of the whole model.
        stages: this rank's stages; where they do not share their modules, they get one parameter in common here.
        transport: channels of `tie_channels` are open.
        placement: stage -> rank.
        replicas: data-parallel replicas of this rank.
    """

    def __init__(
        self,
        ties: Sequence[Tie],
        stages: dict[int, Stage],
        *,
        transport: Transport,
        placement: Placement,
        replicas: Replicas | None = None,
    ) -> None:
        self._transport, self._replicas = transport, replicas
        self._me = transport.rank
        self._held: list[_Held] = []
        self._earlier: list[torch.Tensor | None] = []
        for tie in ties:
            ranks = _ranks(tie, placement)
            if self._me in ranks and (len(ranks) > 1 or replicas is not None):
                places = [(stages[stage], name) for stage, name in tie.holders if stage in stages]
                self._held.append(_Held(ranks, _own_parameter(places, copied=self._me != ranks[0])))
        self._share_weights()

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def parameters(self) -> frozenset[nn.Parameter]:
        """The parameters of this rank whose gradients are summed here."""
        return frozenset(held.parameter for held in self._held)

    def begin(self) -> None:
        """Starts a training step: puts the gradients that are there away."""
        self._earlier = [parameter.grad for _, parameter in self._held]
        for _, parameter in self._held:
            parameter.grad = None

    def finish(self) -> None:
        """Puts the sum of all holders' gradients in place of this rank's, and adds those of earlier steps."""
        for (ranks, parameter), earlier in zip(self._held, self._earlier, strict=True):
            if not parameter.requires_grad:
                parameter.grad = earlier
                continue
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            parameter.grad = total = self._sum(ranks, mine)
            if self._replicas is not None:
                self._replicas.sum_grads([parameter])
            parameter.grad = total if earlier is None else earlier.add_(total)
        self._earlier = []

    def abandon(self) -> None:
        """Puts the gradients of earlier steps back, after a step that did not finish."""
        for (_, parameter), earlier in zip(self._held, self._earlier, strict=False):
            parameter.grad = earlier
        self._earlier = []

    def _sum(self, ranks: Sequence[int], mine: torch.Tensor) -> torch.Tensor:
        """Returns the sum of every holder's tensor in the order of `ranks`, of the same bits on all of them."""
        if len(ranks) == 1:
            return mine
        parts = self._exchanged(ranks, mine)
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total += part
        return total

    def _exchanged(self, ranks: Sequence[int], mine: torch.Tensor) -> list[torch.Tensor]:
        """Returns every holder's tensor in the order of `ranks`."""
        others = [rank for rank in ranks if rank != self._me]
        sent = [self._transport.send(Channel(self._me, rank, OpKind.REDUCE_GRAD), mine) for rank in others]
        rows = {rank: torch.empty_like(mine) for rank in others}
        arriving = [
            self._transport.recv(Channel(rank, self._me, OpKind.REDUCE_GRAD), row) for rank, row in rows.items()
        ]
        for pending in (*arriving, *sent):
            pending.wait()
        return [mine if rank == self._me else rows[rank] for rank in ranks]

    def _share_weights(self) -> None:
        for ranks, parameter in self._held:
            value = parameter.detach().contiguous()
            if self._me == ranks[0]:
                for pending in [
                    self._transport.send(Channel(self._me, r, OpKind.REDUCE_GRAD), value) for r in ranks[1:]
                ]:
                    pending.wait()
            else:
                row = torch.empty_like(value)
                self._transport.recv(Channel(ranks[0], self._me, OpKind.REDUCE_GRAD), row).wait()
                parameter.detach().copy_(row)


def _ranks(tie: Tie, placement: Placement) -> list[int]:
    """Returns the ranks that run one of the tie's stages in some direction, the first owner of the first at first."""
    return list(dict.fromkeys(rank for stage, _ in tie.holders for rank in placement.owners(stage)))


def _own_parameter(places: Sequence[tuple[nn.Module, str]], *, copied: bool) -> nn.Parameter:
    """Returns this rank's one parameter for all of its `places` (stage, name), where it is put.

    Args:
        places: a tie's stages on this rank; stages of several directions may be copies of the user's modules.
        copied: another rank keeps the user's parameter.
    """
    module, name = places[0]
    parameter = module.get_parameter(name)
    if copied:
        given, parameter = parameter, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        parameter.grad = None if given.grad is None else given.grad.clone()
    for module, name in places:
        if module.get_parameter(name) is not parameter:
            _replace(module, name, parameter)
    return parameter


def _replace(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Puts `parameter` under `name`; the modules on the way are copied, for the user's own stay tied."""
    first, *path = name.split(".")
    if path:
        root._modules[first] = _with(root._modules[first], path, parameter)
    else:
        root._parameters[first] = parameter


def _with(module: nn.Module | None, path: Sequence[str], parameter: nn.Parameter) -> nn.Module:
    """Returns a copy of a module that has `parameter` at `path`, and everything else in common with it."""
    if module is None:
        raise ModelError(f"no module for {'.'.join(path)}")
    first, *rest = path
    inner = _with(module._modules[first], rest, parameter) if rest else parameter
    context = vars(module).get("dynamo_ctx")
    if context is not None:  # of torch.compile: what it runs is bound to the module in it, so it is made anew
        return type(module)(inner, context)
    twin = copy.copy(module)
    bound = vars(module).get("forward")
    if isinstance(bound, MethodType) and bound.__self__ is module:
        twin.__dict__["forward"] = MethodType(bound.__func__, twin)
    twin._modules, twin._parameters = dict(module._modules), dict(module._parameters)
    table: dict[str, Any] = twin._modules if rest else twin._parameters
    table[first] = inner
    return twin
