"""The search: named schedules, list scheduling, patterns, local search and, where asked for, the exact solver.

    named schedules that fit ──┐
    a grid of policies ────────┼─> the best few ──> local search ──> (exact solver) ──> simulated, the best returned
    a pattern found for fewer ─┘                        ^
    microbatches, repeated                          stops at the lower bound

How much is tried is counted in ops timed, not in seconds, so that the same call gives the same schedule everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import UserError
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.optimize.anneal import annealed
from penstock.optimize.bound import lower_bound
from penstock.optimize.dispatch import Policy
from penstock.optimize.exact import solved
from penstock.optimize.policies import Found, grid, refined
from penstock.optimize.problem import Objective, Problem, problem_of
from penstock.optimize.repetition import repeated, time_of
from penstock.optimize.seeds import named_schedules
from penstock.schedules.sizes import check_sizes
from penstock.simulator import simulate
from penstock.simulator.jit import COMPILED
from penstock.simulator.orders import schedule_of, words_of
from penstock.timeline import Timeline
from penstock.verifier import verify

_SPEED = 1 if COMPILED else 1 / 100
"""How much is tried, beside what compiled loops try."""

_GRID_OPS, _REFINED_OPS, _ANNEALED_OPS = 6_000_000, 1_000_000, 60_000_000
"""Ops timed by a search of effort 1: by the grid, by the steps from its best, by local search."""

_MANY = 20_000
"""From so many ops on, schedules that search themselves are left out where the gap is small already."""

_SMALL = 1_000
"""Up to so many ops local search starts more often, and warmer: better orders lie further away, and steps are cheap."""

_FEW_ROUNDS, _MANY_ROUNDS = (0.002,) * 3, (0.002, 0.002, 0.002, 0.008, 0.02, 0.05, 0.02, 0.008)
"""The warmth of each start."""


_SIMULATED = 12
"""Orders of different times whose simulation may be looked at: messages that queue can turn their order around."""


@dataclass(frozen=True)
class Search:
    """What is looked for, how hard, and when to stop.

    Attributes:
        objective: "makespan", from 0 to the last end; or "span", the longest time from a rank's first start to its
            last end, for steps that no barrier ends.
        effort: how much is tried; 2 tries about twice as much as 1.
        gap: enough is found within this share of the lower bound, e.g. 0.01.
        seconds: go on until so much time has passed; what is found then depends on the machine. None: until what
            effort stands for has been tried.
        exact: seconds of the deterministic clock of OR-Tools CP-SAT (the extra `solver`) to spend on a proof; 0: none.
        seed: of all random choices.

    Raises:
        UserError: an unknown objective, or a number out of range.
    """

    objective: Objective = "makespan"
    effort: float = 1
    gap: float = 0
    seconds: float | None = None
    exact: float = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in ("makespan", "span"):
            raise UserError(f'objective={self.objective!r}; use "makespan" or "span"')
        for name in ("effort", "gap", "exact"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)}; use a number from 0 on, e.g. {name}=1")
        if self.seconds is not None and not self.seconds > 0:
            raise UserError(f"seconds={self.seconds}; use a number above 0, or leave it out")


@dataclass(frozen=True)
class Optimized:
    """What a search found.

    Attributes:
        schedule: the best order; verified.
        timeline: its simulation.
        objective: what was minimised.
        value: the schedule's seconds by it.
        lower_bound: seconds that no order of these stages beats, on any of the placements allowed.
        source: how it was found: the name of a schedule, or of a part of the search.
        named: seconds of every named schedule that fits, on its own best placement.
        proven: whether no order is better, by the bound or by the exact solver.
    """

    schedule: Schedule
    timeline: Timeline
    objective: Objective
    value: float
    lower_bound: float
    source: str
    named: dict[str, float] = field(default_factory=dict)
    proven: bool = False

    @property
    def gap(self) -> float:
        """By which share of the lower bound the schedule is above it; 0 means that no order is better."""
        return max(self.value / self.lower_bound - 1, 0) if self.lower_bound else 0.0


@dataclass
class _Candidate:
    """An order, with the seconds that it takes at least."""

    problem: Problem
    value: float
    source: str
    make: Callable[[], Schedule]


def optimize_schedule(  # the problem in five, where and how in two
    num_ranks: int,
    num_microbatches: int,
    *,
    costs: StageCosts | None = None,
    cluster: Cluster | None = None,
    memory_limit: PerStage | None = None,
    placement: Placement | Sequence[Placement] | None = None,
    search: Search | None = None,
) -> Optimized:
    """Returns the best order found for these stages and this memory, with a lower bound on all orders.

    It is never slower than a named schedule of the same placement that fits the same memory: all of them are tried.

    Args:
        num_ranks: p.
        num_microbatches: m.
        costs: seconds of F, I and W of each stage, what F keeps (`activation_bytes`) and what I keeps for W
            (`deferred_bytes`), and bytes of boundaries. None means F = I = W = 1. Where F and I keep no bytes, a
            microbatch counts 1 on each stage from its F to its W. Costs with `backward` but without
            `input_grad` and `weight_grad` are searched for orders of full backwards.
        cluster: how fast devices are and how long a boundary takes; None means that it takes no time.
        memory_limit: the most that F and I may keep on a rank at once, one number or one a rank, in the unit of
            `activation_bytes`. None means p microbatches of the rank's stages, as 1F1B keeps on rank 0.
        placement: where stages lie; of several the best is taken. None means one stage a rank.
            `penstock.optimize.placements(p, v)` gives those in use.
        search: objective, effort, when to stop.

    Raises:
        UserError: sizes below 1, costs or a cluster of another size, a memory limit under which no microbatch gets
            through, or an exact search without OR-Tools.
    """
    check_sizes("optimize_schedule", num_ranks=num_ranks, num_microbatches=num_microbatches)
    search = search or Search()
    deadline = None if search.seconds is None else time.monotonic() + search.seconds
    problems = [
        problem_of(
            each,
            num_microbatches,
            costs=costs or StageCosts(),
            cluster=cluster or Cluster.uniform(num_ranks),
            memory_limit=memory_limit,
            objective=search.objective,
        )
        for each in _allowed(placement, num_ranks)
    ]
    bounds = {id(problem): lower_bound(problem) for problem in problems}
    candidates: list[_Candidate] = []
    named: dict[str, float] = {}
    proven_bound = []
    for problem in problems:
        known = _Known(problem, bounds[id(problem)], search, deadline)
        known.run()
        candidates += known.candidates
        for name, value in known.named.items():
            named[name] = min(value, named.get(name, value))
        proven_bound.append(known.bound)
    return _best(candidates, min(proven_bound), search.objective, named)


def _allowed(placement: Placement | Sequence[Placement] | None, num_ranks: int) -> list[Placement]:
    if placement is None:
        return [Placement.looped(num_ranks)]
    several = [placement] if isinstance(placement, Placement) else list(placement)
    if not several:
        raise UserError("placement=[]; give at least one, or None for one stage a rank")
    for each in several:
        if each.num_ranks != num_ranks:
            raise UserError(f"the placement is of {each.num_ranks} ranks; num_ranks={num_ranks}")
    return several


class _Known:
    """What is known of one problem: orders found so far, and the bound."""

    def __init__(self, problem: Problem, bound: float, search: Search, deadline: float | None) -> None:
        self.problem, self.bound, self.search, self.deadline = problem, bound, search, deadline
        self.found: list[Found] = []
        self.candidates: list[_Candidate] = []
        self.named: dict[str, float] = {}
        self.num_ops = int(problem.lengths.sum())

    def run(self) -> None:
        self.add_named(slow=False)
        policies = self.add_policies()
        self.add_pattern()
        if self.gap() > (0.01 if self.num_ops > _MANY else 0):
            self.add_named(slow=True)
        self.refine(policies)
        self.anneal()
        if self.search.exact and not self.enough():
            self.solve()
        while self.deadline is not None and not self.enough():
            self.search = replace(self.search, seed=self.search.seed + 1)
            self.anneal()
        others = {found.value: found for found in sorted(self.found, key=lambda found: -found.value)}
        for value in sorted(others)[: _SIMULATED if self.num_ops <= _MANY else 1]:
            self.add_candidate(others[value], self.schedule(others[value]))

    def best(self) -> Found:
        return min(self.found, key=lambda found: found.value)

    def gap(self) -> float:
        return self.best().value / self.bound - 1 if self.bound else 0.0

    def enough(self) -> bool:
        late = self.deadline is not None and time.monotonic() > self.deadline
        return late or self.gap() <= max(self.search.gap, 1e-12)

    def tries(self, ops: float, *, least: int = 1) -> int:
        """Returns how many orders of this size a budget of ops stands for."""
        return max(int(ops * self.search.effort * _SPEED / self.num_ops), least)

    def schedule(self, found: Found) -> Callable[[], Schedule]:
        problem = self.problem
        return lambda: schedule_of("optimized", problem.placement, problem.num_microbatches, found.words, found.lengths)

    def add_candidate(self, found: Found, make: Callable[[], Schedule]) -> None:
        self.candidates.append(_Candidate(self.problem, found.value, found.source, make))

    def add_named(self, *, slow: bool, registered: bool = True) -> None:
        problem = self.problem
        for name, schedule in named_schedules(problem, slow=slow, registered=registered):
            words = words_of(schedule)
            value = None if words is None else time_of(problem, *words)
            if words is None or value is None:
                value = _measured(simulate(schedule, problem.costs, problem.cluster), problem.objective)
            else:
                self.found.append(Found(*words, value, name))
            self.named[name] = value
            self.candidates.append(_Candidate(problem, value, name, partial(_itself, schedule)))

    def add_policies(self) -> list[tuple[Policy, Found]]:
        """Times the grid; returns its best three."""
        tried = list(islice(grid(self.problem), self.tries(_GRID_OPS, least=24)))
        tried.sort(key=lambda pair: pair[1].value)
        self.found += [found for _, found in tried[:3]]
        return tried[:3]

    def add_pattern(self) -> None:
        """Solves the problem for fewer microbatches, and repeats what goes on in the middle."""
        fewer = 4 * self.problem.num_ranks
        if self.enough() or 2 * self.problem.num_microbatches < 3 * fewer:
            return
        small = replace(self.problem, num_microbatches=fewer)
        known = _Known(small, lower_bound(small), replace(self.search, exact=0, seconds=None), self.deadline)
        known.add_named(slow=True, registered=False)
        known.refine(known.add_policies())
        known.anneal()
        for found in sorted(known.found, key=lambda found: found.value)[:4]:
            again = repeated(small, found, self.problem)
            if again is not None:
                self.found.append(again)

    def refine(self, policies: list[tuple[Policy, Found]]) -> None:
        for number, (policy, found) in enumerate(policies[:2]):
            if self.enough():
                return
            steps = min(self.tries(_REFINED_OPS), int(300 * max(self.search.effort, 1)))
            seed = 2 * self.search.seed + number
            self.found.append(refined(self.problem, policy, found, steps=steps, seed=seed, goal=self.bound))

    def anneal(self) -> None:
        """Improves the best three orders that differ, one after another."""
        starts: list[Found] = []
        for found in sorted(self.found, key=lambda found: found.value):
            if all(found.value != other.value for other in starts):
                starts.append(found)
        starts = starts[:3]
        rounds = _FEW_ROUNDS if self.num_ops > _SMALL else _MANY_ROUNDS
        for number, warmth in enumerate(rounds):
            if self.enough():
                return
            steps = min(self.tries(_ANNEALED_OPS / len(rounds)), int(30_000 * max(self.search.effort, 1)))
            self.found.append(
                annealed(
                    self.problem,
                    starts[number % len(starts)],
                    steps=steps,
                    seed=7919 * (len(rounds) * self.search.seed + number) + 1,
                    goal=self.bound * (1 + self.search.gap),
                    warmth=warmth,
                )
            )

    def solve(self) -> None:
        best = self.best()
        exact = solved(self.problem, best, seconds=self.search.exact, seed=self.search.seed)
        self.bound = max(self.bound, min(exact.bound, best.value))
        if exact.found is not None and exact.found.value < best.value:
            value = time_of(self.problem, exact.found.words, exact.found.lengths)
            if value is not None:
                self.found.append(exact.found._replace(value=value))


def _measured(timeline: Timeline, objective: Objective) -> float:
    return timeline.makespan if objective == "makespan" else timeline.per_rank_span


def _best(candidates: list[_Candidate], bound: float, objective: Objective, named: dict[str, float]) -> Optimized:
    """Returns the candidate that is best when simulated: messages may take longer there than a mere delay."""
    best: Optimized | None = None
    for candidate in sorted(candidates, key=lambda candidate: candidate.value):
        if best is not None and candidate.value >= best.value * (1 - 1e-12):
            break
        proof = verify(candidate.make())
        timeline = simulate(proof.program, candidate.problem.costs, candidate.problem.cluster)
        value = _measured(timeline, objective)
        if best is None or value < best.value:
            schedule = proof.program.schedule
            best = Optimized(schedule, timeline, objective, value, bound, candidate.source, named)
    if best is None:
        raise RuntimeError("a search without candidates: list scheduling always has one")
    return replace(best, proven=best.gap <= 1e-9)


def _itself(schedule: Schedule) -> Schedule:
    return schedule
