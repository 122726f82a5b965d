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
"""

from __future__ import annotations

from collections import defaultdict

from penstock.errors import check_type
from penstock.ir.collector import collector_paused
from penstock.ir.dependencies import GIVES, TAKES, Key
from penstock.ir.ops import NO_MICROBATCH, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import Schedule, WeightRule
from penstock.ir.steps import ADDS_GRADIENT, SYNCHRONOUS, optimizer_steps, reduction
from penstock.lowering.guests import with_guests
from penstock.lowering.posting import Incoming, post_receives

Sent = dict[Channel, list[Key]]
"""What travels on each channel, in the order of its sends."""


@collector_paused
def lower(schedule: Schedule, *, reduce_gradients: bool = False) -> Program:
    """Returns `schedule` as a Program; see the rules at the top of this file.

    Every channel is first in, first out: receives are posted in the order of the sends. A schedule that
    cannot run is lowered as far as it goes, so that `verify` can show why.

    Args:
        schedule: the order of compute ops.
        reduce_gradients: add REDUCE_GRAD for data-parallel replicas. Schedules with several pipeline
            directions, and replicated stages, always have it, between the owners of a stage.
    """
    check_type("schedule", schedule, Schedule, example="e.g. penstock.gpipe(4, 8)")
    makers, takers = _ends(schedule)
    reductions = _reductions(schedule, reduce_gradients)
    sent: Sent = {}
    sending: list[list[Instruction]] = []
    for rank in range(schedule.num_ranks):
        entries = _with_sends(schedule, rank, takers, reductions[rank], sent)
        if schedule.weight_rule is WeightRule.FLUSH and _reduces(schedule, reduce_gradients):
            trained = {(reduced.stage, reduced.replica) for reduced in reductions[rank].values()}
            held = (key for key in _held(schedule, rank) if key not in trained)
            entries.extend(Op(OpKind.REDUCE_GRAD, stage, NO_MICROBATCH, replica) for stage, replica in held)
        sending.append(entries)
    incoming = [_incoming(schedule, rank, makers, sent) for rank in range(schedule.num_ranks)]
    return Program(schedule, with_guests(schedule, post_receives(schedule, sending, incoming)))


def _ends(schedule: Schedule) -> tuple[dict[Key, int], dict[Key, int]]:
    """Returns the rank that makes each value that may cross stages, and the rank that takes it."""
    makers: dict[Key, int] = {}
    takers: dict[Key, int] = {}
    for rank, ops in enumerate(schedule.ranks):
        for kind, stage, microbatch, replica in ops:
            for made, _ in GIVES[kind]:
                makers[made, stage, microbatch, replica] = rank
            for taken, offset, _ in TAKES[kind]:
                takers[taken, stage + offset, microbatch, replica] = rank
    return makers, takers


def _with_sends(
    schedule: Schedule, rank: int, takers: dict[Key, int], reductions: dict[int, Op], sent: Sent
) -> list[Instruction]:
    """Returns the ops of `rank` with sends and reductions behind them; notes in `sent` what it sends."""
    entries: list[Instruction] = []
    after: list[Instruction] = []
    pairs = frozenset(schedule.overlapped[rank]) if schedule.overlapped else ()
    last_stage = schedule.num_stages - 1
    channels: dict[tuple[int, int], Channel] = {}
    for position, op in enumerate(schedule.ranks[rank]):
        entries.append(op)
        kind, stage, microbatch, replica = op
        for value, (_, send, _, channel_kind) in GIVES[kind]:
            key = (value, stage, microbatch, replica)
            taker = takers.get(key, rank) if 0 <= stage <= last_stage else rank
            if taker != rank:
                channel = channels.get((taker, value))
                if channel is None:
                    channel = channels[taker, value] = Channel(rank, taker, channel_kind)
                    sent[channel] = []
                after.append(Transfer(send, stage, microbatch, replica, channel))
                sent[channel].append(key)
        if position in reductions:
            after.append(reductions[position])
        if after and position not in pairs:
            entries.extend(after)
            after.clear()
    return entries


def _incoming(schedule: Schedule, rank: int, makers: dict[Key, int], sent: Sent) -> list[Incoming]:
    """Returns the receives of `rank`, by channel, in the order in which their messages are sent."""
    wanted: dict[Channel, dict[Key, tuple[int, Transfer]]] = defaultdict(dict)
    seconds = {start + 1 for start in schedule.overlapped[rank]} if schedule.overlapped else ()
    channels: dict[tuple[int, int], Channel] = {}
    num_stages = schedule.num_stages
    for position, (kind, stage, microbatch, replica) in enumerate(schedule.ranks[rank]):
        for value, offset, (_, _, receive, channel_kind) in TAKES[kind]:
            if not 0 <= stage + offset < num_stages:
                continue
            key = (value, stage + offset, microbatch, replica)
            maker = makers[key] if key in makers else _placed_maker(schedule, key, default=rank)
            if maker == rank:
                continue
            channel = channels.get((maker, value))
            if channel is None:
                channel = channels[maker, value] = Channel(maker, rank, channel_kind)
            before = position - 1 if position in seconds else position  # a pair takes all its inputs at its start
            wanted[channel][key] = (before, Transfer(receive, stage, microbatch, replica, channel))
    incoming = []
    for channel in sorted(wanted):
        values = wanted[channel]
        ordered = [values.pop(key) for key in sent.get(channel, ()) if key in values]
        ordered.extend(values.values())
        incoming.append(Incoming(channel, tuple(ordered)))
    return incoming


def _placed_maker(schedule: Schedule, value: Key, *, default: int) -> int:
    """Returns the rank that should make `value`, for schedules in which nobody does."""
    _, stage, _, replica = value
    return schedule.placement.rank_of(stage, replica) if replica < schedule.placement.num_replicas else default


def _held(schedule: Schedule, rank: int) -> list[tuple[int, int]]:
    """Returns `(stage, replica)` of every stage that `rank` holds."""
    placement = schedule.placement
    return [
        (stage, replica) for replica in range(placement.num_replicas) for stage in placement.stages_of(rank, replica)
    ]


def _reduces(schedule: Schedule, reduce_gradients: bool) -> bool:
    return reduce_gradients or schedule.placement.num_replicas > 1


def _reductions(schedule: Schedule, reduce_gradients: bool) -> list[dict[int, Op]]:
    """Returns per rank position -> the reduction that follows the op there."""
    if not _reduces(schedule, reduce_gradients):
        return [{} for _ in schedule.ranks]
    if schedule.weight_rule in SYNCHRONOUS:
        return [_last_gradients(ops) for ops in schedule.ranks]
    found: list[dict[int, Op]] = [{} for _ in schedule.ranks]
    for (rank, stage), taken in optimizer_steps(schedule).taken.items():
        if reduce_gradients or (stage < schedule.num_stages and len(schedule.placement.owners(stage)) > 1):
            found[rank].update((step.gradients[-1].position, reduction(step.op)) for step in taken if step.gradients)
    return found


def _last_gradients(ops: tuple[Op, ...]) -> dict[int, Op]:
    last = {(op.stage, op.replica): position for position, op in enumerate(ops) if op.kind in ADDS_GRADIENT}
    return {
        position: Op(OpKind.REDUCE_GRAD, stage, NO_MICROBATCH, replica) for (stage, replica), position in last.items()
    }
