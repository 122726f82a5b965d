"""PipeDream's partition: stages with replicas, over links that get slower level by level.

The model is a graph of operators. A *state* is what has run by some cut; a stage is the step from one state to a later
one. Within a level of m machines, the time between two outputs of the best pipeline from state i to state j is

    A(i, j, m) = min of   one stage on all m machines:     (T(i, j) + gradients of m replicas) / m
                          over k and m':  max of           A(i, k, m - m'),
                                                           the last stage k to j on m' machines, as above,
                                                           the boundaries at k and at j, each sent by m' machines

where T is the compute of the level's machine: of a device on the innermost level, and A of the level within on each of
the others, because a machine of a level is all machines of the level within (Narayanan et al. 2019, PipeDream,
section 3.1). A replicated stage exchanges 4 (m-1)/m times its parameters, a boundary travels both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from penstock.errors import PartitionError
from penstock.simulator.jit import jit
from penstock.simulator.orders import Floats


@dataclass(frozen=True)
class Graph:
    """Operators and who takes whose output.

    Attributes:
        seconds: of forward and backward of each operator.
        activation_bytes: its output.
        parameter_bytes: its parameters.
        edges: (operator, operator that takes its output).

    Raises:
        PartitionError: no operator, rows of different lengths, or an edge to an operator that does not exist or around
            a circle.
    """

    seconds: tuple[float, ...]
    activation_bytes: tuple[float, ...]
    parameter_bytes: tuple[float, ...]
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        count = len(self.seconds)
        if not count or len(self.activation_bytes) != count or len(self.parameter_bytes) != count:
            raise PartitionError(
                f"a graph of {count} operators with {len(self.activation_bytes)} activations and "
                f"{len(self.parameter_bytes)} parameters; give one of each an operator"
            )
        for edge in self.edges:
            if not all(0 <= end < count for end in edge):
                raise PartitionError(f"edge {edge} leaves the {count} operators; count them from 0")

    @staticmethod
    def chain(seconds: Sequence[float], activation_bytes: Sequence[float], parameter_bytes: Sequence[float]) -> Graph:
        """Returns operators one after another."""
        edges = tuple((layer, layer + 1) for layer in range(len(seconds) - 1))
        return Graph(tuple(seconds), tuple(activation_bytes), tuple(parameter_bytes), edges)

    def states(self) -> list[frozenset[int]]:
        """Returns the sets of operators that cuts leave behind, each after those that it contains.

        The first is the first operator without input. Another is reached by an operator that takes an output of what is
        there already; it brings along whatever it needs.
        """
        needs, takers = self._needs(), self._takers()
        first = next(operator for operator in range(len(self.seconds)) if not needs[operator])
        seen, waiting = {frozenset({first})}, [frozenset({first})]
        while waiting:
            state = waiting.pop()
            for taker in {taker for operator in state for taker in takers.get(operator, ())} - state:
                following = state | {taker} | needs[taker]
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return sorted(seen, key=lambda state: (len(state), sorted(state)))

    def _needs(self) -> list[frozenset[int]]:
        """Returns for each operator all that run before it."""
        makers: list[set[int]] = [set() for _ in self.seconds]
        for maker, taker in self.edges:
            makers[taker].add(maker)
        needs: list[frozenset[int]] = []
        for operator in range(len(self.seconds)):
            found: set[int] = set()
            waiting = list(makers[operator])
            while waiting:
                maker = waiting.pop()
                if maker not in found:
                    found.add(maker)
                    waiting.extend(makers[maker])
            if operator in found:
                raise PartitionError(f"operator {operator} needs its own output; a graph of operators has no circle")
            needs.append(frozenset(found))
        return needs

    def sent(self, state: frozenset[int]) -> float:
        """Returns the bytes that cross the cut behind `state`: outputs that are still needed, or lead nowhere."""
        takers = self._takers()
        return sum(
            self.activation_bytes[operator]
            for operator in state
            if not takers.get(operator) or takers[operator] - state
        )

    def sent_by_antichain(self, state: frozenset[int]) -> float:
        """Returns the bytes behind `state` as PipeDream counts them.

        Those of the antichain, the operators of the state that no other of it needs, and of whatever these need that
        has a taker elsewhere. Where branches run side by side, an output is counted whose takers have all run.
        """
        needs, takers = self._needs(), self._takers()
        antichain = state - frozenset().union(*(needs[operator] for operator in state))
        counted = set(antichain)
        for operator in antichain:
            counted.update(maker for maker in needs[operator] if takers[maker] - needs[operator] - {operator})
        return sum(self.activation_bytes[operator] for operator in counted)

    def _takers(self) -> dict[int, set[int]]:
        takers: dict[int, set[int]] = {}
        for maker, taker in self.edges:
            takers.setdefault(maker, set()).add(taker)
        return takers


Boundaries = Literal["antichain", "needed", "free"]

_SENT: dict[str, Callable[[Graph, frozenset[int]], float]] = {
    "antichain": Graph.sent_by_antichain,
    "needed": Graph.sent,
    "free": lambda graph, state: 0.0,
}


class Level(NamedTuple):
    """Equal machines joined by equal links; a machine of one level is all machines of the level before.

    Attributes:
        machines: how many.
        bytes_per_second: of their links.
    """

    machines: int
    bytes_per_second: float


class Replicated(NamedTuple):
    """A stage from one state to another: operators of states `first` up to `last - 1`, on so many machines."""

    first: int
    last: int
    replicas: int


@dataclass(frozen=True)
class PipeDream:
    """What the recurrence finds.

    Attributes:
        seconds: between two microbatches in the steady state.
        levels: the stages of each level, the outermost level first; of an inner level for each machine stage above it,
            one after another.
        states: of the graph, the sets of operators that stages begin and end with.
    """

    seconds: float
    levels: tuple[tuple[Replicated, ...], ...]
    states: tuple[frozenset[int], ...]


def pipedream_partition(
    graph: Graph, levels: Sequence[Level], *, replicate: bool = True, boundaries: Boundaries = "antichain"
) -> PipeDream:
    """Returns the pipeline of replicated stages with the least time between microbatches.

    Args:
        graph: the model.
        levels: the innermost first.
        replicate: whether a stage may lie on several machines of a level.
        boundaries: what bounds the pipeline beside compute: "antichain", the boundaries as PipeDream counts them;
            "needed", only outputs that are still needed; "free", none.

    Raises:
        PartitionError: no level, or fewer than one machine.
    """
    if not levels or any(level.machines < 1 for level in levels):
        raise PartitionError(f"levels={list(levels)}; give one or more, of one machine or more, e.g. [Level(4, 1e9)]")
    states = graph.states()
    sums = [
        np.array([sum(row[o] for o in state) for state in states]) for row in (graph.seconds, graph.parameter_bytes)
    ]
    within = np.array([[earlier < later for later in states] for earlier in states])
    compute, parameters = (_between(row, within) for row in sums)
    sent = np.array([_SENT[boundaries](graph, state) for state in states])
    tables, inside = [], 1
    for level in levels:
        table = _table(compute, parameters, sent, within, level, inside, replicate)
        tables.append(table)
        compute, inside = table[0][:, :, -1].copy(), level.machines
    spans = [(0, len(states))]
    found = []
    for table in reversed(tables):
        stages = [stage for first, last in spans for stage in _stages(table, first, last)]
        found.append(tuple(stages))
        spans = [(stage.first, stage.last) for stage in stages]
    return PipeDream(float(tables[-1][0][0, -1, -1]), tuple(found), tuple(states))


def _between(sums: Floats, within: Any) -> Floats:
    """Returns the sum from each state to each later one; row 0 is from the start, row i + 1 from state i."""
    table = np.full((len(sums) + 1, len(sums)), np.inf)
    table[0] = sums
    table[1:][within] = (sums[None, :] - sums[:, None])[within]
    return table


_Table = tuple[Any, Any, Any]
"""Best time, the last cut and the machines behind it, by (from, to, machines - 1)."""


def _table(
    compute: Floats,
    parameters: Floats,
    sent: Floats,
    within: Any,
    level: Level,
    inside: int,
    replicate: bool,
) -> _Table:
    shape = (*compute.shape, level.machines)
    best, cut, machines = np.full(shape, np.inf), np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    rate = level.bytes_per_second
    _fill(compute, parameters, sent, within, (rate, inside, replicate), (best, cut, machines))
    return best, cut, machines


@jit
def _fill(  # noqa: C901, PLR0912  # the recurrence's loops
    compute: Any, parameters: Any, sent: Any, within: Any, rules: Any, table: Any
) -> None:
    rate, inside, replicate = rules
    best, cut, machines = table
    num_states, most = best.shape[1], best.shape[2]
    for first in range(num_states):
        for last in range(num_states):
            if compute[first, last] == np.inf:
                continue
            for count in range(1, (most if replicate else 1) + 1):
                exchange = 4 * (count - 1) * parameters[first, last] / (rate * count) / inside
                best[first, last, count - 1] = (compute[first, last] + exchange) / count
                machines[first, last, count - 1] = count
        for last in range(num_states):
            if compute[first, last] == np.inf:
                continue
            for total in range(2, most + 1):
                for middle in range(last):
                    if not within[middle, last] or compute[first, middle] == np.inf:
                        continue
                    if compute[middle + 1, last] == np.inf:
                        continue
                    for count in range(1, (total - 1 if replicate else 1) + 1):
                        exchange = 4 * (count - 1) * parameters[middle + 1, last] / (rate * count)
                        value = (compute[middle + 1, last] + exchange) / count
                        value = max(value, best[first, middle, total - count - 1])
                        value = max(value, 2 * sent[middle] / (rate * count))
                        if last < num_states - 1:
                            value = max(value, 2 * sent[last] / (rate * count))
                        if value < best[first, last, total - 1]:
                            best[first, last, total - 1] = value
                            cut[first, last, total - 1] = middle
                            machines[first, last, total - 1] = count


def _stages(table: _Table, first: int, last: int) -> list[Replicated]:
    """Returns the stages of the best pipeline on all machines, for what follows state `first - 1` up to `last - 1`."""
    _, cut, machines = table
    stages: list[Replicated] = []
    end, left = last - 1, cut.shape[2]
    while True:
        middle, count = int(cut[first, end, left - 1]), int(machines[first, end, left - 1])
        if middle < 0:
            return [Replicated(first, end + 1, count), *reversed(stages)]
        stages.append(Replicated(middle + 1, end + 1, count))
        end, left = middle, left - count
