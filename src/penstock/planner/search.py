"""Which plans there are for a model on a fleet, the fastest first.

closed forms of every candidate ─> the most promising: real orders, cuts by the chain's dynamic programming,
memory by op ─> the fastest: cuts moved layer by layer ─> ranking, reasons
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from penstock.errors import ScheduleError
from penstock.partition import Partition
from penstock.partition.chain import Chain, cut_candidates
from penstock.partition.ranges import shifted
from penstock.planner.candidates import Candidate, Estimated, Limits, estimates
from penstock.planner.costing import Costing
from penstock.planner.evaluation import Evaluation, evaluate
from penstock.planner.orders import order_of

_OPS = 800_000
"""Ops of schedules made and timed in search of the fastest, about 3 µs each."""
_LONGEST = 150_000
"""Ops of one schedule."""
_FIXED = 1_000
"""What a candidate takes beside its ops."""
_MOST = 300
"""Candidates that are timed."""
_SLACK = 0.02
"""A candidate whose closed forms lack no more than this share of its memory is looked at."""
_MOVED = 60
"""Cuts that are tried for each of the best, and for each that lacks little memory."""
_EASED = 0.25
"""Share of a rank's memory that a plan may lack for cuts to be moved until it fits."""
_REACH = 3
"""Stages that a layer is moved over, at most, to make a rank fit."""


@dataclass
class Found:
    """What a search has seen.

    Attributes:
        fitting: plans within their memory, fastest first.
        too_large: (tensor, pipeline) -> the evaluation that lacks least.
        undefined: reasons of schedules that are not defined at sizes that were tried.
        best: of what fits, seconds by all but the sharding and what is outermost.
        considered: candidates with an estimate.
        timed: candidates with an order.
        skipped: candidates that were promising, and their order too long to make.
    """

    fitting: list[Evaluation] = field(default_factory=list)
    too_large: dict[tuple[int, int], Evaluation] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    considered: int = 0
    best: dict[tuple[object, ...], float] = field(default_factory=dict)
    timed: int = 0
    skipped: int = 0

    @property
    def fastest(self) -> float:
        """Seconds of the fastest."""
        return min(self.best.values(), default=np.inf)


def search(costing: Costing, limits: Limits, *, keep: int) -> Found:
    """Returns the `keep` fastest plans, and of degrees under which nothing fits what lacks least."""
    found = Found()
    every = sorted(estimates(costing, limits), key=lambda one: (one.seconds, one.candidate))
    found.considered = len(every)
    orders: set[tuple[str, int, int, int]] = set()
    spent = 0.0
    for estimated in every:
        candidate = estimated.candidate
        if found.timed >= _MOST or (spent > _OPS and found.fitting):
            break
        known = found.best.get(_layout_of(candidate), np.inf)
        if not _may_fit(costing, estimated) or estimated.seconds > min(1.5 * found.fastest, known):
            continue
        shape = (candidate.schedule, candidate.degrees.pipeline, candidate.microbatches, candidate.chunks)
        if shape not in orders and candidate.num_ops > _LONGEST:
            found.skipped += 1
            continue
        spent += candidate.num_ops * (0.1 if shape in orders else 1) + _FIXED
        orders.add(shape)
        best = _best_cuts(costing, candidate, limits, found)
        if best is not None and best.lacking > 0:
            best, tried = _eased(costing, best, limits)
            spent += tried * candidate.num_ops * 0.1
        if best is not None and best.lacking <= 0:
            found.fitting.append(best)
            found.best[_layout_of(candidate)] = min(best.seconds, known)
    found.fitting = _distinct(found.fitting)[: 2 * keep]
    found.fitting = [_moved(costing, one, limits) for one in found.fitting]
    found.fitting = _distinct(found.fitting)[:keep]
    _explain_others(costing, every, limits, found)
    return found


def _may_fit(costing: Costing, estimated: Estimated) -> bool:
    return estimated.lacking <= _SLACK * max(kind.usable_bytes for kind in costing.fleet.kinds)


def _distinct(plans: Iterable[Evaluation]) -> list[Evaluation]:
    """Returns the plans by their step; of those that differ in the sharding or what is outermost alone the fastest."""
    seen: dict[object, Evaluation] = {}
    for plan in sorted(plans, key=_place):
        seen.setdefault(_layout_of(plan.candidate), plan)
    return list(seen.values())


def _place(plan: Evaluation) -> tuple[float, float, Candidate]:
    """Returns what plans are ranked by: the step but for rounding, then memory."""
    return float(f"{plan.seconds:.9g}"), max(plan.memory), plan.candidate


def _layout_of(one: Candidate) -> tuple[object, ...]:
    return one.degrees[:3], one.schedule, one.chunks, one.size


def _best_cuts(costing: Costing, candidate: Candidate, limits: Limits, found: Found) -> Evaluation | None:
    """Returns the candidate with the better of the even partition and the one by dynamic programming."""
    try:
        tried = [evaluate(costing, candidate, cuts, limits.recompute) for cuts in _first_cuts(costing, candidate)]
    except ScheduleError as error:
        found.undefined[candidate.schedule] = str(error)
        return None
    found.timed += 1
    return min(tried, key=_worth)


def _worth(plan: Evaluation) -> tuple[float, float]:
    return max(plan.lacking, 0), plan.seconds


def _first_cuts(costing: Costing, candidate: Candidate) -> list[tuple[int, ...]]:
    """Returns the even partition of what lies between the ends, and the one whose largest stage is smallest."""
    degrees, num_layers = candidate.degrees, len(costing.work.names)
    order = order_of(candidate.schedule, degrees.pipeline, candidate.microbatches, candidate.chunks)
    tables = costing.classes(degrees, candidate.size, candidate.sharding)
    rows = [(table.layers.seconds + table.gathered).sum(axis=0) for table in tables]
    rates = np.array([rows[0].sum() / row.sum() for row in rows])
    number, _ = costing.layout(degrees).classes
    speeds = rates[np.array(number)[order.ranks]]
    prefix = np.concatenate([[0.0], np.cumsum(rows[0])])
    chain = Chain(prefix, speeds, np.zeros((len(speeds), num_layers + 1)), np.zeros((1, 1, 1)))
    balanced = next(cut_candidates(chain, candidate.microbatches), None)
    even = Partition.uniform(num_layers, candidate.num_stages).boundaries
    return [even] if balanced is None or balanced == even else [even, balanced]


def _moved(costing: Costing, plan: Evaluation, limits: Limits) -> Evaluation:
    """Returns the plan after moving single cuts, and neighbours alike, while that helps."""
    left = _MOVED
    best, improved = plan, True
    while improved and left > 0:
        improved = False
        for cuts in _neighbours(best):
            left -= 1
            other = evaluate(costing, plan.candidate, cuts, limits.recompute)
            if _worth(other) < (max(best.lacking, 0), best.seconds * (1 - 1e-9)):
                best, improved = other, True
                break
            if left <= 0:
                break
    return best


def _eased(costing: Costing, plan: Evaluation, limits: Limits) -> tuple[Evaluation, int]:
    """Returns the plan after moving layers off the rank that lacks most, until all fit or that helps no more.

    And how many cuts that took.
    """
    best, tried, improved = plan, 0, True
    while improved and 0 < best.lacking <= _EASED * max(best.limits) and tried < _MOVED:
        lighter = [evaluate(costing, plan.candidate, cuts, limits.recompute) for cuts in _lighter(best)]
        tried += len(lighter)
        least = min(lighter, key=_worth, default=best)
        improved = _worth(least) < _worth(best)
        best = least if improved else best
    return best, tried


def _lighter(plan: Evaluation) -> Iterable[tuple[int, ...]]:
    """Yields cuts with a layer of the rank that lacks most moved to a stage of another rank."""
    candidate, cuts = plan.candidate, plan.cuts
    ranks = order_of(candidate.schedule, candidate.degrees.pipeline, candidate.microbatches, candidate.chunks).ranks
    lacks = [held - limit for held, limit in zip(plan.memory, plan.limits, strict=True)]
    fullest = lacks.index(max(lacks))
    for stage in np.flatnonzero(ranks == fullest).tolist():
        for other in np.flatnonzero(ranks != fullest).tolist():
            if abs(other - stage) <= _REACH:
                low, high, step = (stage + 1, other + 1, -1) if other > stage else (other + 1, stage + 1, 1)
                moved = shifted(cuts, low, high, step)
                if moved is not None:
                    yield moved


def _neighbours(plan: Evaluation) -> Iterable[tuple[int, ...]]:
    """Yields cuts with a layer moved away from the slowest stages first."""
    cuts = plan.cuts
    seconds = plan.stages.seconds.reshape(-1, 4)[:, :2].sum(axis=1)
    for stage in np.argsort(-seconds, kind="stable").tolist()[:8]:
        for at, step in ((stage, 1), (stage + 1, -1)):
            for reach in (1, 2, 4):
                last = at + reach if step < 0 else at
                first = at if step < 0 else at - reach + 1
                if first < 1 or last > len(cuts) - 1:
                    continue
                moved = shifted(cuts, first, last + (step > 0), step)
                if moved is not None:
                    yield moved


def _explain_others(costing: Costing, every: list[Estimated], limits: Limits, found: Found) -> None:
    """Notes for tensor and pipeline degrees under which nothing fits the plan that lacks least."""
    fits = {one.candidate.degrees[1:3] for one in every if _may_fit(costing, one)}
    least: dict[tuple[int, int], Estimated] = {}
    for one in every:
        key = (one.candidate.degrees.tensor, one.candidate.degrees.pipeline)
        if key not in fits and (key not in least or one.lacking < least[key].lacking):
            least[key] = one
    for key, one in least.items():
        # Which microbatches there are does not matter to what is there anyway; a short schedule is quickly made.
        best = _best_cuts(costing, _shortened(one.candidate), limits, found)
        if best is not None and best.lacking > 0:
            found.too_large[key] = best


def _shortened(candidate: Candidate) -> Candidate:
    return candidate._replace(microbatches=min(candidate.microbatches, 2 * candidate.num_stages))
