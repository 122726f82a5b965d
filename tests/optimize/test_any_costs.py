"""Whatever the costs and the memory: no named schedule that fits is faster, and none is below the lower bound."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import hypothesis.strategies as st
from hypothesis import Phase, given, settings

import penstock as ps
from penstock.errors import ScheduleError, UserError
from penstock.ir.ops import OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.optimize import Objective, Search, optimize_schedule, placements
from penstock.schedules import SCHEDULES


class Instance(NamedTuple):
    placement: Placement
    num_microbatches: int
    costs: ps.StageCosts
    cluster: ps.Cluster
    limit: tuple[float, ...]
    objective: Objective


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    p, m, chunks = draw(st.integers(2, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 2))
    stages = p * chunks

    def row(low: float, high: float) -> list[float]:
        return draw(st.lists(st.floats(low, high), min_size=stages, max_size=stages))

    seconds = [[0.0] * stages if draw(st.integers(0, 9)) == 0 else row(0.25, 4) for _ in range(3)]
    kept, share = row(1, 3), draw(st.floats(0, 1))
    whole = row(0.5, 8) if draw(st.integers(0, 3)) == 0 else None
    costs = ps.StageCosts(*seconds, backward=whole, activation_bytes=kept, deferred_bytes=[share * one for one in kept])
    placement = draw(st.sampled_from(list(placements(p, chunks).values())))
    most = [max(kept[stage] for stage in placement.stages_of(rank)) * chunks for rank in range(p)]
    limit = tuple(draw(st.floats(1, 2 * p)) * one for one in most)
    speeds = draw(st.lists(st.sampled_from((0.5, 1.0, 2.0)), min_size=p, max_size=p))
    link = ps.Link(draw(st.sampled_from((0.0, 0.5))))
    cluster = ps.Cluster(tuple(ps.Device(speed=speed) for speed in speeds), ((p, link),))
    return Instance(placement, m, costs, cluster, limit, draw(st.sampled_from(("makespan", "span"))))


def timed(one: Instance, schedule: Schedule) -> tuple[float, bool]:
    """Returns what a schedule takes by the simulator alone, and whether it keeps within the memory."""
    timeline = ps.simulate(schedule, one.costs, one.cluster)
    fits = all(held <= most * (1 + 1e-9) for held, most in zip(timeline.peak_memory, one.limit, strict=True))
    return (timeline.makespan if one.objective == "makespan" else timeline.per_rank_span), fits


def named(one: Instance) -> Iterator[tuple[str, Schedule]]:
    """Yields every registered schedule of these stages that flushes and keeps its activations where they arise."""
    p, chunks = one.placement.num_ranks, one.placement.num_chunks
    for name in SCHEDULES:
        try:
            schedule = ps.named_schedule(name, num_ranks=p, num_microbatches=one.num_microbatches, num_chunks=chunks)
        except (ScheduleError, UserError):
            continue
        split = any(op.kind is OpKind.W for op in schedule.ranks[0])
        known = any((*one.costs.per_stage("input_grad", p * chunks), *one.costs.per_stage("weight_grad", p * chunks)))
        comparable = schedule.weight_rule is WeightRule.FLUSH and not schedule.keepers and (known or not split)
        if comparable and schedule.placement == one.placement:
            yield name, schedule


@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False)
@given(instances())
def test_no_named_schedule_that_fits_is_faster_and_none_is_below_the_bound(one: Instance) -> None:
    found = optimize_schedule(
        one.placement.num_ranks,
        one.num_microbatches,
        costs=one.costs,
        cluster=one.cluster,
        memory_limit=one.limit,
        placement=one.placement,
        search=Search(one.objective, effort=0.02),
    )
    value, fits = timed(one, found.schedule)
    assert value == found.value
    assert fits
    assert found.lower_bound <= value * (1 + 1e-9)
    for name, schedule in named(one):
        theirs, possible = timed(one, schedule)
        if possible:
            assert value <= theirs * (1 + 1e-9), name
            assert found.lower_bound <= theirs * (1 + 1e-9), name


_SEARCH = """
import penstock as ps
costs = ps.StageCosts([1, 1.3, 0.8, 1.1], [1, 1.2, 0.9, 1.3], [1, 0.7, 1.2, 0.9])
found = ps.optimize_schedule(4, 12, costs=costs, search=ps.Search(seed=3, effort=0.2, seconds=0.2))
text = ps.schedule_to_json(found.schedule)
"""


def test_another_process_finds_the_same_order_with_a_limit_of_seconds_too() -> None:
    """Neither the clock nor the order of hashes has a part in it."""
    here: dict[str, str] = {}
    exec(_SEARCH, here)
    there = subprocess.run(
        [sys.executable, "-c", f"{_SEARCH}\nprint(text)"],
        env={"PYTHONHASHSEED": "7", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert there.stdout.strip() == here["text"].strip()
