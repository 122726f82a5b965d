"""PipeDream's recurrence against all the pipelines there are, on graphs small enough to try them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from penstock.errors import PartitionError
from penstock.partition import Graph, Level, pipedream_partition

Stages = tuple[tuple[int, int, int], ...]
"""(first state, last state + 1, machines) of each stage."""


def pipelines(first: int, last: int, machines: int, most: int) -> Iterator[Stages]:
    """Yields all ways to lay states `first` to `last - 1` onto so many machines, at most so many a stage."""
    if machines <= most:
        yield ((first, last, machines),)
    for middle in range(first + 1, last):
        for count in range(1, min(machines - 1, most) + 1):
            for rest in pipelines(first, middle, machines - count, most):
                yield (*rest, (middle, last, count))


class Chain:
    """A chain of operators, of which state i has run the first i + 1."""

    def __init__(self, seed: int, length: int) -> None:
        random = Random(seed)
        self.seconds, self.outputs, self.weights = (
            tuple(float(random.randint(1, 9)) for _ in range(length)) for _ in range(3)
        )
        self.graph = Graph.chain(self.seconds, self.outputs, self.weights)

    def between(self, stages: Stages, rate: float, inside: int = 1, inner: dict[tuple[int, int], float] | None = None):
        """Returns the seconds between two microbatches: the slowest stage or the slowest boundary."""
        slowest = 0.0
        for number, (first, last, count) in enumerate(stages):
            compute = sum(self.seconds[first:last]) if inner is None else inner[first, last]
            # A stage that is the whole pipeline is counted by PipeDream with all machines of a machine at once.
            alone = inside if number == 0 else 1
            exchange = 4 * (count - 1) * sum(self.weights[first:last]) / (rate * count) / alone
            slowest = max(slowest, (compute + exchange) / count)
            if number:  # each boundary goes both ways, through the machines of the stage behind it
                slowest = max(slowest, 2 * self.outputs[first - 1] / (rate * count))
                if last < len(self.seconds):
                    slowest = max(slowest, 2 * self.outputs[last - 1] / (rate * count))
        return slowest


CASES = [(5, 4, 1.0, True), (6, 3, 0.5, True), (4, 6, 4.0, True), (5, 4, 1.0, False), (6, 3, 0.5, False)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("length", "machines", "rate", "replicate"), CASES)
def test_no_other_pipeline_of_a_chain_is_faster(seed: int, length: int, machines: int, rate: float, replicate: bool):
    chain = Chain(seed, length)
    found = pipedream_partition(chain.graph, [Level(machines, rate)], replicate=replicate)
    every = pipelines(0, length, machines, machines if replicate else 1)
    assert found.seconds == pytest.approx(min(chain.between(stages, rate) for stages in every))
    assert found.seconds == pytest.approx(chain.between(tuple(found.levels[0]), rate))
    assert sum(stage.replicas for stage in found.levels[0]) == machines


@pytest.mark.parametrize("seed", range(6))
def test_no_other_pipeline_of_two_levels_is_faster(seed: int):
    """A machine of the outer level is all machines of the inner one, which divide a stage's states further."""
    chain, inner, outer = Chain(seed, 4), Level(2, 3.0), Level(2, 1.0)
    found = pipedream_partition(chain.graph, [inner, outer])
    within = {
        (first, last): min(chain.between(stages, 3.0) for stages in pipelines(first, last, 2, 2))
        for first in range(4)
        for last in range(first + 1, 5)
    }
    best = min(chain.between(stages, 1.0, 2, within) for stages in pipelines(0, 4, 2, 2))
    assert found.seconds == pytest.approx(best)


def test_without_parameters_all_machines_share_one_stage():
    graph = Graph.chain([1.0, 2.0, 3.0], [1.0] * 3, [0.0] * 3)
    found = pipedream_partition(graph, [Level(6, 1e9)])
    assert found.seconds == pytest.approx(1.0)
    assert found.levels == (((0, 3, 6),),)


def test_boundaries_that_cost_nothing_leave_the_slowest_stage():
    graph = Graph.chain([3.0, 1.0, 2.0], [1e12] * 3, [1e12] * 3)
    found = pipedream_partition(graph, [Level(2, 1.0)], boundaries="free")
    assert found.seconds == 3.0
    assert found.levels == (((0, 1, 1), (1, 3, 1)),)


def test_states_of_a_graph_with_two_branches_are_its_closed_sets():
    """0 -> 1 -> 3 and 0 -> 2 -> 3: either branch may run first, 3 brings both along."""
    graph = Graph((1.0,) * 4, (8.0, 4.0, 2.0, 1.0), (0.0,) * 4, ((0, 1), (0, 2), (1, 3), (2, 3)))
    assert graph.states() == [frozenset(state) for state in ({0}, {0, 1}, {0, 2}, {0, 1, 2}, {0, 1, 2, 3})]
    assert [graph.sent(state) for state in graph.states()] == [8, 12, 10, 6, 1]


def test_a_branch_is_not_torn_from_what_it_needs():
    """The best halves of a diamond: {0, 1} and {2, 3} or {0, 2} and {1, 3}, never {0, 3}."""
    graph = Graph((1.0, 5.0, 4.0, 2.0), (0.0,) * 4, (1e9,) * 4, ((0, 1), (0, 2), (1, 3), (2, 3)))
    found = pipedream_partition(graph, [Level(2, 1.0)])
    assert found.seconds == 6.0
    first, last = (found.states[stage.last - 1] for stage in found.levels[0])
    assert first == {0, 1}
    assert last == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Graph((1.0,), (1.0,), (), ()), "1 activations and 0 parameters"),
        (lambda: Graph((1.0,), (1.0,), (1.0,), ((0, 1),)), r"edge \(0, 1\) leaves the 1 operators"),
        (lambda: Graph((1.0,) * 3, (1.0,) * 3, (1.0,) * 3, ((0, 1), (1, 2), (2, 1))).states(), "no circle"),
        (lambda: pipedream_partition(Graph.chain([1.0], [1.0], [1.0]), []), "give one or more"),
        (lambda: pipedream_partition(Graph.chain([1.0], [1.0], [1.0]), [Level(0, 1.0)]), "one machine or more"),
    ],
)
def test_graphs_and_levels_that_make_no_sense_are_refused(make, words: str):
    with pytest.raises(PartitionError, match=words):
        make()
