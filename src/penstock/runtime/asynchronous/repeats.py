"""What repeats when batches follow one another without a flush, so that one bound program runs any number of them.

    part     0: fill    1: ramp    2: steady, again and again    drain
    numbers  0 … m-1    m … 2m-1   2m … 3m-1

Between two runs of the steady part, m is taken off the numbers of all microbatches in flight, a batch's optimizer steps
off those of all weight versions, and each receive buffer in use takes the slot of its predecessor. Then everything is
as it was before. The ramp is there because the first steps of a rule may meet version 0 where later ones meet an older
version each.

After one, two or more batches the drain is that of one, two or three batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from penstock.errors import ScheduleError
from penstock.ir.dependencies import Value, carried
from penstock.ir.ops import ORDERED, RECEIVES, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction
from penstock.ir.schedule import Schedule
from penstock.lowering.parts import Parts
from penstock.runtime.asynchronous.stepping import StepTable, step_table
from penstock.schedules.unbroken import part_ends, unbroken
from penstock.verifier import receive_slots
from penstock.verifier.weights import Weights, WeightUse, weights_of

STEADY = 2
"""The part that repeats, and how many come before it."""

_AHEAD = STEADY + 3
"""Batches to look at: the steady part, the same once more, and one behind it."""


class Repeats(NamedTuple):
    """One rank's part in a schedule that goes on.

    Attributes:
        tables: batches -> the weights of a program of so many; up to the drain as if there were more.
        versions: stage -> weight versions that a batch makes.
    """

    tables: Mapping[int, StepTable]
    versions: Mapping[int, int]


def weights_ahead(schedule: Schedule) -> Weights:
    """Returns the weights of as many batches of `schedule` as it takes to know those of any number.

    Raises:
        ScheduleError: as for `unbroken`, or the weights of a batch are not those of the one before it, moved on.
    """
    whole = unbroken(schedule, _AHEAD)
    weights, ends = weights_of(whole), part_ends(schedule, _AHEAD)
    for rank, (ops, own) in enumerate(zip(whole.ranks, ends, strict=True)):
        _check_repeats(schedule, weights, rank, ops[own[STEADY - 1] : own[STEADY]])
    return weights


def repeats_of(schedule: Schedule, rank: int, ahead: Weights) -> Repeats:
    """Returns what the weights of `rank` do when batches of `schedule` follow one another.

    Args:
        schedule: of one batch.
        rank: this rank.
        ahead: what `weights_ahead` gave.
    """
    tables = {times: _table(schedule, rank, times, ahead) for times in range(1, STEADY + 2)}
    return Repeats(tables, {stage: _steps(schedule, rank, stage) for stage in schedule.placement.held(rank)})


def _steps(schedule: Schedule, rank: int, stage: int) -> int:
    return sum(op.kind == OpKind.S and op.stage == stage for op in schedule.ranks[rank])


def _table(schedule: Schedule, rank: int, times: int, ahead: Weights) -> StepTable:
    """Returns the table of `times` batches: of all but the drain as if more were to follow."""
    whole = unbroken(schedule, times)
    table = step_table(whole, rank)
    drain = set(whole.ranks[rank][part_ends(schedule, times)[rank][times - 1] :])
    before = {op: change for op, change in ahead.changes[rank].items() if op not in drain}
    return table._replace(changes=before | {op: change for op, change in table.changes.items() if op in drain})


def _check_repeats(schedule: Schedule, weights: Weights, rank: int, ops: Sequence[Op]) -> None:
    count = schedule.num_microbatches
    changes = weights.changes[rank]
    for op in ops:
        following = op._replace(microbatch=op.microbatch + count)
        alike = changes.get(op) == changes.get(following)
        if op.kind != OpKind.S:
            use = weights.uses[op.stage, op.microbatch]
            made = _steps(schedule, rank, op.stage)
            alike &= weights.uses[op.stage, following.microbatch] == _moved(use, made)
        if not alike:
            raise ScheduleError(
                f"{schedule.name} with {count} microbatches a batch cannot go on without a flush: the weights of {op} "
                f"are not those of {following}, moved on by a batch; use more microbatches a batch, e.g. {2 * count}"
            )


def _moved(use: WeightUse, by: int) -> WeightUse:
    return WeightUse(use.forward + by, use.backward + by, use.newest + by)


def slots_taken_over(parts: Parts, rank: int) -> dict[Channel, list[int]]:
    """Returns channel -> for each slot of its ring on `rank` the one whose memory it gets when the steady part repeats.

    What is in use after the steady part gets the slots of what is in use before it; the others share what is left.
    """
    program = parts.program
    count = program.schedule.num_microbatches // (STEADY + 1)
    before, after = (_in_use(program.ranks[rank], at) for at in parts.span(rank, STEADY))
    found = {}
    for channel, ring in receive_slots(program).items():
        moves = {
            ring.slot[position]: ring.slot[before[value._replace(microbatch=value.microbatch - count)]]
            for value, position in after.items()
            if program.ranks[rank][position][4:] == (channel,)
        }
        if channel.target == rank:
            free = iter(sorted(set(range(ring.capacity)) - set(moves.values())))
            found[channel] = [moves[slot] if slot in moves else next(free) for slot in range(ring.capacity)]
    return found


def _in_use(entries: tuple[Instruction, ...], at: int) -> dict[Value, int]:
    """Returns the values received before position `at` whose buffer is needed from there on, and where."""
    last = {entry[1:4]: position for position, entry in enumerate(entries) if entry.kind in ORDERED}
    return {
        carried(entry): position
        for position, entry in enumerate(entries[:at])
        if isinstance(entry, Transfer) and entry.kind in RECEIVES and last[entry[1:4]] >= at
    }
