"""PipeDream's partitions of its own published profiles, found again.

    python benchmarks/pipedream.py --profiles DIR --published FILE

The profiles are <model>.graph.txt, as in github.com/msr-fiddle/pipedream (profiler/*/profiles/*/graph.txt); they are no
part of this repository. FILE is JSON: pipedream_partitions.rows with model, machines, bandwidth_Bps, straight,
activation_compression_ratio, pipeline_s and levels, as PipeDream's optimizer prints them.

Several partitions are often the best. PipeDream takes the first that it meets, in the order of a hash set; so where the
stages differ, the published ones are timed by the same recurrence here. Where branches run side by side, stages are
published by the numbers of states in an order that is not, and only times can be compared.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

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


def seconds_of(graph: Graph, levels: Sequence[Level], published: Sequence[Any], *, free: bool) -> float | None:
    """Returns what published stages take by the recurrence; None where they are none of this graph's states."""
    states = graph.states()
    sums = [[sum(row[o] for o in state) for state in states] for row in (graph.seconds, graph.parameter_bytes)]
    sent = [0.0 if free else graph.sent_by_antichain(state) for state in states]

    def between(row: list[float], first: int, last: int) -> float:
        return row[last - 1] - (row[first - 1] if first else 0.0)

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


def main() -> None:
    """Prints a line a published row, and how many of them come out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--published", type=Path, required=True)
    options = parser.parse_args()
    rows = json.loads(options.published.read_text())["pipedream_partitions"]["rows"]
    graphs = {model: graph_of(options.profiles / f"{model}.graph.txt") for model in {row["model"] for row in rows}}
    times = same = ties = 0
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
        told = "the same" if alike else "others"
        if not alike:
            states = graph.states()
            branches = any(not earlier < later for earlier, later in pairwise(states))
            theirs = seconds_of(graph, levels, row["levels"], free=free)
            tie = theirs is not None and abs(theirs / found.seconds - 1) < 1e-12
            ties += tie
            told = "others that take as long" if tie else "numbered otherwise" if branches else "others"
        times, same = times + equal, same + alike
        print(f"{row['model']:<9}{row['config']:<36}{row['pipeline_s']:>12.8f}{found.seconds:>12.8f}  {told}")
    print(f"{times} of {len(rows)} have the published time, to 12 digits")
    print(f"of these {same} the published stages, and {ties} others beside which the published ones take as long")


if __name__ == "__main__":
    main()
