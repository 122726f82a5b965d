"""`penstock.profile`: a model and one microbatch -> Profile."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import fields, replace
from statistics import median
from typing import Any

import torch

from penstock.errors import UserError, check_type
from penstock.models import CutModel, cut
from penstock.profiler.accelerators import Accelerator, accelerator
from penstock.profiler.files import profile_from_json, profile_to_json
from penstock.profiler.host import host_costs
from penstock.profiler.kinds import placed_layers
from penstock.profiler.layers import Subject, measured_layers
from penstock.profiler.links import message_costs
from penstock.profiler.values import HostCosts, LayerProfile, LinkLevel, OpTimings, Profile, Timing
from penstock.runtime.batch.microbatches import to_device
from penstock.runtime.stage_work import Boundary, LossFunction
from penstock.runtime.transport.protocol import Transport, gather_bytes


def profile(  # noqa: PLR0913  # the public face: each argument is one decision of the user's
    model: Any,
    inputs: Any,
    targets: Any = None,
    *,
    loss_fn: LossFunction | None = None,
    transport: Transport | None = None,
    target_device: str | Accelerator | None = None,
    seconds: float = 2.0,
    recompute: bool = True,
) -> Profile:
    """Returns what each layer of `model` costs on one microbatch, and what host and links add.

    The model is left as it is: no gradient, hook, buffer or generator of random numbers changes. With a transport every
    rank calls it, so that all measure while all are busy, as they will be in training; each gets the same profile.

    Args:
        model: anything a Pipeline takes.
        inputs: of one microbatch.
        targets: of the same microbatch, where there is a loss.
        loss_fn: (output, target) -> loss; None leaves the loss out.
        transport: between the ranks of a pipeline, to measure its messages; None measures none.
        target_device: a device to compute times for instead of measuring, by name or as an Accelerator. The model may
            be on the meta device then.
        seconds: how long to measure the layers.
        recompute: measure backwards that run the forward once more, too.

    Raises:
        UserError: a model that cannot be cut or does not run on `inputs`, or a microbatch without the loss's targets.
    """
    if not (isinstance(seconds, int | float) and 0 < seconds < float("inf")):
        raise UserError(f"seconds={seconds!r}; give how long to measure, above 0, e.g. seconds=2.0")
    if loss_fn is not None and targets is None:
        raise UserError("loss_fn is given without targets; give those of the same microbatch, e.g. targets=batch[1]")
    check_type("target_device", target_device, str, Accelerator, type(None), example='e.g. "h100"')
    layers = cut(model)
    if target_device is not None:
        from penstock.profiler.analytic import computed_profile

        chosen = accelerator(target_device) if isinstance(target_device, str) else target_device
        return computed_profile(layers, inputs, (loss_fn, targets) if loss_fn else None, chosen)
    return _measured(layers, inputs, (loss_fn, targets) if loss_fn else None, transport, seconds, recompute)


def _measured(
    model: CutModel,
    inputs: Any,
    loss: tuple[LossFunction, Any] | None,
    transport: Transport | None,
    seconds: float,
    recompute: bool,
) -> Profile:
    device = _device_of(model)
    inputs = to_device(inputs, device)
    if loss is not None:
        loss = (loss[0], to_device(loss[1], device))
    with torch.random.fork_rng():
        subject = Subject(model, placed_layers(model, inputs), inputs, loss, device, recompute)
        _together(transport)
        layers = measured_layers(subject, seconds=seconds)
    found = Profile(
        device=_name_of(device),
        measured=True,
        microbatch_size=microbatch_size(subject.placed[0].given),
        layers=layers,
        host=host_costs(transport, device),
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0,
        sequence=sequence_of(subject.placed[0].given),
    )
    if transport is None or transport.num_ranks == 1:
        return found
    texts = gather_bytes(transport, profile_to_json(found).encode())
    largest = max(layer.output.bytes for layer in layers)
    links = _levels(transport, largest=largest, device=device)
    rows = [profile_from_json(text) for text in texts]
    whole = merged(rows)
    return replace(whole, links=links, speeds=tuple(_speed(row, whole) for row in rows))


def _speed(own: Profile, whole: Profile) -> float:
    """Returns how many times faster a rank was than the profile of all: the median over layers and ops."""
    ratios = [
        getattr(other.seconds, op).seconds / getattr(layer.seconds, op).seconds
        for layer, other in zip(own.layers, whole.layers, strict=True)
        for op in ("forward", "backward", "split_forward", "input_grad", "weight_grad")
        if getattr(layer.seconds, op).seconds > 0
    ]
    return median(ratios) if ratios else 1.0


def microbatch_size(given: Boundary) -> int:
    """Returns the samples of a microbatch.

    Raises:
        UserError: it holds no tensor with a batch as its first dimension.
    """
    if not given.tensors or not given.tensors[0].dim():
        raise UserError("inputs hold no tensor with samples; give one microbatch, e.g. inputs=batch[:2]")
    return len(given.tensors[0])


def sequence_of(given: Boundary) -> int:
    """Returns the tokens of each sample, where samples are rows of whole numbers; else 0."""
    first = given.tensors[0]
    tokens = first.dim() == 2 and not (first.is_floating_point() or first.is_complex() or first.dtype == torch.bool)
    return first.shape[1] if tokens else 0


def _together(transport: Transport | None) -> None:
    """Lets ranks begin at one time."""
    if transport is not None:
        transport.gather(torch.zeros(1))


def _device_of(model: CutModel) -> torch.device:
    for layer in model.layers.values():
        for parameter in layer.parameters():
            if parameter.device.type == "meta":
                raise UserError(
                    "the model is on the meta device, which takes no time; give it a device, or name one to compute "
                    'times for, e.g. target_device="h100"'
                )
            return parameter.device
    return torch.device("cpu")


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, {torch.get_num_threads()} threads"


def _levels(transport: Transport, *, largest: int, device: torch.device) -> tuple[LinkLevel, ...]:
    """Returns messages within a host and, where there are several equal ones, between hosts."""
    hosts = gather_bytes(transport, platform.node().encode())
    per_host = next((rank for rank, host in enumerate(hosts) if host != hosts[0]), len(hosts))
    ends = {per_host: (0, 1)} if per_host > 1 else {}
    if per_host < len(hosts):
        ends[len(hosts)] = (per_host - 1, per_host)
    return tuple(
        LinkLevel(size, message_costs(transport, *pair, largest=largest, device=device)) for size, pair in ends.items()
    )


def merged(profiles: Sequence[Profile]) -> Profile:
    """Returns the profile whose times are the medians of several of one model: over ranks, or over moments."""
    layers = tuple(_merged_layer(rows) for rows in zip(*(each.layers for each in profiles), strict=True))
    return replace(
        profiles[0],
        layers=layers,
        host=_merged_host([each.host for each in profiles]),
        speeds=tuple(median(row) for row in zip(*(each.speeds for each in profiles), strict=True)),
    )


def _merged_host(rows: Sequence[HostCosts]) -> HostCosts:
    seconds = [field.name for field in fields(HostCosts) if field.name != "waking"]
    middle = {name: median(getattr(row, name) for row in rows) for name in seconds}
    points = zip(*(row.waking for row in rows), strict=True)
    waking = tuple((at[0][0], median(longer for _, longer in at)) for at in points)
    return HostCosts(**middle, waking=waking)


def _merged_layer(rows: Sequence[LayerProfile]) -> LayerProfile:
    return replace(
        rows[0],
        seconds=_merged_timings([row.seconds for row in rows]),
        saved=_merged_timings([row.saved for row in rows]),
        accumulate_seconds=median(row.accumulate_seconds for row in rows),
    )


def _merged_timings(rows: Sequence[OpTimings]) -> OpTimings:
    return OpTimings(*(_merged_timing([getattr(row, field.name) for row in rows]) for field in fields(OpTimings)))


def _merged_timing(rows: Sequence[Timing]) -> Timing:
    return Timing(
        median(row.seconds for row in rows),
        min(row.low for row in rows),
        max(row.high for row in rows),
        sum(row.repeats for row in rows),
    )
