"""A pipeline in a few lines of text."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from penstock.models import CutModel
from penstock.runtime.plan import RunPlan
from penstock.units import size_text


class _Size(NamedTuple):
    """Entries and bytes of parameters."""

    entries: int
    bytes: int


def summarize(model: CutModel, plan: RunPlan) -> str:
    """Returns one line a stage, its rank, layers and share of the parameters, and what "auto" came to."""
    sizes = _parameters_by_stage(model, plan)
    total = sum(size.bytes for size in sizes) or 1
    names = list(model.layers)
    schedule = plan.schedule
    lines = [f"{schedule.name}: {schedule.num_ranks} ranks, {schedule.num_microbatches} microbatches"]
    for stage, size in enumerate(sizes):
        layers = plan.partition.layers_of(stage)
        span = names[layers.start] if len(layers) == 1 else f"{names[layers.start]} … {names[layers.stop - 1]}"
        lines.append(
            f"stage {stage} on rank {plan.placement.rank_of(stage)}: {len(layers)} layers ({span}), "
            f"{size.entries:,} parameters, {size_text(size.bytes)}, {size.bytes / total:.0%}"
        )
    return "\n".join([*lines, plan.reason] if plan.reason else lines)


def _parameters_by_stage(model: CutModel, plan: RunPlan) -> list[_Size]:
    """Returns the size of each stage's parameters; a tied one counts on its first stage."""
    found = [_Size(0, 0)] * plan.partition.num_stages
    sizes = {
        f"{layer_name}.{name}": _size(parameter)
        for layer_name, layer in model.layers.items()
        for name, parameter in layer.named_parameters()
    }
    beside = plan.parameter_stages.keys() - sizes.keys()  # in no layer, such as one of the model itself
    for stage in {plan.parameter_stages[name] for name in beside}:
        parts = model.stage(plan.partition, stage).named_parameters()
        sizes |= {name: _size(parameter) for name, parameter in parts if name in beside}
    for name, stage in plan.parameter_stages.items():
        found[stage] = _Size(*map(sum, zip(found[stage], sizes[name], strict=True)))
    return found


def _size(parameter: nn.Parameter) -> _Size:
    return _Size(parameter.numel(), parameter.numel() * parameter.element_size())
