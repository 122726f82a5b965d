"""Parameters that stages of different ranks share, such as an embedding that is also the head.

Every rank that uses a tied parameter holds a copy. All start from the first holder's numbers, and after each step every
copy has the sum of all copies' gradients, added in the order of the holders: equal optimizers keep them equal.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from penstock.errors import ModelError
from penstock.ir.ops import Channel, OpKind
from penstock.ir.placement import Placement
from penstock.models.cut import Tie
from penstock.runtime.stage_work import StageWork
from penstock.runtime.transport import Transport


def check_ties(ties: Sequence[Tie], placement: Placement) -> None:
    """Refuses ties where stages have several owners: their gradients would meet twice.

    Raises:
        ModelError: a tie over stages of different ranks in a placement with several directions.
    """
    if placement.num_replicas > 1 and ties:
        names = " and ".join(f"{name} on stage {stage}" for stage, name in ties[0].holders)
        raise ModelError(
            f"{names} are one tied parameter, which a schedule with two pipeline directions does not support; use one "
            "with a single direction, e.g. one_f_one_b, or put both layers on one stage with partition="
        )


def tie_channels(ties: Sequence[Tie], placement: Placement) -> list[Channel]:
    """Returns the channels between ranks that hold a tied parameter together."""
    groups = [_ranks(tie, placement) for tie in ties]
    return sorted(
        {Channel(a, b, OpKind.REDUCE_GRAD) for ranks in groups for a in ranks for b in ranks if a != b},
    )


class Ties:
    """This rank's part in tied parameters.

    Args:
        ties: those of the whole model.
        stages: this rank's stages; later holders' stages get a parameter of their own here.
        transport: channels of `tie_channels` are open.
        placement: stage -> rank.
    """

    def __init__(
        self, ties: Sequence[Tie], stages: Mapping[int, StageWork], *, transport: Transport, placement: Placement
    ) -> None:
        self._transport = transport
        self._me = transport.rank
        self._held: list[tuple[list[int], nn.Parameter]] = []
        self._earlier: list[torch.Tensor | None] = []
        for tie in ties:
            ranks = _ranks(tie, placement)
            if len(ranks) < 2 or self._me not in ranks:
                continue
            own = [(stage, name) for stage, name in tie.holders if stage in stages]
            self._held.append(
                (
                    ranks,
                    _own_parameter([(stages[stage].module, name) for stage, name in own], copied=self._me != ranks[0]),
                )
            )
        self._share_weights()

    def __bool__(self) -> bool:
        return bool(self._held)

    def begin(self) -> None:
        """Starts a training step: puts the gradients that are there away."""
        self._earlier = [parameter.grad for _, parameter in self._held]
        for _, parameter in self._held:
            parameter.grad = None

    def finish(self) -> None:
        """Puts the sum of all holders' gradients in place of this rank's, and adds those of earlier steps."""
        for (ranks, parameter), earlier in zip(self._held, self._earlier, strict=True):
            if not parameter.requires_grad:
                continue
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            parts = self._exchanged(ranks, mine)
            total = parts[0] + parts[1]
            for part in parts[2:]:
                total += part
            parameter.grad = total if earlier is None else earlier.add_(total)
        self._earlier = []

    def abandon(self) -> None:
        """Puts the gradients of earlier steps back, after a step that did not finish."""
        for (_, parameter), earlier in zip(self._held, self._earlier, strict=False):
            parameter.grad = earlier
        self._earlier = []

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
    return list(dict.fromkeys(placement.rank_of(stage) for stage, _ in tie.holders))


def _own_parameter(places: Sequence[tuple[nn.Module, str]], *, copied: bool) -> nn.Parameter:
    """Returns this rank's copy of a tied parameter, put into each of its `places` (stage, name)."""
    module, name = places[0]
    parameter = module.get_parameter(name)
    if not copied:
        return parameter
    own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    for module, name in places:
        _replace(module, name, own)
    return own


def _replace(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Puts `parameter` under `name`; the modules on the way are copied, for the user's own stay tied."""
    *path, leaf = name.split(".")
    module = root
    for step in path:
        child = copy.copy(module._modules[step])
        if child is None:
            raise ModelError(f"no module {name}")
        child._modules, child._parameters = dict(child._modules), dict(child._parameters)
        module._modules[step] = child
        module = child
    module._parameters[leaf] = parameter
