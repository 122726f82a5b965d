"""A pipeline in a few lines of text."""

from __future__ import annotations

from penstock.models import CutModel
from penstock.runtime.plan import RunPlan


def summarize(model: CutModel, plan: RunPlan) -> str:
    """Returns one line a stage, its rank, layers and share of the parameters, and what "auto" came to."""
    counts = _parameters_by_stage(model, plan)
    total = sum(counts) or 1
    names = list(model.layers)
    schedule = plan.schedule
    lines = [f"{schedule.name}: {schedule.num_ranks} ranks, {schedule.num_microbatches} microbatches"]
    for stage, count in enumerate(counts):
        layers = plan.partition.layers_of(stage)
        span = names[layers.start] if len(layers) == 1 else f"{names[layers.start]} … {names[layers.stop - 1]}"
        lines.append(
            f"stage {stage} on rank {plan.placement.rank_of(stage)}: {len(layers)} layers ({span}), "
            f"{count:,} parameters, {count / total:.0%}"
        )
    return "\n".join([*lines, plan.reason] if plan.reason else lines)


def _parameters_by_stage(model: CutModel, plan: RunPlan) -> list[int]:
    """Returns how many parameters each stage has; a tied one counts on its first stage."""
    counts = [0] * plan.partition.num_stages
    sizes = {
        f"{layer_name}.{name}": parameter.numel()
        for layer_name, layer in model.layers.items()
        for name, parameter in layer.named_parameters()
    }
    beside = plan.parameter_stages.keys() - sizes.keys()  # in no layer, such as one of the model itself
    for stage in {plan.parameter_stages[name] for name in beside}:
        parts = model.stage(plan.partition, stage).named_parameters()
        sizes |= {name: parameter.numel() for name, parameter in parts if name in beside}
    for name, stage in plan.parameter_stages.items():
        counts[stage] += sizes[name]
    return counts
