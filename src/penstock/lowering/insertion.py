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
"""

from __future__ import annotations

from penstock.ir.dependencies import TRAVELS, Value, consumed, message, produced
from penstock.ir.ops import NO_MICROBATCH, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import Schedule, WeightRule
from penstock.ir.steps import ADDS_GRADIENT, SYNCHRONOUS, optimizer_steps, reduction
from penstock.lowering.posting import Incoming, post_receives


def lower(schedule: Schedule, *, reduce_gradients: bool = False) -> Program:
    """Returns `schedule` as a Program; see the rules at the top of this file.

    Every channel is first in, first out: receives are posted in the order of the sends. A schedule that
    cannot run is lowered as far as it goes, so that `verify` can show why.

    Args:
        schedule: the order of compute ops.
        reduce_gradients: add REDUCE_GRAD for data-parallel replicas. Schedules with several pipeline
            directions, and replicated stages, always have it, between the owners of a stage.
    """
    makers = _makers(schedule)
    takers = {value: rank for rank, _, op in schedule.ops() for value in consumed(op, schedule.num_stages)}
    reductions = _reductions(schedule, reduce_gradients)
    sending: list[list[Instruction]] = []
    for rank, ops in enumerate(schedule.ranks):
        entries: list[Instruction] = []
        after: list[Instruction] = []
        pairs = frozenset(schedule.overlapped[rank]) if schedule.overlapped else ()
        for position, op in enumerate(ops):
            entries.append(op)
            after.extend(_sends(op, rank, takers))
            if position in reductions[rank]:
                after.append(reductions[rank][position])
            if position not in pairs:
                entries.extend(after)
                after.clear()
        if schedule.weight_rule is WeightRule.FLUSH and _reduces(schedule, reduce_gradients):
            trained = {(reduced.stage, reduced.replica) for reduced in reductions[rank].values()}
            held = (key for key in _held(schedule, rank) if key not in trained)
            entries.extend(Op(OpKind.REDUCE_GRAD, stage, NO_MICROBATCH, replica) for stage, replica in held)
        sending.append(entries)
    incoming = [_incoming(schedule, rank, makers, sending) for rank in range(schedule.num_ranks)]
    return Program(schedule, post_receives(schedule, sending, incoming))


def _makers(schedule: Schedule) -> dict[Value, int]:
    return {value: rank for rank, _, op in schedule.ops() for value in produced(op) if value.kind in TRAVELS}


def _sends(op: Op, rank: int, takers: dict[Value, int]) -> list[Instruction]:
    """Returns the sends of what `op` made to the ranks that take it; none where the taker is this rank."""
    found: list[Instruction] = []
    for value in produced(op):
        taker = takers.get(value, rank) if value.kind in TRAVELS else rank
        if taker != rank:
            found.append(message(value, maker=rank, taker=taker)[0])
    return found


def _incoming(
    schedule: Schedule, rank: int, makers: dict[Value, int], sending: list[list[Instruction]]
) -> list[Incoming]:
    """Returns the receives of `rank`, by channel, in the order in which their messages are sent."""
    wanted: dict[Channel, dict[Value, tuple[int, Transfer]]] = {}
    seconds = {start + 1 for start in schedule.overlapped[rank]} if schedule.overlapped else ()
    for position, op in enumerate(schedule.ranks[rank]):
        before = position - 1 if position in seconds else position  # a pair takes all its inputs at its start
        for value in consumed(op, schedule.num_stages):
            if value.kind not in TRAVELS:
                continue
            maker = makers[value] if value in makers else _placed_maker(schedule, value, default=rank)
            if maker != rank:
                receive = message(value, maker=maker, taker=rank)[1]
                wanted.setdefault(receive.channel, {})[value] = (before, receive)
    incoming = []
    for channel in sorted(wanted):
        values = wanted[channel]
        ordered = []
        for entry in sending[channel.source]:
            if isinstance(entry, Transfer) and entry.channel == channel:
                found = values.pop(Value(_CARRIED[entry.kind], *entry[1:4]), None)
                if found is not None:
                    ordered.append(found)
        ordered.extend(values.values())
        incoming.append(Incoming(channel, tuple(ordered)))
    return incoming


_CARRIED = {send: kind for kind, (_, send, _, _) in TRAVELS.items()}


def _placed_maker(schedule: Schedule, value: Value, *, default: int) -> int:
    """Returns the rank that should make `value`, for schedules in which nobody does."""
    if value.replica >= schedule.placement.num_replicas:
        return default
    return schedule.placement.rank_of(value.stage, value.replica)


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
