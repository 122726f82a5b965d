"""The schedule search against its claims: proven optima, named schedules, the lower bound, and the clock.

    python benchmarks/optimize.py            all of it, some minutes
    python benchmarks/optimize.py --quick    a tenth of the random instances

Every figure is of the default effort without a time limit, so that it comes out the same on every machine but for
the seconds.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from random import Random

import numpy as np

import penstock as ps
from penstock.optimize import Problem, lower_bound, placements, problem_of
from penstock.optimize.exact import solved

PUBLISHED = Path(__file__).parent.parent / "tests" / "reference" / "optimal_small.json"


def published() -> None:
    """Counts the instances of the literature's solver on which the search reaches the optimum."""
    equal = below = total = 0
    for row in json.loads(PUBLISHED.read_text())["rows"]:
        costs = ps.StageCosts(
            row["T_F"], row["T_B"], row["T_W"], activation_bytes=row["M_B"], deferred_bytes=row["M_W"]
        )
        cluster = ps.Cluster.uniform(row["p"], latency_seconds=row["T_comm"])
        for objective in ("makespan", "span"):
            known = row[f"cp_{objective}"]
            found = ps.optimize_schedule(
                row["p"],
                row["m"],
                costs=costs,
                cluster=cluster,
                memory_limit=row["M_limit"],
                search=ps.Search(objective=objective),
            )
            total += 1
            equal += found.value <= known["value"]
            below += found.lower_bound >= known["value"]
    print(f"published small instances: {equal} of {total} at the best known; the bound alone proves {below}")


def random_problem(random: Random) -> Problem:
    p, m = random.choice(((2, 3), (2, 4), (2, 5), (3, 3), (3, 4), (3, 5), (4, 4)))
    chunks = 2 if p == 2 and random.random() < 0.3 else 1
    placement = random.choice(list(placements(p, chunks).values()))
    seconds = [[random.randint(2, 9) for _ in range(p * chunks)] for _ in range(3)]
    costs = ps.StageCosts(*seconds, activation_bytes=2, deferred_bytes=random.choice((1, 2)))
    return problem_of(
        placement,
        m,
        costs=costs,
        cluster=ps.Cluster.uniform(p, latency_seconds=random.choice((0, 1, 2))),
        memory_limit=2 * chunks * random.uniform(p * 0.75, 2 * p),
        objective=random.choice(("makespan", "span")),
    )


def random_small(count: int) -> None:
    """Counts random instances that the exact solver proves, and those on which the search is as good."""
    random, proven, equal, worst, tight = Random(0), 0, 0, 0.0, 0
    for _ in range(count):
        problem = random_problem(random)
        exact = solved(problem, None, seconds=20, seed=0)
        found = ps.optimize_schedule(
            problem.num_ranks,
            problem.num_microbatches,
            costs=problem.costs,
            cluster=problem.cluster,
            memory_limit=tuple(problem.limit.tolist()),
            placement=problem.placement,
            search=ps.Search(objective=problem.objective),
        )
        if not exact.proven or exact.found is None:
            continue
        if lower_bound(problem) > exact.found.value + 1e-9:
            raise SystemExit(f"the lower bound {lower_bound(problem)} is above the optimum {exact.found.value}")
        proven += 1
        equal += found.value <= exact.found.value + 1e-9
        tight += lower_bound(problem) >= exact.found.value - 1e-9
        worst = max(worst, found.value / exact.found.value - 1)
    print(
        f"random small instances: {proven} of {count} proven by CP-SAT; {equal} ({equal / proven:.1%}) at the optimum, "
        f"the worst {worst:.2%} above it; the bound equals the optimum on {tight / proven:.0%}"
    )


def uniform() -> None:
    """Prints the gap for equal stages at m >= 2p and twice the memory of 1F1B."""
    worst = 0.0
    for p, m in ((2, 4), (4, 8), (4, 16), (8, 16), (8, 32), (8, 64), (16, 32)):
        for seconds in ((1, 1, 1), (5, 6, 4), (2, 2, 1), (1, 1, 2)):
            for objective in ("makespan", "span"):
                costs = ps.StageCosts(*seconds)
                search = ps.Search(objective=objective)
                found = ps.optimize_schedule(p, m, costs=costs, memory_limit=2 * p, search=search)
                worst = max(worst, found.gap)
    print(f"equal stages, m ≥ 2p, memory 2p·M: at most {worst:.3%} above the lower bound over 56 cases")


def uneven(count: int) -> None:
    """Prints what the search gains on stages that differ by 30 % either way."""
    for objective in ("makespan", "span"):
        gains, gaps = [], []
        for seed in range(count):
            random = Random(seed)
            seconds = [[random.uniform(0.7, 1.3) for _ in range(8)] for _ in range(3)]
            found = ps.optimize_schedule(8, 32, costs=ps.StageCosts(*seconds), search=ps.Search(objective=objective))
            gains.append(1 - found.value / min(found.named.values()))
            gaps.append(found.gap)
        print(
            f"uneven stages, ±30 %, p=8 m=32, memory as 1F1B, {objective}: {statistics.mean(gains):.2%} less than the "
            f"best named on the mean of {count} (least {min(gains):.2%}, most {max(gains):.2%}); mean gap to the bound "
            f"{statistics.mean(gaps):.2%}"
        )


def clock() -> None:
    """Prints how long a search takes."""
    for p, m, chunks in ((8, 64, 1), (8, 64, 2), (32, 256, 1)):
        random = Random(p)
        seconds = [[random.uniform(0.7, 1.3) for _ in range(p * chunks)] for _ in range(3)]
        begin, used = time.perf_counter(), time.process_time()
        found = ps.optimize_schedule(
            p, m, costs=ps.StageCosts(*seconds), placement=list(placements(p, chunks).values())
        )
        wall, used = time.perf_counter() - begin, time.process_time() - used
        print(
            f"p={p} m={m} v={chunks}, uneven: {wall:.2f} s ({used:.2f} s of CPU), gap {found.gap:.2%}, found by "
            f"{found.source}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    ps.optimize_schedule(3, 6, costs=ps.StageCosts([1, 2, 1], np.pi, 1))  # compiles
    print(f"python {platform.python_version()}, penstock {ps.__version__}")
    published()
    random_small(30 if quick else 300)
    uniform()
    uneven(5 if quick else 50)
    clock()
