"""The search: named schedules, list scheduling, patterns, local search and, where asked for, the exact solver.

    named schedules that fit ──┐
    a grid of policies ────────┼─> the best few ──> local search ──> (exact solver) ──> simulated, the best returned
    a pattern found for fewer ─┘                        ^
    microbatches, repeated                          stops at the lower bound

How much is tried is counted in ops timed, not in seconds, so that the same call gives the same schedule everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import UserError
from penstock.ir.placement import Placement
from penstock.optimize.known import Candidate, Known, measured
from penstock.optimize.problem import Objective, problem_of
from penstock.optimize.result import Optimized, Search
from penstock.schedules.sizes import check_sizes
from penstock.simulator import simulate
from penstock.verifier import verify


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

    It is never slower than a named schedule of the same placement that fits the same memory: all of them are tried,
    those that search themselves unless what is found without them is within the gap that `search` asks for. They take
    about 0.1 ms an op, so that of 100,000 ops on a search takes as long as they do.

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
    known = [Known(problem, search) for problem in problems]
    _improve(known, search)
    candidates = [candidate for each in known for candidate in each.candidates()]
    named: dict[str, float] = {}
    for each in known:
        for name, value in each.named.items():
            named[name] = min(value, named.get(name, value))
    return _best(candidates, min(each.bound for each in known), search.objective, named)


def _improve(known: list[Known], search: Search) -> None:
    """Searches every problem in turn, the one of the least bound first; those that cannot win any more are left out.

    Where messages queue, an order may take longer than it was timed at: then none is left out.
    """
    for each in known:
        each.add_named(slow=False)
    best = float("inf")
    for number, each in enumerate(sorted(known, key=lambda each: each.bound)):
        if each.bound >= best and not each.problem.queues:
            continue
        left = None
        if search.seconds is not None:
            left = (search.seconds - sum(one.spent for one in known)) / (len(known) - number)
        each.improve(left)
        best = min(best, each.best().value)


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


def _best(candidates: list[Candidate], bound: float, objective: Objective, named: dict[str, float]) -> Optimized:
    """Returns the candidate that is best when simulated: messages may take longer there than a mere delay."""
    best: Optimized | None = None
    for candidate in sorted(candidates, key=lambda candidate: candidate.value):
        if best is not None and candidate.value >= best.value * (1 - 1e-12):
            break
        proof = verify(candidate.make())
        timeline = simulate(proof.program, candidate.problem.costs, candidate.problem.cluster)
        value = measured(timeline, objective)
        if best is None or value < best.value:
            schedule = proof.program.schedule
            best = Optimized(schedule, timeline, objective, value, bound, candidate.source, named)
    if best is None:
        raise RuntimeError("a search without candidates: list scheduling always has one")
    return replace(best, proven=best.gap <= 1e-9)
