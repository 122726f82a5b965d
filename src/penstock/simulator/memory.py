"""Bytes held over time: parameters, activations, and what I keeps for W."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.costs import StageCosts
from penstock.ir.ops import OpKind
from penstock.ir.schedule import Schedule, WeightRule
from penstock.timeline import Span

Curve = tuple[tuple[float, float], ...]


def memory_curves(
    schedule: Schedule, costs: StageCosts, spans: Sequence[Sequence[Span]]
) -> tuple[Curve, ...]:
    """Returns per rank `(seconds, bytes)` steps; empty where the costs know no bytes.

    F adds the stage's activation bytes when it starts; B frees them when it ends; I frees them but for what W
    needs, which W frees.
    """
    num_stages = schedule.num_stages
    parameters = costs.per_stage("parameter_bytes", num_stages)
    kept = costs.per_stage("activation_bytes", num_stages)
    deferred = costs.per_stage("deferred_bytes", num_stages)
    if not any((*parameters, *kept, *deferred)):
        return ()
    if schedule.weight_rule is WeightRule.FROZEN:
        kept = (0,) * num_stages
    curves = []
    for rank, row in enumerate(spans):
        placement = schedule.placement
        held = sum(
            parameters[stage]
            for replica in range(placement.num_replicas)
            for stage in placement.stages_of(rank, replica)
        )
        curve: list[tuple[float, float]] = [(0, held)]
        for span in row:
            at, change = _change(span, kept, deferred)
            if change:
                held += change
                curve.append((at, held))
        curves.append(tuple(curve))
    return tuple(curves)


def _change(span: Span, kept: Sequence[float], deferred: Sequence[float]) -> tuple[float, float]:
    stage = span.op.stage
    changes = {
        OpKind.F: (span.start, kept[stage]),
        OpKind.B: (span.end, -kept[stage]),
        OpKind.I: (span.end, deferred[stage] - kept[stage]),
        OpKind.W: (span.end, -deferred[stage]),
    }
    return changes.get(span.op.kind, (span.start, 0))
