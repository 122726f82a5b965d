"""What zb_v_greedy's search is about: costs by stage, limits by rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import ScheduleError
from penstock.ir.ops import OpKind
from penstock.ir.placement import Placement
from penstock.schedules.measured import limits_by_rank, split_seconds, transfer_seconds
from penstock.schedules.zb_v import zb_v


class Terms(NamedTuple):
    """Rank i holds stage i, its first, and 2p-1-i, its second; every tuple but `limit` holds one number a stage.

    Attributes:
        num_ranks: p.
        num_microbatches: m.
        seconds: of F, I and W.
        transfer: seconds of a boundary between the stage and the next, 0 at the turn of the V.
        activation: what F keeps.
        deferred: what I keeps for W.
        limit: the most each rank may hold.
        room: how many microbatches of a stage fit on every rank beside what `zb_v` holds.
    """

    num_ranks: int
    num_microbatches: int
    seconds: dict[OpKind, tuple[float, ...]]
    transfer: tuple[float, ...]
    activation: tuple[float, ...]
    deferred: tuple[float, ...]
    limit: tuple[float, ...] = ()
    room: int = 0

    def stages(self, rank: int) -> tuple[int, int]:
        """Returns the first and the second stage of `rank`."""
        return rank, 2 * self.num_ranks - 1 - rank

    def rank_of(self, stage: int) -> int:
        """Returns the rank that holds `stage`."""
        return min(self.stages(stage))

    def held(self, rank: int, live: Sequence[int], waiting: Sequence[int]) -> float:
        """Returns what `rank` holds with so many microbatches of its two stages before I, and between I and W."""
        first, second = self.stages(rank)
        activations = live[0] * self.activation[first] + live[1] * self.activation[second]
        return activations + waiting[0] * self.deferred[first] + waiting[1] * self.deferred[second]

    def most(self, rank: int) -> tuple[float, float]:
        """Returns the most that a microbatch takes of each of the rank's stages, from its F to its W."""
        first, second = (max(self.activation[stage], self.deferred[stage]) for stage in self.stages(rank))
        return first, second


def terms_of(
    num_ranks: int, num_microbatches: int, *, costs: StageCosts, cluster: Cluster, memory_limit: PerStage | None
) -> Terms:
    """Returns the terms of `zb_v_greedy` with these arguments.

    Raises:
        ScheduleError: a cluster of another size, costs without I and W, or a memory limit below what zb_v holds.
        UserError: costs for another number of stages.
    """
    activation = costs.per_stage("activation_bytes", 2 * num_ranks)
    deferred = costs.per_stage("deferred_bytes", 2 * num_ranks)
    if not any((*activation, *deferred)):
        activation = deferred = (1,) * (2 * num_ranks)
    ranks = Placement.v_shaped(num_ranks).table[0]
    seconds = split_seconds("zb_v_greedy", costs, cluster, ranks=ranks)
    transfer = transfer_seconds(costs, cluster, ranks=ranks)
    terms = Terms(num_ranks, num_microbatches, seconds, transfer, activation, deferred)
    limit = _limit(memory_limit, terms)
    return terms._replace(limit=limit, room=_room(limit, terms))


def _limit(memory_limit: PerStage | None, terms: Terms) -> tuple[float, ...]:
    """Returns the limit of each rank: the one given, or p·M where zb_v needs no more."""
    needs = _needs(terms, terms.num_microbatches)
    if memory_limit is None:
        return tuple(max(need, terms.num_ranks * sum(terms.most(rank))) for rank, need in enumerate(needs))
    limits = limits_by_rank("zb_v_greedy", memory_limit, terms.num_ranks, example=max(needs))
    for rank, (limit, need) in enumerate(zip(limits, needs, strict=True)):
        if not limit >= need:
            raise ScheduleError(
                f"zb_v_greedy: memory_limit={limit} on rank {rank}, which holds up to {need} in this order; use "
                f"{max(needs)} or more, or v_half or v_min, which hold less"
            )
    return limits


def _needs(terms: Terms, num_microbatches: int) -> list[float]:
    """Returns the most that each rank holds in the order of zb_v, when each W follows its I."""
    order = zb_v(terms.num_ranks, min(num_microbatches, 2 * terms.num_ranks))
    needs: list[float] = [0] * terms.num_ranks
    live = [0] * order.num_stages
    for rank, _, op in order.ops():
        live[op.stage] += {OpKind.F: 1, OpKind.I: -1}.get(op.kind, 0)
        stages = terms.stages(rank)
        waiting = [int(op.kind == OpKind.I and op.stage == stage) for stage in stages]
        needs[rank] = max(needs[rank], terms.held(rank, [live[stage] for stage in stages], waiting))
    return needs


def _room(limit: Sequence[float], terms: Terms) -> int:
    """Returns how many more microbatches of a stage fit on every rank beside the need of a full pipeline."""
    room = terms.num_microbatches
    for rank, need in enumerate(_needs(terms, 2 * terms.num_ranks)):
        most = max(terms.most(rank))
        if most:
            room = min(room, max(int((limit[rank] - need) // most), 0))
    return room
