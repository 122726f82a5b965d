"""What is known of one problem while it is searched: the orders found, and the bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from penstock.ir.schedule import Schedule
from penstock.optimize.anneal import annealed
from penstock.optimize.bound import lower_bound
from penstock.optimize.dispatch import Policy
from penstock.optimize.exact import solved
from penstock.optimize.policies import Found, grid, refined
from penstock.optimize.problem import Objective, Problem
from penstock.optimize.repetition import repeated, time_of
from penstock.optimize.result import Search
from penstock.optimize.seeds import named_schedules
from penstock.simulator import simulate
from penstock.simulator.jit import COMPILED
from penstock.simulator.orders import schedule_of, words_of
from penstock.timeline import Timeline

_SPEED = 1 if COMPILED else 1 / 100
"""How much is tried, beside what compiled loops try."""

_GRID_OPS, _REFINED_OPS, _ANNEALED_OPS = 6_000_000, 1_000_000, 60_000_000
"""Ops timed by a search of effort 1: by the grid, by the steps from its best, by local search."""

_FEW_SHARE = 2 / 3
"""What large sizes have of local search: started at a warmth that suits each start, it needs no more."""

_MANY = 20_000
"""From so many ops on, only the fastest order is simulated."""

_SMALL = 1_000
"""Up to so many ops local search starts more often, and warmer: better orders lie further away, and steps are cheap."""

_FEW_ROUNDS, _MANY_ROUNDS = (0.0002, 0.0005, 0.002), (0.002, 0.002, 0.002, 0.008, 0.02, 0.05, 0.02, 0.008)
"""The warmth of each start. Of large sizes the best order starts coolest: warmer, it only got worse."""

_PATTERN = 4
"""Microbatches a rank for which a pattern is looked for."""

_SECONDS_AN_OP = {"named": 4e-6, "searching": 1.5e-4, "policy": 1e-7, "move": 1.2e-8}
"""What it takes to make and time an op of a named schedule, by a policy, in a move of local search: the clock that
`Search.seconds` is told by. It counts what is tried, so that no machine finds anything else."""

_SIMULATED = 12
"""Orders of different times whose simulation may be looked at: messages that queue can turn their order around."""


@dataclass
class Candidate:
    """An order, with the seconds that it takes at least."""

    problem: Problem
    value: float
    source: str
    make: Callable[[], Schedule]


class Known:
    """What is known of one problem: orders found so far, and the bound."""

    def __init__(self, problem: Problem, search: Search) -> None:
        self.problem, self.search = problem, search
        self.bound = lower_bound(problem)
        self.spent, self.allowed = 0.0, float("inf")
        self.found: list[Found] = []
        self.named: dict[str, float] = {}
        self._whole: list[Candidate] = []
        self.num_ops = int(problem.lengths.sum())

    def improve(self, seconds: float | None) -> None:
        """Looks for better orders than the named ones, until enough has been tried or so many seconds are spent."""
        goes_on = seconds is not None
        self.allowed = float("inf") if seconds is None else self.spent + seconds
        policies = self.add_policies()
        self.add_pattern()
        if self.gap() > max(self.search.gap, 1e-12):
            self.add_named(slow=True)
        self.refine(policies)
        self.anneal()
        if self.search.exact and not self.enough():
            self.solve()
        while goes_on and not self.enough():
            self.search = replace(self.search, seed=self.search.seed + 1)
            self.anneal()

    def candidates(self) -> list[Candidate]:
        """Returns the orders whose simulation is worth a look."""
        others = {found.value: found for found in sorted(self.found, key=lambda found: -found.value)}
        chosen = [others[value] for value in sorted(others)[: _SIMULATED if self.num_ops <= _MANY else 1]]
        made = [Candidate(self.problem, found.value, found.source, self.schedule(found)) for found in chosen]
        return [*self._whole, *made]

    def best(self) -> Found:
        """Returns the fastest order found."""
        return min(self.found, key=lambda found: found.value)

    def gap(self) -> float:
        """Returns by which share of the bound that is above it."""
        return self.best().value / self.bound - 1 if self.bound else 0.0

    def enough(self) -> bool:
        """Whether the gap is small enough, or the seconds are spent."""
        return self.spent >= self.allowed or self.gap() <= max(self.search.gap, 1e-12)

    @property
    def repeats(self) -> bool:
        """Whether there are so many microbatches that a pattern found for fewer repeats."""
        return 2 * self.problem.num_microbatches >= 3 * _PATTERN * self.problem.num_ranks

    def tries(self, ops: float, way: str, *, least: int = 1) -> int:
        """Returns how many orders of this size a budget of ops stands for, no more than the seconds allow."""
        count = max(int(ops * self.search.effort * _SPEED / self.num_ops), least)
        left = (self.allowed - self.spent) / (_SECONDS_AN_OP[way] / _SPEED * self.num_ops)
        return count if left >= count else max(int(left), 1)

    def spend(self, way: str, count: int) -> None:
        """Counts so many orders that were tried."""
        slower = _SPEED if way in ("policy", "move") else 1
        self.spent += count * self.num_ops * _SECONDS_AN_OP[way] / slower

    def schedule(self, found: Found) -> Callable[[], Schedule]:
        """Returns what makes the schedule of an order."""
        problem = self.problem
        return lambda: schedule_of("optimized", problem.placement, problem.num_microbatches, found.words, found.lengths)

    def add_named(self, *, slow: bool, registered: bool = True) -> None:
        """Times the named schedules; for the arguments see `named_schedules`."""
        problem = self.problem
        for name, schedule in named_schedules(problem, slow=slow, registered=registered):
            words = words_of(schedule)
            value = None if words is None else time_of(problem, *words)
            if words is None or value is None:
                value = measured(simulate(schedule, problem.costs, problem.cluster), problem.objective)
            else:
                self.found.append(Found(*words, value, name))
            self.spend("searching" if slow else "named", 1)
            self.named[name] = value
            self._whole.append(Candidate(problem, value, name, partial(_itself, schedule)))

    def add_policies(self) -> list[tuple[Policy, Found]]:
        """Times the grid; returns its best three."""
        tried = list(islice(grid(self.problem), self.tries(_GRID_OPS, "policy", least=24)))
        self.spend("policy", len(tried))
        tried.sort(key=lambda pair: pair[1].value)
        self.found += [found for _, found in tried[:3]]
        return tried[:3]

    def add_pattern(self) -> None:
        """Solves the problem for fewer microbatches, and repeats what goes on in the middle."""
        if self.enough() or not self.repeats:
            return
        small = replace(self.problem, num_microbatches=_PATTERN * self.problem.num_ranks)
        # With one stage a rank half is enough: local search behind it finds as much again.
        share = 0.5 if self.problem.placement.num_chunks == 1 else 1.0
        known = Known(small, replace(self.search, exact=0, seconds=None, effort=self.search.effort * share))
        known.allowed = (self.allowed - self.spent) / 2  # the other half is for what comes of it
        known.add_named(slow=True, registered=False)
        known.refine(known.add_policies())
        known.anneal()
        for found in sorted(known.found, key=lambda found: found.value)[:4]:
            again = repeated(small, found, self.problem)
            if again is not None:
                self.found.append(again)
        self.spent += known.spent

    def refine(self, policies: list[tuple[Policy, Found]]) -> None:
        """Improves the best two of these policies."""
        for number, (policy, found) in enumerate(policies[:2]):
            if self.enough():
                return
            steps = min(self.tries(_REFINED_OPS, "policy"), int(300 * max(self.search.effort, 1)))
            self.spend("policy", steps)
            seed = 2 * self.search.seed + number
            self.found.append(refined(self.problem, policy, found, steps=steps, seed=seed, goal=self.bound))

    def anneal(self) -> None:
        """Improves the best three orders that differ, one after another."""
        starts: list[Found] = []
        for found in sorted(self.found, key=lambda found: found.value):
            if all(found.value != other.value for other in starts):
                starts.append(found)
        starts = starts[:3]
        small = self.num_ops <= _SMALL
        rounds = _MANY_ROUNDS if small else _FEW_ROUNDS
        ops = _ANNEALED_OPS * (1 if small else _FEW_SHARE) / len(rounds)
        if self.repeats and self.problem.placement.num_chunks > 1:
            ops /= 2  # the pattern has had its share; with several stages a rank little more was ever found behind it
        for number, warmth in enumerate(rounds):
            if self.enough():
                return
            steps = min(self.tries(ops, "move"), int(30_000 * max(self.search.effort, 1)))
            self.spend("move", steps)
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
        """Spends what `exact` allows on a proof."""
        best = self.best()
        exact = solved(self.problem, best, seconds=self.search.exact, seed=self.search.seed)
        self.bound = max(self.bound, min(exact.bound, best.value))
        if exact.found is not None and exact.found.value < best.value:
            value = time_of(self.problem, exact.found.words, exact.found.lengths)
            if value is not None:
                self.found.append(exact.found._replace(value=value))


def measured(timeline: Timeline, objective: Objective) -> float:
    """Returns what a simulation took by the objective."""
    return timeline.makespan if objective == "makespan" else timeline.per_rank_span


def _itself(schedule: Schedule) -> Schedule:
    return schedule
