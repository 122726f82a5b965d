"""What a search is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.errors import UserError
from penstock.ir.schedule import Schedule
from penstock.optimize.problem import Objective
from penstock.timeline import Timeline


@dataclass(frozen=True)
class Search:
    """What is looked for, how hard, and when to stop.

    Attributes:
        objective: "makespan", from 0 to the last end; or "span", the longest time from a rank's first start to its
            last end, for steps that no barrier ends.
        effort: how much is tried; 2 tries about twice as much as 1.
        gap: enough is found within this share of the lower bound, e.g. 0.01.
        seconds: stop, or go on, until so much time is spent, by a clock that counts what is tried at the pace of a core
            of today: the same call finds the same order on every machine, and takes about so long. None: until what
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

    @property
    def reason(self) -> str:
        """In a line: what was found, how far from the bound, and against which named schedule."""
        proof = f"{self.gap:.2%} above what no order of these stages beats"
        if self.proven:
            proof = "no order of these stages is faster"
        fastest = min(self.named, key=lambda name: self.named[name], default=None)
        if fastest is None:
            against = "no named schedule fits the memory"
        elif self.source == fastest:
            against = f"no other of {len(self.named)} named schedules that fit the memory takes less"
        else:
            more = self.named[fastest] / self.value - 1 if self.value else 0.0
            longer = f"{more:.2%} more" if more >= 5e-5 else "as long"
            against = f"{fastest}, the best of {len(self.named)} named that fit the memory, takes {longer}"
        return f"{self.objective} {self.value:.6g}, found by {self.source}, {proof}; {against}"
