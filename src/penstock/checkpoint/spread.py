"""Tensors that are spread over processes beside a pipeline: DTensors, of tensor parallelism or of sharding.

    pipeline 0   rank 0   rank 1     the first part of each spread tensor
                   |        |        over these groups it is made whole, for pipeline 0 to save
    pipeline 1   rank 0   rank 1     the second part

A checkpoint holds tensors whole, so that any other number of pipelines, or one without, takes its parts of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.errors import CheckpointError
from penstock.runtime import Pipeline
from penstock.runtime.asynchronous.optimizer_state import stepped_stages_of
from penstock.runtime.shared_weights.replicas import Replicas
from penstock.runtime.spread import is_spread
from penstock.runtime.transport.protocol import Exchange


@dataclass(frozen=True)
class Spread:
    """Pipelines side by side over which the tensors of one model are spread.

    Attributes:
        index: of this pipeline among them.
        count: how many they are.
        leader: the rank of each that speaks with the others.
        group: this rank's counterparts in all pipelines, None where it has no spread tensor.
    """

    index: int
    count: int
    leader: int
    group: Replicas | None

    def exchange(self, pipe: Pipeline, within: Exchange) -> Exchange:
        """Returns an all-gather over all pipelines, pipeline by pipeline, made of the one within each."""

        def gather(payload: bytes) -> list[bytes]:
            own = msgspec.msgpack.encode(within(payload))
            rows = b""
            if pipe.rank == self.leader and self.group is not None:
                rows = msgspec.msgpack.encode(self.group.gather_bytes(own))
            told = msgspec.msgpack.decode(pipe.exchange(rows)[self.leader], type=list[bytes])
            return [part for row in told for part in msgspec.msgpack.decode(row, type=list[bytes])]

        return gather


def spread_of(pipe: Pipeline) -> Spread | None:
    """Returns the pipelines over which this one's tensors are spread; None where none is. Every rank calls it.

    Raises:
        CheckpointError: tensors are spread in a way that cannot be saved; the same message on every rank.
    """
    group, problem = None, ""
    try:
        group = _group_of(pipe)
    except CheckpointError as error:
        problem = f"rank {pipe.rank}: {error}"
    place = [group.index, group.size] if group is not None else None
    rows = [json.loads(reply) for reply in pipe.exchange(json.dumps([problem, place]).encode())]
    found = next((row[0] for row in rows if row[0]), "")
    if found:
        raise CheckpointError(found)
    places = {rank: row[1] for rank, row in enumerate(rows) if row[1] is not None}
    if not places:
        return None
    leader = min(places)
    other = next((rank for rank, each in places.items() if each != places[leader]), None)
    if other is not None:
        raise CheckpointError(
            f"rank {leader} is number {places[leader][0]} of the {places[leader][1]} processes that its tensors are "
            f"spread over, and rank {other} number {places[other][0]} of {places[other][1]}; spread the tensors of all "
            'stages over the same axis of one mesh, e.g. mesh["tp"]'
        )
    return Spread(places[leader][0], places[leader][1], leader, group)


def _group_of(pipe: Pipeline) -> Replicas | None:
    meshes: dict[tuple[int, ...], Any] = {}
    for name, value in pipe.state_dict().items():
        if not is_spread(value):
            continue
        mesh = value.device_mesh
        if mesh.ndim != 1:
            raise CheckpointError(
                f'"{name}" is a DTensor over {mesh.ndim} axes {mesh.mesh_dim_names or ""}; a checkpoint takes tensors '
                'that are spread over one axis, e.g. mesh["tp"]'
            )
        meshes.setdefault(tuple(mesh.mesh.flatten().tolist()), mesh)
        if len(meshes) > 1:
            first, second = meshes
            raise CheckpointError(
                f'"{name}" is spread over the processes {[*second]}, and tensors before it over {[*first]}; a '
                "checkpoint takes tensors that are spread over one axis"
            )
    if not meshes:
        return None
    if stepped_stages_of(pipe):
        raise CheckpointError(
            f"{pipe.schedule.name} steps inside the schedule, and its weights are DTensors; a checkpoint takes spread "
            "tensors under schedules that leave the step to the loop, e.g. one_f_one_b"
        )
    (mesh,) = meshes.values()
    return Replicas(mesh.get_group())
