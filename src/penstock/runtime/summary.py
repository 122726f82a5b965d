"""A pipeline in a few lines of text."""

from __future__ import annotations

from penstock.models import CutModel
from penstock.runtime.plan import RunPlan


def summarize(model: CutModel, plan: RunPlan) -> str:
    """Returns one line a stage, its rank, layers and share of the parameters, and what "auto" came to."""
    counts = [0] * plan.partition.num_stages
    for layer_name, layer in model.layers.items():
        for name, parameter in layer.named_parameters():
            stage = plan.parameter_stages.get(f"{layer_name}.{name}")
            if stage is not None:  # a parameter tied to an earlier one is counted there
                counts[stage] += parameter.numel()
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
