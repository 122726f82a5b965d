"""The time that orders of ops take, without lowering them: what searches and partitions call a million times.

A rank's order is a *word* whose letters are `4 · stage + kind`; the k-th letter of a kind and stage is microbatch k.
That loses nothing where all microbatches cost the same: exchanging two of them changes no time.

A message is a delay here: it leaves when its op ends, and no other is in its way. `simulate` also knows when receives
are posted and that messages queue for a link. Where messages are no longer than the ops before their takers and links
are free, as in most pipelines, the two agree to the last digit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.simulator.jit import jit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_KINDS = (OpKind.F, OpKind.B, OpKind.I, OpKind.W)


def words_of(schedule: Schedule) -> tuple[Ints, Ints] | None:
    """Returns the words of the ranks, one row each, and their lengths.

    None where the schedule is no such thing: it takes microbatches out of turn on a stage, has replicas, pairs,
    offloads, or optimizer steps.
    """
    if schedule.placement.num_replicas > 1 or schedule.overlapped or schedule.keepers:
        return None
    words = np.zeros((schedule.num_ranks, max(map(len, schedule.ranks))), np.int64)
    for rank, ops in enumerate(schedule.ranks):
        turns: dict[tuple[int, bool | int], int] = {}
        for position, (kind, stage, microbatch, _) in enumerate(ops):
            # B and I are one turn: a stage may mix them, but goes back through microbatches in their order.
            turn = (stage, OpKind.I if kind == OpKind.B else kind)
            if kind not in _KINDS or (kind != OpKind.W and turns.get(turn, 0) != microbatch):
                return None
            turns[turn] = turns.get(turn, 0) + 1
            words[rank, position] = 4 * stage + kind
    return words, np.array([len(ops) for ops in schedule.ranks], np.int64)


def schedule_of(name: str, placement: Placement, num_microbatches: int, words: Ints, lengths: Ints) -> Schedule:
    """Returns the schedule that these words spell."""
    ranks = []
    for word, length in zip(words, lengths, strict=True):
        turns: dict[int, int] = {}
        backward: dict[int, int] = {}  # of each stage, how many B and I there were
        split: dict[int, list[int]] = {}  # of each stage, the microbatches whose W is due
        ops = []
        for letter in word[:length].tolist():
            stage, kind = letter // 4, OpKind(letter % 4)
            if kind == OpKind.F:
                microbatch = turns[stage] = turns.get(stage, -1) + 1
            elif kind == OpKind.W:
                microbatch = split[stage].pop(0)
            else:
                microbatch = backward[stage] = backward.get(stage, -1) + 1
                if kind == OpKind.I:
                    split.setdefault(stage, []).append(microbatch)
            ops.append(Op(kind, stage, microbatch))
        ranks.append(tuple(ops))
    return Schedule(name, placement, num_microbatches, tuple(ranks))


def op_seconds(costs: StageCosts, cluster: Cluster, placement: Placement) -> Floats:
    """Returns the seconds of each letter on the device of its rank."""
    seconds = costs.seconds(placement.num_stages)
    speeds = [cluster.devices[rank].speed for rank in placement.table[0]]
    table = np.array([seconds[kind] for kind in _KINDS], float) / np.array(speeds, float)
    return np.ascontiguousarray(table.T).reshape(-1)


def delays(costs: StageCosts, cluster: Cluster, placement: Placement) -> tuple[Floats, Floats]:
    """Returns for each stage the delay of its output to the next stage, and of its gradient to the one before."""
    boundary = costs.per_stage("boundary_bytes", placement.num_stages)
    down, up = np.zeros(placement.num_stages), np.zeros(placement.num_stages)
    for stage in range(placement.num_stages - 1):
        here, there = placement.rank_of(stage), placement.rank_of(stage + 1)
        if here != there:
            to, back = cluster.link(here, there), cluster.link(there, here)
            down[stage] = to.latency_seconds + to.busy_seconds(boundary[stage])
            up[stage + 1] = back.latency_seconds + back.busy_seconds(boundary[stage])
    return down, up


@jit
def run_words(  # noqa: PLR0913  # arrays side by side: what a compiler of numeric code takes
    words: Any, lengths: Any, seconds: Any, down: Any, up: Any, starts: Any, forward: Any, backward: Any
) -> tuple[float, float]:
    """Returns makespan and longest span of a rank; (-1, -1) where the ranks wait for one another for good.

    Args:
        words: [p, longest], the order of each rank.
        lengths: [p].
        seconds: [4 · s], of each letter.
        down: [s], delay of a stage's output.
        up: [s], delay of a stage's gradient.
        starts: [p, longest], filled with the start of every op.
        forward: [s, m], filled with the ends of F.
        backward: [s, m], filled with the ends of B and I.
    """
    num_ranks, num_stages = len(lengths), len(down)
    at, clock = np.zeros(num_ranks, np.int64), np.zeros(num_ranks)
    done = np.zeros((2, num_stages), np.int64)
    return run_on(words, lengths, seconds, down, up, starts, forward, backward, at, clock, done)


@jit
def run_on(  # noqa: C901, PLR0912, PLR0913  # as above
    words: Any,
    lengths: Any,
    seconds: Any,
    down: Any,
    up: Any,
    starts: Any,
    forward: Any,
    backward: Any,
    at: Any,
    clock: Any,
    done: Any,
) -> tuple[float, float]:
    """Returns what `run_words` does, from a moment on at which some ops have run.

    Args:
        words: as for `run_words`, and so on.
        lengths: likewise.
        seconds: likewise.
        down: likewise.
        up: likewise.
        starts: filled for the ops that have run.
        forward: likewise.
        backward: likewise.
        at: [p], how many ops of each rank have run.
        clock: [p], when the last of them ended.
        done: [2, s], how many F, and how many B and I, of each stage have.
    """
    num_ranks, last = len(lengths), len(down) - 1
    done_forward, done_backward = done[0], done[1]
    moved = True
    while moved:
        moved = False
        for rank in range(num_ranks):
            while at[rank] < lengths[rank]:
                letter = words[rank, at[rank]]
                stage, kind = letter // 4, letter % 4
                begin = clock[rank]
                if kind == 0:
                    turn = done_forward[stage]
                    if stage > 0:
                        if done_forward[stage - 1] <= turn:
                            break
                        begin = max(begin, forward[stage - 1, turn] + down[stage - 1])
                    forward[stage, turn] = begin + seconds[letter]
                    done_forward[stage] += 1
                elif kind != 3:
                    turn = done_backward[stage]
                    if done_forward[stage] <= turn:
                        break
                    if stage < last:
                        if done_backward[stage + 1] <= turn:
                            break
                        begin = max(begin, backward[stage + 1, turn] + up[stage + 1])
                    backward[stage, turn] = begin + seconds[letter]
                    done_backward[stage] += 1
                starts[rank, at[rank]] = begin
                clock[rank] = begin + seconds[letter]
                at[rank] += 1
                moved = True
    span = 0.0
    for rank in range(num_ranks):
        if at[rank] < lengths[rank]:
            return -1.0, -1.0
        if lengths[rank]:
            span = max(span, clock[rank] - starts[rank, 0])
    return clock.max(), span
