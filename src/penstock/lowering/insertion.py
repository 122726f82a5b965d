"""Put sends, receives and gradient reductions between the compute ops, whose order never changes.

1. A send follows the op that made its value at once.
2. A receive is posted when the op that takes the channel's previous message is about to run: one message
   is under way while the last one is worked on, and a channel never holds more than that ahead.
3. A receive is posted earlier than that where its sender would otherwise block for good. Found by walking
   all ranks under rendezvous semantics (a send ends when its receive is posted): when nobody can go on,
   every blocked sender gets its receive posted where the receiver stands. So a schedule without a cycle
   never deadlocks, whether the transport buffers or not.
4. REDUCE_GRAD follows the last op that adds to its stage's gradients, or to those that an S applies. Where a
   direction has no microbatch that trains, it ends the rank's program: the stage's other owners still sum with it.
5. Nothing stands between the two ops of an overlapped pair: the receives of both are posted before it, the sends and
   reductions of both follow it.
6. HOST and RETURN stand on the rank that keeps what another offloads; `lowering/guests.py` says where.
7. UNSHARD and RESHARD stand around the ops of a stage whose parameters replicas share; see `lowering/gathers.py`.
"""

from __future__ import annotations

from itertools import chain, pairwise
from operator import itemgetter

import numpy as np

from penstock.errors import check_type
from penstock.ir.collector import collector_paused
from penstock.ir.columns import rows_of
from penstock.ir.dependencies import TRAVELS
from penstock.ir.ops import NO_MICROBATCH, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import Schedule, WeightRule
from penstock.ir.steps import ADDS_GRADIENT, SYNCHRONOUS, optimizer_steps, reduction
from penstock.lowering.gathers import with_gathers
from penstock.lowering.guests import with_guests
from penstock.lowering.messages import Ends, messages_of
from penstock.lowering.posting import Stream, postings

_SEND, _RECEIVE = 1, 2  # in a row of TRAVELS


@collector_paused
def lower(schedule: Schedule, *, reduce_gradients: bool = False, gathered: int | None = None) -> Program:
    """Returns `schedule` as a Program; see the rules at the top of this file.

    Every channel is first in, first out: receives are posted in the order of the sends. A schedule that
    cannot run is lowered as far as it goes, so that `verify` can show why.

    Args:
        schedule: the order of compute ops.
        reduce_gradients: add REDUCE_GRAD for data-parallel replicas. Schedules with several pipeline
            directions, and replicated stages, always have it, between the owners of a stage.
        gathered: the most stages of which a rank holds all parameters at once, where its data-parallel replicas share
            them: UNSHARD and RESHARD are put in. None where every replica has them all.

    Raises:
        ScheduleError: `gathered` below 1, or of a schedule that steps its weights by itself.
    """
    check_type("schedule", schedule, Schedule, example="e.g. penstock.gpipe(4, 8)")
    messages = messages_of(schedule)
    reductions = _reductions(schedule, reduce_gradients)
    stream = _stream(schedule, messages.sends, reductions)
    reduced = [op for _, _, op in reductions]
    before, posted = postings(schedule, messages, stream, reduced)
    ops = list(chain.from_iterable(schedule.ranks))
    entries: list[Instruction] = [*ops, *_transfers(ops, messages.sends, messages.channels, _SEND), *reduced]
    entries += _transfers(ops, messages.receives.where(posted), messages.channels, _RECEIVE)
    order = np.argsort(np.concatenate([*(2 * at + 1 for at in stream[:3]), 2 * before]), kind="stable")
    everything = list(map(entries.__getitem__, order.tolist()))
    ends = (stream.first + np.searchsorted(before, stream.first)).tolist()
    ranks = tuple(tuple(everything[begin:end]) for begin, end in pairwise(ends))
    ranks = with_guests(schedule, ranks)
    return Program(schedule, ranks if gathered is None else with_gathers(schedule, ranks, gathered))


def _transfers(ops: list[Op], ends: Ends, channels: list[Channel], end: int) -> list[Transfer]:
    """Returns sends or receives, as `end` says which; they share the numbers of their ops."""
    kinds = {value: row[end] for value, row in TRAVELS.items()}
    own = list(map(ops.__getitem__, ends.op.tolist()))
    return rows_of(
        Transfer,
        map(kinds.__getitem__, ends.value.tolist()),
        *(map(itemgetter(field), own) for field in (1, 2, 3)),
        map(channels.__getitem__, ends.channel.tolist()),
    )


def _stream(schedule: Schedule, sends: Ends, reductions: list[tuple[int, int, Op]]) -> Stream:
    """Returns where ops, sends and reductions stand before any receive is posted.

    The slot of an op holds the op, the send and the reduction that the first of a pair leaves to its second, and its
    own. Each rank begins with a slot more, so that one without ops has a place for its reductions.
    """
    ops = schedule.columns
    slots = 8 * (np.arange(len(ops.kind)) + ops.rank + 1)
    after = slots + np.where(schedule.starts_pair, 8 + 1, 3)
    bounds = 8 * (ops.first + np.arange(len(ops.first)))
    reduced = [
        after[ops.first[rank] + position] + 1
        if position < ops.first[rank + 1] - ops.first[rank]
        else bounds[rank + 1] - 3
        for rank, position, _ in reductions
    ]
    keys = np.concatenate([slots, after[sends.op], np.array(reduced, np.int64)])
    order = np.argsort(keys, kind="stable")
    at = np.empty(len(keys), np.int64)
    at[order] = np.arange(len(keys))
    of_ops, of_sends, of_reductions = np.split(at, np.cumsum([len(slots), len(sends.op)]))
    return Stream(of_ops, of_sends, of_reductions, np.searchsorted(keys[order], bounds))


def _reductions(schedule: Schedule, reduce_gradients: bool) -> list[tuple[int, int, Op]]:
    """Returns rank and position of the op that each reduction follows, or the rank's number of ops for its end."""
    if not (reduce_gradients or schedule.placement.num_replicas > 1):
        return []
    if schedule.weight_rule in SYNCHRONOUS:
        return [found for rank in range(schedule.num_ranks) for found in _last_gradients(schedule, rank)]
    return [
        (rank, step.gradients[-1].position, reduction(step.op))
        for (rank, stage), taken in optimizer_steps(schedule).taken.items()
        if reduce_gradients or (stage < schedule.num_stages and len(schedule.placement.owners(stage)) > 1)
        for step in taken
        if step.gradients
    ]


def _last_gradients(schedule: Schedule, rank: int) -> list[tuple[int, int, Op]]:
    """Returns the reductions of `rank`, each after the last op that adds to its gradients, if there is one."""
    ops, placement = schedule.ranks[rank], schedule.placement
    after = {(op.stage, op.replica): position for position, op in enumerate(ops) if op.kind in ADDS_GRADIENT}
    if schedule.weight_rule is WeightRule.FLUSH:
        for replica in range(placement.num_replicas):
            for stage in placement.stages_of(rank, replica):
                after.setdefault((stage, replica), len(ops))
    return [
        (rank, position, Op(OpKind.REDUCE_GRAD, stage, NO_MICROBATCH, replica))
        for (stage, replica), position in after.items()
    ]
