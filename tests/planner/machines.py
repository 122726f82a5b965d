"""Fleets and models that the planner's tests share."""

from __future__ import annotations

from penstock.cluster import Link
from penstock.planner import DeviceKind, Fleet, Hosts, Limits, Network, StateBytes, describe
from penstock.planner.candidates import Candidate
from penstock.planner.costing import Costing
from penstock.planner.layout import Degrees
from penstock.planner.work import described_work

SMALL = {"model_type": "gpt2", "n_layer": 6, "n_embd": 256, "n_head": 4, "vocab_size": 1024}
GPU = DeviceKind("gpu", memory_bytes=1e9, flops_per_second=1e12, efficiency=0.8, memory_bytes_per_second=1e11)
INSIDE, OUTSIDE = Link(1e-6, 1e10), Link(1e-5, 1e9)


def fleet(hosts: int = 2, devices: int = 4, **changes: float) -> Fleet:
    """Returns equal hosts of a small device, with `changes` to it."""
    kind = DeviceKind(**{**vars(GPU), **changes})  # type: ignore[arg-type]
    return Fleet((kind,), (Hosts("gpu", devices, hosts, INSIDE),), (Network(OUTSIDE),) if hosts > 1 else ())


def costing(machines: Fleet, *, batch: int = 16, sequence: int = 128, config: dict[str, object] = SMALL) -> Costing:
    return Costing(described_work(describe(config), sequence, StateBytes()), machines, batch)


def candidate(  # noqa: PLR0913  # one argument a dimension
    schedule: str,
    *,
    data: int = 1,
    tensor: int = 1,
    pipeline: int = 2,
    chunks: int = 1,
    size: int = 1,
    batch: int = 16,
    sharding: int = 0,
) -> Candidate:
    return Candidate(Degrees(data, tensor, pipeline), schedule, chunks, size, batch // (data * size), sharding)


__all__ = ["GPU", "INSIDE", "OUTSIDE", "SMALL", "Limits", "candidate", "costing", "fleet"]
