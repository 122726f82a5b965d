"""This rank's stages as modules, with numbers in them."""

from __future__ import annotations

from penstock.models import CutModel, Stage
from penstock.runtime.agreement import check_same
from penstock.runtime.plan import RunPlan
from penstock.runtime.shared_weights.owners import copy_of, stages_to_copy
from penstock.runtime.transport.protocol import Transport


def own_stages(layers: CutModel, plan: RunPlan, transport: Transport, *, seed: int | None) -> dict[int, Stage]:
    """Returns this rank's stages by number. Every rank calls it.

    Of a model on the meta device these stages alone are given memory. Stages that threads of one process hold together
    are copied.

    Raises:
        UserError: on every rank alike: numbers that are missing in files, or are to be drawn without a seed.
    """
    placement = plan.placement
    stages = {stage: layers.stage(plan.partition, stage) for stage in placement.held(transport.rank)}
    if layers.fill is not None:
        problem: Exception | None = None
        try:
            layers.fill(list(stages.values()), seed)
        except Exception as error:  # a model's own code runs; whatever it raises, the other ranks hear of it
            problem = error
        check_same(transport, {}, problem)
    if placement.num_replicas > 1:
        copied = stages_to_copy(transport, placement, next(iter(layers.layers.values())))
        problem = None
        try:
            stages |= {stage: copy_of(stages[stage]) for stage in sorted(copied)}
        except Exception as error:  # likewise: modules may say how they are copied
            problem = error
        # Until all copies are made nobody touches what they are made of: the next thing is hooks on these modules.
        check_same(transport, {}, problem)
    return stages
