"""PipeDream's partitions of its own published profiles, found again.

    python benchmarks/pipedream.py --profiles DIR --published FILE

The profiles are <model>.graph.txt, as in github.com/msr-fiddle/pipedream (profiler/*/profiles/*/graph.txt); they are no
part of this repository. FILE is JSON: pipedream_partitions.rows with model, machines, bandwidth_Bps, straight,
activation_compression_ratio, pipeline_s and levels, as PipeDream's optimizer prints them.

Several partitions are often the best. PipeDream takes the first that it meets, in the order of a hash set; so where the
stages differ, the published ones are timed by the same recurrence here. Where branches run side by side, stages are
published by the numbers of states, and of their order only that is known that it is topological: a state comes behind
those that it contains. Then an order is looked for in which the published stages take the published time.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from penstock.partition import Graph, Level, pipedream_partition

_NODE = re.compile(
    r"forward_compute_time=(?P<forward>[^,]+), backward_compute_time=(?P<backward>[^,]+), "
    r"activation_size=(?P<output>\[.*?\]|[^,]+), parameter_size=(?P<weights>\S+)"
)


def graph_of(path: Path) -> Graph:
    """Returns the operators of a profile, without its inputs and the parts of outputs that nobody takes."""
    nodes: dict[str, tuple[str, float, float, float]] = {}
    edges = []
    for line in path.read_text().splitlines():
        if line.startswith("\t"):
            edges.append(tuple(line.strip().split(" -- ")))
        elif found := _NODE.search(line):
            name, kind = line.split(" -- ")[:2]
            seconds = (float(found["forward"]) + float(found["backward"])) / 1000
            output = sum(float(part) for part in found["output"].strip("[]").split(";"))
            nodes[name] = (kind, seconds, output, float(found["weights"]))
    makers, takers = {maker for maker, _ in edges}, {taker for _, taker in edges}
    for name, (kind, *_) in list(nodes.items()):
        unread = kind.startswith("__getitem__") and name not in makers
        if unread or (kind.startswith("Input") and name not in takers):
            del nodes[name]
    names = sorted(nodes, key=lambda name: int(name.removeprefix("node")))
    at = {name: index for index, name in enumerate(names)}
    kept = sorted((at[maker], at[taker]) for maker, taker in edges if maker in at and taker in at)
    columns = list(zip(*(nodes[name][1:] for name in names), strict=True))
    return Graph(columns[0], columns[1], columns[2], tuple(kept))


class Facts(NamedTuple):
    """States of a graph, in each the seconds and parameters of what has run, and the bytes of its boundary."""

    states: list[frozenset[int]]
    seconds: list[float]
    parameters: list[float]
    sent: list[float]

    @staticmethod
    def of(graph: Graph, *, free: bool) -> Facts:
        """Returns the facts; of `free` boundaries that they have no bytes."""
        states = graph.states()
        sums = [[sum(row[o] for o in state) for state in states] for row in (graph.seconds, graph.parameter_bytes)]
        return Facts(states, *sums, [0.0 if free else graph.sent_by_antichain(state) for state in states])


def seconds_of(facts: Facts, levels: Sequence[Level], published: Sequence[Any], at: Mapping[int, int]) -> float | None:
    """Returns what published stages take by the recurrence; None where they do not follow one another.

    `at` gives of a state's published number its index here.
    """
    states, sums = facts.states, (facts.seconds, facts.parameters)
    sent = {number: facts.sent[index] for number, index in at.items()}

    def between(row: list[float], first: int, last: int) -> float:
        return row[at[last - 1]] - (row[at[first - 1]] if first else 0.0)

    stages = {level: [tuple(stage) for stage in found["stages"]] for level, found in enumerate(reversed(published))}

    def timed(level: int, first: int, last: int) -> float | None:
        """Returns what states `first` to `last - 1` take on a machine of `level`."""
        if level < 0:
            return between(sums[0], first, last)
        mine = []
        while not mine or mine[-1][1] < last:
            if not stages[level] or stages[level][0][0] != (mine[-1][1] if mine else first):
                return None
            mine.append(stages[level].pop(0))
        slowest, rate = 0.0, levels[level].bytes_per_second
        for number, (begin, end, count) in enumerate(mine):
            inside = timed(level - 1, begin, end)
            if inside is None:
                return None
            machines = levels[level - 1].machines if level and not number else 1
            exchange = 4 * (count - 1) * between(sums[1], begin, end) / (rate * count) / machines
            slowest = max(slowest, (inside + exchange) / count)
            if number:
                ends = sent[end - 1] if end < len(states) else 0.0
                slowest = max(slowest, 2 * max(sent[begin - 1], ends) / (rate * count))
        return slowest

    return timed(len(levels) - 1, 0, len(states))


def renumbered(
    facts: Facts, published: Sequence[Any], levels: Sequence[Level], seconds: float
) -> Iterator[dict[int, int]]:
    """Yields which states may have the published numbers, numbered in a topological order: number -> index.

    The stages take `seconds` then. Left out early are those with a stage that computes for longer on its machines, and
    those with a boundary that takes longer.
    """
    states = facts.states
    before = [sum(other < state for other in states) for state in states]
    behind = [sum(other > state for other in states) for state in states]
    most = {}
    for first, last, count in published[-1]["stages"]:
        above = [stage[2] for level in published[:-1] for stage in level["stages"] if stage[0] <= first < stage[1]]
        most[last - 1] = seconds * count * prod(above) * (1 + 1e-9)

    inner = published[-1]["stages"]
    widest = {
        stage[1] - 1: min(stage[2] if number else after[2], after[2])
        * levels[0].bytes_per_second
        * seconds
        / 2
        * (1 + 1e-9)
        for number, (stage, after) in enumerate(pairwise(inner))
    }

    def extended(chosen: dict[int, int], left: Sequence[int]) -> Iterator[dict[int, int]]:
        if not left:
            taken = seconds_of(facts, levels, published, chosen)
            if taken is not None and abs(taken / seconds - 1) < 1e-12 and order_with(states, chosen) is not None:
                yield chosen
            return
        number, *others = left
        last = chosen[max(chosen)] if chosen else None
        for index, state in enumerate(states):
            fits = before[index] <= number < len(states) - behind[index]
            if not fits or (last is not None and not states[last] < state):
                continue
            wide = len(levels) == 1 and others and facts.sent[index] > widest[number]
            if not wide and facts.seconds[index] - (0.0 if last is None else facts.seconds[last]) <= most[number]:
                yield from extended({**chosen, number: index}, others)

    return extended({}, sorted(most))


def order_with(states: Sequence[frozenset[int]], fixed: Mapping[int, int]) -> list[int] | None:
    """Returns a topological order of the states with those of `fixed` at their numbers; None where there is none.

    Jobs of length 1 on one machine, each with the earliest and the latest place that its neighbours leave it: the one
    that is due first goes first, which finds an order wherever there is one.
    """
    count = len(states)
    first, due = [0] * count, [count - 1] * count
    for number, index in fixed.items():
        first[index] = due[index] = number
    by_size = sorted(range(count), key=lambda index: len(states[index]))
    for index in by_size:
        first[index] = max([first[index], *(first[o] + 1 for o in range(count) if states[o] < states[index])])
    for index in reversed(by_size):
        due[index] = min([due[index], *(due[o] - 1 for o in range(count) if states[o] > states[index])])
    order: list[int] = []
    left = set(range(count))
    for number in range(count):
        ready = [index for index in left if first[index] <= number]
        chosen = min(ready, key=lambda index: (due[index], len(states[index])), default=None)
        if chosen is None or due[chosen] < number:
            return None
        order.append(chosen)
        left.remove(chosen)
    return order


def explained(facts: Facts, levels: Sequence[Level], row: Mapping[str, Any]) -> str:
    """Returns what the published stages are where they are not those found here."""
    theirs = seconds_of(facts, levels, row["levels"], {number: number for number in range(len(facts.states))})
    if theirs is not None and abs(theirs / row["pipeline_s"] - 1) < 1e-12:
        return "others that take as long"
    at = next(renumbered(facts, row["levels"], levels, row["pipeline_s"]), None)
    if at is None:
        return "others"
    sizes = [len(facts.states[at[number]]) for number in sorted(at)]
    stages = ", ".join(str(last - first) for first, last in pairwise([0, *sizes]))
    return f"as long in another order of the states: {stages} operators"


def main() -> None:
    """Prints a line a published row, and how many of them come out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--published", type=Path, required=True)
    options = parser.parse_args()
    rows = json.loads(options.published.read_text())["pipedream_partitions"]["rows"]
    graphs = {model: graph_of(options.profiles / f"{model}.graph.txt") for model in {row["model"] for row in rows}}
    times = same = ties = orders = 0
    print(f"{'model':<9}{'machines':<36}{'published':>12}{'here':>12}  stages")
    for row in rows:
        levels = [Level(*pair) for pair in zip(row["machines"], row["bandwidth_Bps"], strict=True)]
        free, graph = row["activation_compression_ratio"] is None, graphs[row["model"]]
        found = pipedream_partition(
            graph, levels, replicate=not row["straight"], boundaries="free" if free else "antichain"
        )
        equal = abs(found.seconds / row["pipeline_s"] - 1) < 1e-12
        alike = [[list(stage) for stage in level] for level in found.levels] == [
            level["stages"] for level in row["levels"]
        ]
        told = "the same" if alike else explained(Facts.of(graph, free=free), levels, row)
        ties += told == "others that take as long"
        orders += told.startswith("as long in another order")
        times, same = times + equal, same + alike
        print(f"{row['model']:<9}{row['config']:<36}{row['pipeline_s']:>12.8f}{found.seconds:>12.8f}  {told}")
    print(f"{times} of {len(rows)} have the published time, to 12 digits")
    print(f"of these {same} the published stages, {ties} others beside which the published ones take as long,")
    print(f"and {orders} others beside which they take as long where the states, which branch, have another order")


if __name__ == "__main__":
    main()
