"""A plan as a training configuration, and what of a configuration a Pipeline takes as more than a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from penstock.errors import ConfigError
from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS
from penstock.planner.plan import Plan
from penstock.schedules import named_schedule
from penstock.train.config import Config, PipelineConfig


def with_plan(config: Config, plan: Plan) -> Config:
    """Returns `config` with the layout of `plan` and its batch.

    Raises:
        ConfigError: degrees that this command does not run.
    """
    if plan.tensor > 1:
        raise ConfigError(
            f"the plan has tensor={plan.tensor}; penstock train runs whole layers on each rank, so make a plan with "
            "penstock plan and --tensor 1"
        )
    if plan.sharding:
        raise ConfigError(
            f"the plan has sharding={plan.sharding} (ZeRO {plan.sharding}); each copy of penstock train keeps its "
            "parameters, gradients and optimizer state whole, so make a plan with penstock plan and --sharding 0"
        )
    layout = PipelineConfig(
        ranks=plan.pipeline,
        schedule=plan.schedule,
        chunks=plan.chunks,
        microbatches=plan.microbatches,
        partition=plan.partition,
        recompute=plan.recompute,
        replicas=plan.data,
        outermost=plan.outermost if plan.data > 1 else "data",
    )
    model, run = replace(config.model, context=plan.sequence), replace(config.run, batch_size=plan.global_batch)
    return replace(config, pipeline=layout, model=model, run=run)


def with_ends(config: Config, names: Sequence[str]) -> Config:
    """Returns `config` with its plan laid onto the layers called `names`.

    A plan counts all that comes before the first block as one layer, and so all behind the last. Blocks have names that
    end in their number.

    Raises:
        ConfigError: a model of another number of blocks than the plan's.
    """
    blocks = [at for at, name in enumerate(names) if name.rpartition(".")[2].isdecimal()]
    partition = config.pipeline.partition
    sizes = [] if isinstance(partition, str) else list(partition)
    planned = sum(sizes) - 2
    if len(blocks) != planned:
        raise ConfigError(
            f"the plan is for a model of {planned} blocks, and model.hf has {len(blocks)}; plan for this one"
        )
    before, behind = blocks[0] - 1, len(names) - 2 - blocks[-1]
    sizes[0] += before
    sizes[-1] += behind
    layout = replace(
        config.pipeline,
        partition=tuple(sizes),
        recompute=tuple(layer + before for layer in config.pipeline.recompute),
    )
    return replace(config, pipeline=layout)


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


def asynchronous_schedule(config: Config) -> Schedule | None:
    """Returns the schedule if it steps the weights inside, else None.

    Raises:
        ScheduleError: it is not defined for so many.
        NotationError: a file that holds no schedule.
    """
    from penstock.runtime.auto import AUTO  # brings torch in
    from penstock.runtime.plan import choose_schedule

    layout = config.pipeline
    if layout.schedule == AUTO:
        return None
    schedule = choose_schedule(schedule_of(layout), num_ranks=layout.ranks, num_microbatches=layout.microbatches)
    return None if schedule.weight_rule in SYNCHRONOUS else schedule


def recompute_of(config: Config) -> list[str] | None:
    """Returns patterns of the names of the layers that run their forward again; None where none do.

    Raises:
        ConfigError: a layer that the model does not have.
    """
    if not config.pipeline.recompute:
        return None
    from penstock.train.model import layer_names  # brings torch in, which a configuration alone does not need

    names = layer_names(config)
    foreign = [layer for layer in config.pipeline.recompute if not 0 <= layer < len(names)]
    if foreign:
        raise ConfigError(
            f"pipeline.recompute names layer {foreign[0]} of {len(names)}; use numbers from 0 to {len(names) - 1}"
        )
    return [re.escape(names[layer]) for layer in config.pipeline.recompute]
