"""How a pipeline starts: the way to its other ranks, and the facts that all of them must hold alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from penstock._version import __version__
from penstock.errors import HandshakeError, UserError, check_type
from penstock.models import CutModel
from penstock.runtime.plan import RunPlan
from penstock.runtime.shared_weights.replicas import Replicas
from penstock.runtime.transport.distributed import DistributedTransport
from penstock.runtime.transport.protocol import Transport


def check_given(functions: Mapping[str, object], *, seed: int | None, device: torch.device | str | None) -> None:
    """Refuses arguments of a Pipeline that nothing else looks at before they are used.

    Args:
        functions: name of an argument -> a function, or None.
        seed: as for Pipeline.
        device: likewise.

    Raises:
        UserError: no function, no whole number, or no device of this host.
    """
    for name, function in functions.items():
        if function is not None and not callable(function):
            example = "torch.nn.functional.cross_entropy" if name == "loss_fn" else "lambda targets: targets.numel()"
            raise UserError(f"{name}={function!r} is no function; give e.g. {example}")
    check_type("seed", seed, int, type(None), example="seed=0, or leave it out")
    try:
        kind = torch.device(device or "cpu").type
    except (RuntimeError, TypeError):
        raise UserError(f'device={device!r} is no device; use e.g. "cpu" or "cuda:0"') from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f'device="{device}" and this host has no CUDA device that torch can use; use device="cpu"')


def ranks_of(
    mesh: DeviceMesh | None, transport: Transport | None, timeout_seconds: float
) -> tuple[Transport, Replicas | None]:
    """Returns the way to the other ranks of this pipeline, and this rank's data-parallel replicas."""
    if not timeout_seconds > 0:
        raise HandshakeError(f"timeout_seconds={timeout_seconds}; use a number of seconds above 0, e.g. 300")
    if transport is not None:
        if not hasattr(transport, "rank"):
            raise HandshakeError(f"transport={transport!r}; give the one that penstock.run_ranks hands to each rank")
        if mesh is not None:
            raise HandshakeError("mesh and transport are both given; give one of them")
        return transport, None
    if mesh is None:
        return DistributedTransport(timeout_seconds=timeout_seconds), None
    names = mesh.mesh_dim_names or ()
    if "pp" not in names or set(names) - {"pp", "dp_replicate"}:
        raise HandshakeError(
            f'the mesh has axes {names}; name them "pp" and, for data-parallel replicas, "dp_replicate", e.g. '
            'init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "pp"))'
        )
    pipeline = DistributedTransport(mesh.get_group("pp"), timeout_seconds=timeout_seconds)
    if "dp_replicate" not in names:
        return pipeline, None
    replicas = Replicas(mesh.get_group("dp_replicate"), explain=pipeline.watch.diagnose_replica)
    pipeline.surround(replicas.gather_json(pipeline.name), index=replicas.index)
    return pipeline, replicas


def facts_of(layers: CutModel, plan: RunPlan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what all ranks must hold alike, the most telling first; `settings` are plain values."""
    shapes = hashlib.sha256()
    for name, layer in layers.layers.items():
        for key, value in layer.state_dict().items():
            shapes.update(f"{name}.{key} {_described(value)}\n".encode())
    return {
        "penstock version": __version__,
        "schedule": plan.schedule.name,
        "num_microbatches": plan.schedule.num_microbatches,
        "costs, cluster and memory_limit": plan.assumed,
        "partition": list(plan.partition.boundaries),
        "program": plan.proof.program.digest[:16],
        "layers": list(layers.layers),
        "model on the meta device": layers.fill is not None,
        "shapes of parameters and buffers": shapes.hexdigest()[:16],
        **settings,
    }


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
