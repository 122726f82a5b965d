"""Where a search starts: every named schedule of the same stages that fits the memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from penstock.errors import ScheduleError
from penstock.ir.ops import OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.optimize.problem import Problem
from penstock.schedules import SCHEDULES, Given, Sizes

SLOW = ("zb_auto", "zb_v_greedy", "v_min", "v_half", "v_zb")
"""Families that search themselves: seconds for ten thousand ops."""


def named_schedules(problem: Problem, *, slow: bool, registered: bool = True) -> Iterator[tuple[str, Schedule]]:
    """Yields name and schedule of those that are defined at these sizes, flush, and keep within the memory limit.

    Left out: other placements, several replicas (they hold copies of the weights), and offloaded activations (what
    they save on one rank lies on another).

    Args:
        problem: sizes, placement and memory.
        slow: whether to yield the families that search themselves; else the others.
        registered: whether to yield them as the registry makes them, for equal stages, too.
    """
    chunks = problem.placement.num_chunks
    sizes = Sizes(problem.num_ranks, problem.num_microbatches, chunks)
    if slow and chunks == 2 and problem.placement != Placement.v_shaped(problem.num_ranks):
        return  # all of these with two stages a rank are V-shaped
    generators = {
        name: partial(family.generate, sizes)
        for name, family in SCHEDULES.items()
        if registered and (name in SLOW) == slow and (family.num_chunks == chunks or (family.any_chunks and chunks > 1))
    }
    if slow and problem.splits:
        # Without what is given the registry makes them for stages that cost the same, whatever they cost here.
        given = Given(problem.costs, problem.cluster, tuple(problem.limit.tolist()))
        for name, family in SCHEDULES.items():
            if family.fit is not None and family.num_chunks == chunks:
                generators[f"{name} (these costs)"] = partial(family.fit, sizes, given)
    for name, generate in generators.items():
        try:
            schedule = generate()
        except ScheduleError:  # not defined at these sizes
            continue
        # Where costs are of full backwards alone, an order of I and W takes nobody knows how long.
        known = problem.splits or not any(op.kind in (OpKind.I, OpKind.W) for op in schedule.ranks[0])
        comparable = known and schedule.weight_rule is WeightRule.FLUSH and not schedule.keepers
        if comparable and schedule.placement == problem.placement and problem.fits(schedule):
            yield name, schedule


def placements(num_ranks: int, num_chunks: int) -> dict[str, Placement]:
    """Returns the placements of p·v stages that named schedules use, by name, each once."""
    found = {"looped": Placement.looped(num_ranks, num_chunks)}
    if num_chunks % 2 == 0:
        found["v" if num_chunks == 2 else "wave"] = Placement.wave(num_ranks, num_chunks // 2)
    if len(set(found.values())) < len(found):  # one rank: all are the same
        return {"looped": found["looped"]}
    return found
