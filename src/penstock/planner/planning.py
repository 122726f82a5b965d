"""Plans for training a model on a fleet, the fastest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from penstock.cluster import Cluster, Device
from penstock.costs import StageCosts
from penstock.errors import UserError, check_type
from penstock.partition.layers import LayerCosts
from penstock.planner.candidates import Limits, tensor_degrees
from penstock.planner.costing import Costing
from penstock.planner.description import ModelDescription, describe
from penstock.planner.evaluation import Evaluation, link_between
from penstock.planner.fleet import Fleet
from penstock.planner.measured import MeasuredLayers, profiled_work
from penstock.planner.plan import Forecast, Plan
from penstock.planner.reasons import layer_too_large, too_large, why
from penstock.planner.search import Found, search
from penstock.planner.work import ModelWork, StateBytes, described_work
from penstock.simulator import simulate
from penstock.timeline import Timeline


@dataclass(frozen=True)
class Refused:
    """Degrees under which nothing fits, and why."""

    tensor: int
    pipeline: int
    reason: str


@dataclass(frozen=True)
class Planned:
    """What a search for plans has found.

    Attributes:
        plans: the fastest first.
        refused: degrees under which nothing fits.
        notes: what else is to be known.
        considered: combinations that closed forms sorted.
        timed: of these, those whose order of ops was timed.
    """

    plans: tuple[Plan, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]
    considered: int
    timed: int
    _evaluations: tuple[Evaluation, ...] = field(repr=False, compare=False)
    _costing: Costing = field(repr=False, compare=False)

    def timeline(self, number: int = 0) -> Timeline:
        """Returns the step of a plan as `simulate` has it: one copy of its pipeline, with the memory of each rank."""
        return _simulated(self._costing, self._evaluations[number], self.plans[number])


def plan_training(
    model: object,
    fleet: Fleet,
    *,
    global_batch: int,
    sequence: int,
    limits: Limits | None = None,
    state: StateBytes | None = None,
    keep: int = 10,
) -> Planned:
    """Returns the fastest plans for training `model` on `fleet`.

    Args:
        model: the dict of a Hugging Face `config.json`, a ModelDescription, a module with such a config, LayerCosts
            measured on one sequence, or a MeasuredLayers measured on several.
        fleet: the devices.
        global_batch: sequences of a step.
        sequence: tokens of each.
        limits: what plans may be made of; None: anything.
        state: bytes a parameter; None: bf16 weights, fp32 gradients, Adam in fp32.
        keep: how many plans.

    Raises:
        UserError: arguments out of range, or nothing that fits; then with the rank that lacks least, and with the
            tensor degree that would fit where a single layer is too large.
    """
    check_type("fleet", fleet, Fleet, example='e.g. penstock.load_fleet("cluster.toml")')
    for name, value in (("global_batch", global_batch), ("sequence", sequence), ("keep", keep)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r}; use a whole number of at least 1, e.g. {name}=1024")
    limits = limits or Limits()
    state = state or StateBytes()
    work = _work(model, sequence, state)
    costing = Costing(work, fleet, global_batch, limits.overlap)
    found = search(costing, limits, keep=keep)
    large = layer_too_large(costing, tensor_degrees(costing, limits), max(limits.sharding, default=0))
    if not found.fitting:
        raise UserError(_nothing(found, limits, large))
    plans = [_plan(costing, one, sequence) for one in found.fitting]
    return Planned(
        tuple(replace(plan, reason=why(plan, plans[number + 1 :])) for number, plan in enumerate(plans)),
        tuple(Refused(*key, too_large(one, limits.recompute)) for key, one in sorted(found.too_large.items())),
        _notes(found, large),
        found.considered,
        found.timed,
        tuple(found.fitting),
        costing,
    )


def _work(model: object, sequence: int, state: StateBytes) -> ModelWork:
    if isinstance(model, LayerCosts | MeasuredLayers):
        measured = model if isinstance(model, MeasuredLayers) else MeasuredLayers(model)
        if measured.tokens not in (0, sequence):
            raise UserError(
                f"sequence={sequence}, and the layers were measured on sequences of {measured.tokens}; plan for these, "
                f"or measure on sequences of {sequence}"
            )
        return profiled_work(measured, state)
    if isinstance(model, ModelDescription):
        return described_work(model, sequence, state)
    config = model if isinstance(model, Mapping) else getattr(model, "config", None)
    # A Hugging Face module has its config as an object that gives the dict; no need to import its library.
    as_dict: Any = getattr(config, "to_dict", None)
    config = as_dict() if callable(as_dict) else config
    if not isinstance(config, Mapping):
        raise UserError(
            f"model is a {type(model).__name__}; give the dict of a config.json, a ModelDescription, a module with a "
            "config, LayerCosts or a MeasuredLayers"
        )
    return described_work(describe(config), sequence, state)


def _plan(costing: Costing, one: Evaluation, sequence: int) -> Plan:
    candidate, degrees = one.candidate, one.candidate.degrees
    layout = costing.layout(degrees)
    peak = sum(costing.fleet.kinds[kind].flops_per_second for kind in costing.fleet.kind_of[layout.devices].flat)
    forecast = Forecast(
        one.seconds,
        costing.global_batch * sequence / one.seconds,
        costing.global_batch * costing.work.sequence_flops / one.seconds / peak,
        max(one.parts.waiting / one.seconds, 0.0),
        one.memory,
        one.limits,
        one.parts._asdict(),
    )
    return Plan(
        *degrees,
        candidate.schedule,
        candidate.chunks,
        candidate.microbatches,
        candidate.size,
        sequence,
        candidate.sharding,
        tuple(last - first for first, last in pairwise(one.cuts)),
        tuple(sorted(one.again)),
        forecast,
    )


def _nothing(found: Found, limits: Limits, large: str | None) -> str:
    """Returns why there is no plan at all."""
    if large is not None:
        return large
    if found.too_large:
        (tensor, pipeline), least = min(found.too_large.items(), key=lambda item: (item[1].lacking, item[0]))
        reason = too_large(least, limits.recompute)
        return (
            f"nothing fits; tensor {tensor} × pipeline {pipeline} lacks least: {reason}; use more devices, devices "
            "with more memory, or shorter sequences"
        )
    reasons = "; ".join(found.undefined.values())
    return (
        f"no combination of {limits} is defined for this model, fleet and batch{': ' if reasons else ''}{reasons}; "
        "allow more"
    )


def _notes(found: Found, large: str | None) -> tuple[str, ...]:
    notes = [large] if large is not None else []
    notes += [f"not defined at some sizes: {reason}" for reason in found.undefined.values()]
    if found.skipped:
        notes.append(f"{found.skipped} promising combinations were left out: their orders are too long to make here")
    return tuple(notes)


def _simulated(costing: Costing, one: Evaluation, plan: Plan) -> Timeline:
    links = costing.layout(one.candidate.degrees).boundaries
    ranks = range(plan.pipeline)
    pairs = tuple(tuple(link_between(links, here, there) for there in ranks) for here in ranks)
    cluster = Cluster((Device(),) * plan.pipeline, ((plan.pipeline, links[0]),), pairs=pairs)
    stages, schedule = one.stages, plan.order()
    forward, _, input_grad, weight_grad = stages.seconds.reshape(-1, 4).T
    # What came in lies in its receive buffer, which the simulator counts apart.
    before = np.concatenate([[0.0], stages.boundary[:-1]])
    costs = StageCosts(
        forward=forward.tolist(),
        input_grad=input_grad.tolist(),
        weight_grad=weight_grad.tolist(),
        reduce_grad=stages.ending.tolist(),
        parameter_bytes=np.maximum(stages.fixed - 2 * (before + stages.boundary), 0).tolist(),
        activation_bytes=np.maximum(stages.activation - before, 0).tolist(),
        deferred_bytes=np.maximum(stages.deferred - before, 0).tolist(),
        boundary_bytes=stages.boundary.tolist(),
    )
    from penstock.lowering import lower

    return simulate(lower(schedule, reduce_gradients=True), costs, cluster)
