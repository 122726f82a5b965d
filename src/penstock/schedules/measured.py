"""What schedules that are found for measured costs share: seconds and transfers by stage, limits by rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Real

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import ScheduleError, check_type
from penstock.ir.ops import OpKind


def check_given(costs: StageCosts | None, cluster: Cluster | None) -> None:
    """Refuses costs and clusters that are neither.

    Raises:
        UserError: so they are.
    """
    check_type("costs", costs, StageCosts, type(None), example="e.g. penstock.StageCosts(forward=1, weight_grad=0.7)")
    check_type("cluster", cluster, Cluster, type(None), example="e.g. penstock.Cluster.uniform(4)")


def split_seconds(
    name: str, costs: StageCosts, cluster: Cluster, *, ranks: Sequence[int]
) -> dict[OpKind, tuple[float, ...]]:
    """Returns the seconds of F, I and W of each stage on its rank's device.

    Args:
        name: of the schedule, for messages.
        costs: of each stage.
        cluster: devices.
        ranks: the rank of each stage.

    Raises:
        ScheduleError: a cluster of another size, or costs without I and W.
    """
    num_ranks = 1 + max(ranks)
    if len(cluster.devices) != num_ranks:
        raise ScheduleError(
            f"{name}: the cluster has {len(cluster.devices)} devices for {num_ranks} ranks; give one a rank"
        )
    seconds = costs.seconds(len(ranks))
    if any(seconds[OpKind.B]) and not any((*seconds[OpKind.I], *seconds[OpKind.W])):
        raise ScheduleError(
            f"{name}: the costs know the full backward only; measure a schedule that splits it, e.g. zb_h1, "
            "or state input_grad and weight_grad"
        )
    speeds = [cluster.devices[rank].speed for rank in ranks]
    return {  # whole numbers stay whole
        kind: tuple(time if speed == 1 else time / speed for time, speed in zip(seconds[kind], speeds, strict=True))
        for kind in (OpKind.F, OpKind.I, OpKind.W)
    }


def transfer_seconds(costs: StageCosts, cluster: Cluster, *, ranks: Sequence[int]) -> tuple[float, ...]:
    """Returns the seconds of the boundary between each stage and the next, 0 within a rank."""
    sizes = costs.per_stage("boundary_bytes", len(ranks))
    times: list[float] = []
    for size, (source, target) in zip(sizes, pairwise(ranks), strict=False):
        link = cluster.link(source, target)
        times.append(0 if source == target else link.busy_seconds(size) + link.latency_seconds)
    return tuple(times)


def limits_by_rank(name: str, memory_limit: PerStage, num_ranks: int, *, example: float) -> tuple[float, ...]:
    """Returns `memory_limit` as one number a rank.

    Raises:
        ScheduleError: another number of them, or one that is no number; `example` is one that works.
    """
    listed = isinstance(memory_limit, Sequence) and not isinstance(memory_limit, str)
    limits = tuple(memory_limit) if listed else (memory_limit,) * num_ranks  # type: ignore[arg-type]
    if len(limits) != num_ranks:
        raise ScheduleError(
            f"{name}: memory_limit has {len(limits)} values for {num_ranks} ranks; give one number a rank"
        )
    for limit in limits:
        if isinstance(limit, bool) or not isinstance(limit, Real):
            raise ScheduleError(f"{name}: memory_limit={limit!r} is not a number; use e.g. {example}")
    return limits  # type: ignore[return-value]
