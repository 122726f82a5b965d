"""A candidate with a partition, timed and weighed in the order of its ops: what the search compares.

layers of each stage ─> seconds, bytes ─> layers that run again, until each rank fits ─> run_words ─> step
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from penstock.cluster import Link
from penstock.ir.placement import Placement
from penstock.planner.candidates import Candidate, RecomputeRule
from penstock.planner.costing import Costing, RankTable
from penstock.planner.orders import Moments, Order, order_of
from penstock.planner.work import ModelWork
from penstock.simulator.orders import Floats, Ints, run_words

Choices = npt.NDArray[np.bool_]
"""Of each layer whether its forward runs again."""

_BUFFERS = 2
"""Boundaries on their way to a stage, each way: one being received, one received ahead."""


class Parts(NamedTuple):
    """Where the mean rank's step goes, in seconds; they add up to it.

    Attributes:
        multiplication: F, I and W of its layers, once each.
        collectives: of the tensor degree.
        recompute: forwards that run again.
        sharding: waiting for parameters gathered or gradients scattered during the step.
        waiting: the bubble: standing still for another rank or a message.
        ending: gradients exchanged and parameters updated at the end.
    """

    multiplication: float
    collectives: float
    recompute: float
    sharding: float
    waiting: float
    ending: float


@dataclass(frozen=True)
class Evaluation:
    """What a candidate comes to with one partition.

    Attributes:
        candidate: of all else.
        cuts: boundaries of its stages.
        seconds: the step.
        memory: bytes of each rank.
        limits: bytes that each rank has.
        again: layers that run their forward again.
        parts: where the step goes.
        stages: [4 · s] seconds of each letter, [s] bytes of each boundary and seconds of each stage's ending.
    """

    candidate: Candidate
    cuts: tuple[int, ...]
    seconds: float
    memory: tuple[float, ...]
    limits: tuple[float, ...]
    again: frozenset[int]
    parts: Parts
    stages: Stages

    @property
    def lacking(self) -> float:
        """Bytes that the rank lacks which lacks most; 0 or less: all fit."""
        return max(held - limit for held, limit in zip(self.memory, self.limits, strict=True))


class Stages(NamedTuple):
    """What the stages take: seconds of each letter, delays of messages, the end of the step, bytes."""

    seconds: Floats
    down: Floats
    up: Floats
    ending: Floats
    activation: Floats
    deferred: Floats
    fixed: Floats
    boundary: Floats


def evaluate(costing: Costing, candidate: Candidate, cuts: tuple[int, ...], rule: RecomputeRule) -> Evaluation:
    """Returns what `candidate` comes to with stages of these cuts.

    Raises:
        ScheduleError: sizes that the schedule is not defined for.
    """
    order = order_of(candidate.schedule, candidate.degrees.pipeline, candidate.microbatches, candidate.chunks)
    layout = costing.layout(candidate.degrees)
    tables = costing.classes(candidate.degrees, candidate.size, candidate.sharding)
    number, _ = layout.classes
    share = _Share(candidate, order, tables, np.array(number)[order.ranks], np.array(cuts), costing.work)
    again = np.zeros(cuts[-1], bool)
    if rule == "always":
        again = tables[0].layers.activation > tables[0].layers.again
    stages = share.stages(again, layout.boundaries)
    held = share.held(stages)
    if rule == "as needed" and (held > layout.limits).any():
        again = share.chosen(held, layout.limits)
        stages = share.stages(again, layout.boundaries)
        held = share.held(stages)
    step, parts = share.timed(stages)
    chosen = frozenset(np.flatnonzero(again).tolist())
    return Evaluation(candidate, cuts, step, tuple(held.tolist()), layout.limits, chosen, parts, stages)


@dataclass(frozen=True)
class _Share:
    """Layers laid onto the stages of an order.

    Attributes:
        candidate: what is laid out.
        order: of its ops.
        tables: of the classes of ranks.
        of_stage: of each stage the class of its rank.
        cuts: boundaries of the stages.
        work: of the model.
    """

    candidate: Candidate
    order: Order
    tables: list[RankTable]
    of_stage: Ints
    cuts: Ints
    work: ModelWork

    def stages(self, again: Choices, links: tuple[Link, ...]) -> Stages:
        """Returns what the stages take when these layers run their forward again."""
        rows = np.array([self._columns(table, again) for table in self.tables])
        forward, back, weights, ending, kept, deferred, fixed, boundary = rows[
            self.of_stage, :, np.arange(len(self.of_stage))
        ].T
        ranks = self.order.ranks
        if self.work.tied and len(ranks) > 1 and ranks[0] == ranks[-1]:
            # The head's weights are the embedding's, which lie on the same rank: there once.
            fixed[-1] -= self.tables[self.of_stage[-1]].fixed[-1]
        seconds = np.ascontiguousarray(np.array([forward, back + weights, back, weights]).T).reshape(-1)
        down, up = _delays(self.order.placement, links, boundary)
        return Stages(seconds, down, up, ending, kept, deferred, fixed, boundary)

    def _columns(self, table: RankTable, again: Choices) -> Floats:
        """Returns [8, s] what the stages take on a class of ranks."""
        layers, starts = table.layers, self.cuts[:-1]
        forward, back, weights = layers.seconds + table.gathered
        added: Floats = np.array(
            [
                forward,
                back + layers.seconds[0] * again,
                weights,
                table.ending,
                np.where(again, layers.again, layers.activation),
                layers.deferred,
                table.fixed,
            ]
        )
        sums = np.add.reduceat(added, starts, axis=1)
        # A layer that runs again keeps then what it would have kept; one whose parameters are gathered has them whole.
        sums[-1] += np.maximum.reduceat(layers.activation * again, starts)
        if self.candidate.sharding >= 2:
            whole = layers.gradient + (2 * layers.parameter + layers.gradient) * (self.candidate.sharding == 3)
            sums[-1] += np.maximum.reduceat(whole, starts)
        boundary = layers.boundary[self.cuts[1:] - 1]
        before = np.concatenate([[0.0], boundary[:-1]])
        sums[-1] += _BUFFERS * (boundary + before)
        sums[4] += before * self.work.input_apart
        columns: Floats = np.vstack([sums, boundary])
        return columns

    def held(self, stages: Stages) -> Floats:
        """Returns the most bytes that each rank holds."""
        moving = [one.most(stages.activation, stages.deferred) for one in self.order.moments]
        most: Floats = np.bincount(self.order.ranks, stages.fixed, minlength=len(moving)) + np.array(moving)
        return most

    def chosen(self, held: Floats, limits: tuple[float, ...]) -> Choices:
        """Returns the fewest layers that, run again, bring each rank within its limit; all, where none do."""
        again = np.zeros(int(self.cuts[-1]), bool)
        for rank in np.flatnonzero(held > limits).tolist():
            moments = self.order.moments[rank]
            table = self.tables[self.of_stage[moments.stages[0]]]
            saved = table.layers.activation - table.layers.again
            own = [layer for stage in moments.stages for layer in range(self.cuts[stage], self.cuts[stage + 1])]
            # The most bytes a second first; of equal layers, those of the first stage, whose microbatches live longest.
            useful = [layer for layer in own if saved[layer] > 0]
            useful.sort(key=lambda layer: -saved[layer] / max(table.layers.seconds[0, layer], 1e-12))
            held_with = self._held_with(moments, table, np.array(useful, int))
            low, high = 0, len(useful)
            while low < high:
                middle = (low + high) // 2
                if held_with(middle) <= limits[rank]:
                    high = middle
                else:
                    low = middle + 1
            again[useful[:low]] = True
        return again

    def _held_with(self, moments: Moments, table: RankTable, useful: Ints) -> Callable[[int], float]:
        """Returns how many layers of `useful` run again -> the most bytes that their rank holds then."""
        *_, kept, deferred, fixed, _ = self._columns(table, np.zeros(int(self.cuts[-1]), bool))
        own = float(fixed[list(moments.stages)].sum())
        stages = np.searchsorted(self.cuts, useful, side="right") - 1
        activation = table.layers.activation[useful]
        saved = activation - table.layers.again[useful]

        def held(count: int) -> float:
            left, again = kept.copy(), np.zeros(len(kept))
            np.subtract.at(left, stages[:count], saved[:count])
            np.maximum.at(again, stages[:count], activation[:count])
            return own + float(again.sum()) + moments.most(left, deferred)

        return held

    def timed(self, stages: Stages) -> tuple[float, Parts]:
        """Returns the step, and where it goes on the mean rank."""
        order, microbatches, starts = self.order, self.candidate.microbatches, np.zeros(self.order.words.shape)
        ends_of = (np.zeros((len(stages.down), microbatches)) for _ in range(2))
        run_words(order.words, order.lengths, stages.seconds, stages.down, stages.up, starts, *ends_of)
        ranks, last = np.arange(len(order.lengths)), order.lengths - 1
        ends = starts[ranks, last] + stages.seconds[order.words[ranks, last]]
        endings = np.bincount(order.ranks, stages.ending, minlength=len(ranks))
        step = float((ends + endings).max())
        sums = np.zeros(3)
        for number, table in enumerate(self.tables):
            each = (table.layers.seconds, table.layers.collective, table.gathered)
            rows = np.array([np.add.reduceat(part.sum(axis=0), self.cuts[:-1]) for part in each])
            sums += rows[:, self.of_stage == number].sum(axis=1)
        whole, collectives, gathered = (sums * microbatches / len(ranks)).tolist()
        busy = float(stages.seconds.reshape(-1, 4)[:, :2].sum()) * microbatches / len(ranks)
        ending = float(endings.mean())
        again = max(busy - whole - gathered, 0.0) if busy > (whole + gathered) * (1 + 1e-9) else 0.0
        waiting = step - whole - gathered - again - ending
        return step, Parts(whole - collectives, collectives, again, gathered, waiting, ending)


def _delays(placement: Placement, links: tuple[Link, ...], boundary: Floats) -> tuple[Floats, Floats]:
    """Returns of each stage the delay of its output to the next, and of its gradient to the one before."""
    ranks = placement.table[0]
    down, up = np.zeros(len(ranks)), np.zeros(len(ranks))
    for stage, (here, there) in enumerate(pairwise(ranks)):
        if here != there:
            link = link_between(links, here, there)
            down[stage] = up[stage + 1] = link.latency_seconds + link.busy_seconds(boundary[stage])
    return down, up


def link_between(links: tuple[Link, ...], here: int, there: int) -> Link:
    """Returns the link between two ranks that follow one another, the last and the first among them."""
    return links[here] if (here + 1) % len(links) == there else links[there]
