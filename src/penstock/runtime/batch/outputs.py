"""Outputs of a forward: microbatches joined to a batch again, and brought to every rank."""

from __future__ import annotations

from typing import Any

import torch

from penstock.errors import ModelError
from penstock.runtime.boundary import BoundarySpec, flatten, unflatten
from penstock.runtime.transport.protocol import Transport, gather_bytes


def joined(outputs: list[Any]) -> Any:
    """Returns the outputs of all microbatches as one: tensors joined along their first dimension.

    Raises:
        ModelError: outputs of different structure.
    """
    flat = [flatten(output) for output in outputs]
    specs = {spec.tree for spec, _ in flat}
    if len(specs) > 1:
        raise ModelError(f"the outputs of the microbatches differ in structure: {sorted(specs)}")
    columns = zip(*(tensors for _, tensors in flat), strict=True)
    return unflatten(flat[0][0], [torch.cat(column) if column[0].dim() else column[0] for column in columns])


def broadcast_output(transport: Transport, output: Any, *, source: int, device: torch.device) -> Any:
    """Returns rank `source`'s output on every rank. Every rank calls it."""
    mine = transport.rank == source
    spec, tensors = flatten(output) if mine else (None, [])
    spec = BoundarySpec.decode(gather_bytes(transport, spec.encode() if spec else b"")[source])
    if not mine:
        tensors = [tensor.empty(device) for tensor in spec.tensors]
    tensors = [tensor.contiguous() for tensor in tensors]
    for tensor in tensors:
        transport.broadcast(tensor, source)
    return unflatten(spec, tensors)
