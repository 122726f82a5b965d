"""What a search is about: stages on ranks, their costs as arrays, and the memory of each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import ScheduleError, UserError
from penstock.ir.ops import OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.simulator.orders import Floats, Ints, delays, op_seconds

Objective = Literal["makespan", "span"]
"""The flush makespan, from 0 to the last end; or the longest span of a rank, from its first start to its last end."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One placement with its costs. Arrays go by stage, or by letter `4 · stage + kind`.

    Attributes:
        placement: stage -> rank.
        num_microbatches: m.
        costs: as given.
        cluster: as given.
        objective: what is minimised.
        limit: per rank the most that F and I may keep.
        activation: what F keeps.
        deferred: what I keeps for W.
        seconds: of each letter, on the device of its rank.
        down: delay of the stage's output to the next stage.
        up: delay of the stage's gradient to the stage before.
        splits: whether backwards are searched for as I and W; else as B.
    """

    placement: Placement
    num_microbatches: int
    costs: StageCosts
    cluster: Cluster
    objective: Objective
    limit: Floats
    activation: Floats
    deferred: Floats
    seconds: Floats
    down: Floats
    up: Floats
    splits: bool

    @property
    def num_ranks(self) -> int:
        """Number of ranks, p."""
        return self.placement.num_ranks

    @property
    def num_stages(self) -> int:
        """Number of stages, s."""
        return self.placement.num_stages

    @cached_property
    def rank_of(self) -> Ints:
        """The rank of each stage."""
        return np.array(self.placement.table[0], np.int64)

    @cached_property
    def held(self) -> Ints:
        """The stages of each rank, one row each, filled up with -1."""
        stages = [self.placement.stages_of(rank) for rank in range(self.num_ranks)]
        held = np.full((self.num_ranks, max(map(len, stages))), -1, np.int64)
        for rank, row in enumerate(stages):
            held[rank, : len(row)] = row
        return held

    @cached_property
    def lengths(self) -> Ints:
        """How many ops each rank has, where no B takes the place of I and W."""
        counts: Ints = (self.held >= 0).sum(axis=1) * (3 if self.splits else 2) * self.num_microbatches
        return counts

    @property
    def queues(self) -> bool:
        """Whether a message may have to wait for the one before it, so that it takes longer than its delay."""
        slow = any(link.bytes_per_second != float("inf") for _, link in self.cluster.levels)
        return not self.cluster.overlap or (slow and any(self.costs.per_stage("boundary_bytes", self.num_stages)))

    @property
    def backward_kind(self) -> OpKind:
        """The kind of the ops that go back through the stages."""
        return OpKind.I if self.splits else OpKind.B

    @cached_property
    def reserve(self) -> Floats:
        """What must stay free on a rank behind an F, so that the rank's later stages can still go ahead.

        No order that keeps it ever blocks. Suppose that all ranks stand still with every I and W done that could be. Of
        the F that wait for memory take the one of the highest stage, j. Its rank holds activations of lower stages
        only: a microbatch beyond j would wait at a higher stage, or have a backward that could run. The last F of these
        was admitted with room for all later stages of the rank, j among them, and nothing has been taken since.
        """
        later = np.zeros(self.num_stages)
        growth = np.maximum(self.deferred - self.activation, 0) * self.splits
        for rank in range(self.num_ranks):
            stages = list(self.placement.stages_of(rank))
            for stage in stages:
                later[stage] = growth[stages].max() + sum(self.activation[other] for other in stages if other > stage)
        return later

    @cached_property
    def least(self) -> Floats:
        """Per rank the least limit under which a microbatch gets through."""
        reserve, needs = self.reserve, np.zeros(self.num_ranks)
        for stage, rank in enumerate(self.placement.table[0]):
            needs[rank] = max(needs[rank], self.activation[stage] + reserve[stage])
        return needs

    def peaks(self, schedule: Schedule) -> Floats:
        """Returns the most that F and I keep on each rank under `schedule`."""
        change = {
            OpKind.F: self.activation,
            OpKind.B: -self.activation,
            OpKind.I: self.deferred - self.activation,
            OpKind.W: -self.deferred,
        }
        peaks = np.zeros(self.num_ranks)
        for rank, ops in enumerate(schedule.ranks):
            steps = [change[op.kind][op.stage] for op in ops if op.kind in change]
            peaks[rank] = max(np.cumsum(steps).max(initial=0.0), 0.0)
        return peaks

    def fits(self, schedule: Schedule) -> bool:
        """Whether no rank holds more than its limit under `schedule`; sums of floats may be off in the last digits."""
        return bool((self.peaks(schedule) <= self.limit * (1 + 1e-9)).all())


def problem_of(
    placement: Placement,
    num_microbatches: int,
    *,
    costs: StageCosts,
    cluster: Cluster,
    memory_limit: PerStage | None,
    objective: Objective,
) -> Problem:
    """Returns the problem of finding an order for these stages.

    Raises:
        UserError: costs or a cluster of another size, a placement with replicas, costs that know no backward, or a
            memory limit under which no microbatch gets through.
    """
    if placement.num_replicas > 1:
        raise ScheduleError(
            f"the placement has {placement.num_replicas} replicas; the search knows pipelines of one direction, e.g. "
            "Placement.v_shaped(4)"
        )
    if len(cluster.devices) != placement.num_ranks:
        raise UserError(
            f"the cluster has {len(cluster.devices)} devices for {placement.num_ranks} ranks; give one a rank"
        )
    of_kind = costs.seconds(placement.num_stages)
    splits = any((*of_kind[OpKind.I], *of_kind[OpKind.W])) or not any(of_kind[OpKind.B])
    activation = np.array(costs.per_stage("activation_bytes", placement.num_stages), float)
    deferred = np.array(costs.per_stage("deferred_bytes", placement.num_stages), float)
    if not (activation.any() or deferred.any()):
        activation, deferred = np.ones(placement.num_stages), np.ones(placement.num_stages)
    down, up = delays(costs, cluster, placement)
    problem = Problem(
        placement,
        num_microbatches,
        costs,
        cluster,
        objective,
        _limits(memory_limit, activation, placement),
        activation,
        deferred if splits else np.zeros_like(deferred),
        op_seconds(costs, cluster, placement),
        down,
        up,
        splits,
    )
    _check_limits(problem)
    return problem


def _limits(memory_limit: PerStage | None, activation: Floats, placement: Placement) -> Floats:
    """Returns the limit of each rank; by default what 1F1B keeps on rank 0: p microbatches of the rank's share."""
    num_ranks = placement.num_ranks
    if memory_limit is None:
        shares = [sum(activation[stage] for stage in placement.stages_of(rank)) for rank in range(num_ranks)]
        return np.array([num_ranks * share for share in shares], float)
    limits = tuple(memory_limit) if isinstance(memory_limit, Sequence) else (memory_limit,) * num_ranks
    if len(limits) != num_ranks:
        raise ScheduleError(f"memory_limit has {len(limits)} values for {num_ranks} ranks; give one number a rank")
    for limit in limits:
        number: object = limit  # whatever the caller gave
        if isinstance(number, bool) or not isinstance(number, int | float) or not number >= 0:
            raise ScheduleError(f"memory_limit={limit!r} is no amount of memory; use e.g. {num_ranks}")
    return np.array(limits, float)


def _check_limits(problem: Problem) -> None:
    for rank, (limit, least) in enumerate(zip(problem.limit, problem.least, strict=True)):
        if limit < least:
            raise ScheduleError(
                f"memory_limit={limit:g} on rank {rank}, where one microbatch takes {least:g} on its way through; use "
                f"{least:g} or more, e.g. {problem.num_ranks * least:g}"
            )
