"""What each message, copy and gather takes on its link; the gathers of a rank have one of their own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.ir.columns import codes
from penstock.ir.dependencies import MESSAGE
from penstock.ir.ops import OpKind
from penstock.ir.program import Program
from penstock.simulator.work import Work


class Wires(NamedTuple):
    """Of each message and copy the number of its directed link, how long it keeps it, how much later it arrives."""

    wire: list[int]
    busy: list[float]
    latency: list[float]
    num_wires: int


def wires_of(program: Program, work: Work, costs: StageCosts, cluster: Cluster) -> Wires:
    """Returns for the messages and copies of `work` what they take."""
    num_stages = program.schedule.num_stages
    fields = ("boundary_bytes", "activation_bytes", "unshard")
    boundary, copied, gather = (costs.per_stage(field, num_stages) for field in fields)
    if not work.travels:
        return Wires([], [], [], 0)
    ends = np.array([channel[:2] for channel in work.channels])
    columns = program.columns
    kind, stage = columns.kind[work.travels], columns.stage[work.travels]
    pair = codes(*ends.T)
    _, first, same = np.unique(codes(pair, kind, stage), return_index=True, return_inverse=True)
    busy, latency = [], []
    for at in first.tolist():
        of_stage = int(stage[at])
        if kind[at] == OpKind.UNSHARD:
            busy.append(gather[of_stage])
            latency.append(0.0)
            continue
        link = cluster.link(*ends[at].tolist())
        maker = MESSAGE.get(kind[at])
        num_bytes = copied[of_stage] if maker is None else boundary[min(of_stage, of_stage + maker[1])]
        busy.append(link.busy_seconds(num_bytes))
        latency.append(link.latency_seconds)
    numbers = same.tolist()
    _, wire = np.unique(pair, return_inverse=True)
    return Wires(
        wire.tolist(),
        list(map(busy.__getitem__, numbers)),
        list(map(latency.__getitem__, numbers)),
        int(wire.max()) + 1,
    )
