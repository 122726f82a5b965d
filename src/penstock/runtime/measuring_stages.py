"""Finding out what each stage computes, keeps and hands on, by one forward of every stage in turn.

    rank of stage 0   its inputs ── F ──> shapes of the boundary ─┐
    rank of stage 1                     zeros of these shapes ── F ──> shapes of the boundary ─ …

Only shapes pass between ranks. Buffers and random numbers are put back; no gradient arises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from penstock.errors import BatchError
from penstock.runtime.agreement import check_same
from penstock.runtime.batch.microbatches import to_device
from penstock.runtime.boundary import BoundarySpec, flatten, unflatten
from penstock.runtime.plan import RunPlan
from penstock.runtime.stage_sizes import StageSize, StageSizes
from penstock.runtime.stage_work import StageWork
from penstock.runtime.transport.protocol import Transport, gather_bytes


def measure_stages(
    stages: Mapping[int, StageWork], plan: RunPlan, transport: Transport, *, names: Sequence[str], inputs: Any
) -> StageSizes:
    """Returns the sizes of all stages, on every rank. Every rank calls it.

    Args:
        stages: this rank's.
        plan: of the whole model.
        transport: to the other ranks.
        names: of all layers.
        inputs: one microbatch, on the rank of the first stage.

    Raises:
        Exception: what a stage raises, or BatchError with it on the other ranks.
    """
    found: list[StageSize] = []
    spec: BoundarySpec | None = None
    for stage in range(plan.partition.num_stages):
        rank = plan.placement.rank_of(stage)
        message, problem = b"", None
        if rank == transport.rank:
            try:
                message = _measured(stages[stage], plan, stage, names=names, given=_given(spec, inputs))
            except Exception as error:  # a stage is the user's: whatever it raises, the other ranks hear of it
                problem = error
        check_same(transport, {}, problem)
        fields, encoded = json.loads(gather_bytes(transport, message)[rank])
        spec = BoundarySpec.decode(encoded.encode()) if encoded else None
        found.append(StageSize(rank, **fields))
    return StageSizes(tuple(found))


def _given(spec: BoundarySpec | None, inputs: Any) -> Any:
    """Returns what enters a stage: the inputs, or zeros of a boundary's shapes, with its plain values."""
    if spec is None:
        if inputs is None:
            raise BatchError("sizes got no inputs on the rank that holds the first stage; pass one microbatch there")
        return inputs
    return unflatten(
        spec,
        [torch.zeros(each.shape, dtype=each.dtype, requires_grad=each.needs_grad) for each in spec.tensors],
    )


def _measured(work: StageWork, plan: RunPlan, stage: int, *, names: Sequence[str], given: Any) -> bytes:
    """Returns the fields of a StageSize and the boundary's spec, as a message."""
    module = work.module
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    entering = to_device(given, device)
    output, flops, kept = _forward(module, entering)
    last = stage == plan.partition.num_stages - 1
    spec, tensors = flatten(None if last else output)
    own = [parameter for name, parameter in module.named_parameters() if plan.parameter_stages.get(name) == stage]
    layers = plan.partition.layers_of(stage)
    span = names[layers.start] if len(layers) == 1 else f"{names[layers.start]} … {names[layers.stop - 1]}"
    fields = {
        "layers": f"{len(layers)} ({span})",
        "parameters": sum(parameter.numel() for parameter in own),
        "parameter_bytes": sum(parameter.numel() * parameter.element_size() for parameter in own),
        "flops": flops,
        "activation_bytes": kept,
        "boundary": {} if last else _told(output),
        "boundary_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }
    return json.dumps([fields, "" if last else spec.encode().decode()]).encode()


def _forward(module: nn.Module, entering: Any) -> tuple[Any, int, int]:
    """Returns output, operations, and bytes kept, of one forward whose traces are put back."""
    arrived = [each for each in tree_leaves(entering) if isinstance(each, Tensor)]
    foreign = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers(), *arrived)}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    counter = FlopCounterMode(display=False)
    try:
        with (
            torch.random.fork_rng(),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            counter,
        ):
            output = module(entering)
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    return output, counter.get_total_flops(), sum(size for key, size in saved.items() if key not in foreign)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _told(output: Any) -> dict[str, str]:
    """Returns the values of a boundary in words, by name where it is a dict."""
    values = output if isinstance(output, dict) else {"": output}
    return {name: _shape(value) for name, value in values.items()}


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shape, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_shape(each)}' for name, each in value.items())}}}"
    return str(value)
