"""A plan as a training configuration, and what of a configuration a Pipeline takes as more than a name."""

from __future__ import annotations

import re
from dataclasses import replace

from penstock.errors import ConfigError
from penstock.ir.schedule import Schedule
from penstock.planner.plan import Plan
from penstock.schedules import named_schedule
from penstock.train.config import Config, PipelineConfig


def with_plan(config: Config, plan: Plan) -> Config:
    """Returns `config` with the layout of `plan` and its batch.

    Raises:
        ConfigError: degrees that this command does not run.
    """
    for degree, remedy in (("tensor", "--tensor 1"), ("data", f"a cluster file of {plan.pipeline} devices")):
        count = getattr(plan, degree)
        if count > 1:
            raise ConfigError(
                f"the plan has {degree}={count}; penstock train runs one pipeline of whole layers, so make a plan with "
                f"penstock plan and {remedy}"
            )
    layout = PipelineConfig(
        ranks=plan.pipeline,
        schedule=plan.schedule,
        chunks=plan.chunks,
        microbatches=plan.microbatches,
        partition=plan.partition,
        recompute=plan.recompute,
    )
    return replace(config, pipeline=layout, run=replace(config.run, batch_size=plan.global_batch))


def schedule_of(layout: PipelineConfig) -> str | Schedule:
    """Returns the schedule's name, or where chunks are asked for the schedule itself.

    Raises:
        ScheduleError: it is not defined for so many.
    """
    if not layout.chunks:
        return layout.schedule
    return named_schedule(
        layout.schedule, num_ranks=layout.ranks, num_microbatches=layout.microbatches, num_chunks=layout.chunks
    )


def recompute_of(config: Config) -> list[str] | None:
    """Returns patterns of the names of the layers that run their forward again; None where none do."""
    if not config.pipeline.recompute:
        return None
    from penstock.train.model import layer_names  # torch, which reading a plan needs not

    names = layer_names(config)
    return [re.escape(names[layer]) for layer in config.pipeline.recompute]
