"""From what the ranks recorded to a Timeline: one clock, waits split into waiting for a peer and transfer."""

from __future__ import annotations

from array import array

from penstock.ir.dependencies import Value, carried, consumed
from penstock.ir.ops import COMPUTE, RECEIVES, SENDS, Channel, Op, Transfer
from penstock.ir.program import Program
from penstock.runtime.recorder import StepRecord
from penstock.timeline import Span, Timeline, Transmission, Wait


def encode_record(record: StepRecord) -> bytes:
    """Returns a record as bytes of doubles; `decode_record` is its inverse."""
    numbers = array("d", [record.start, record.end, len(record.ops)])
    for op in record.ops:
        numbers.extend(op)
    for send in record.sends:
        numbers.extend(send)
    return numbers.tobytes()


def decode_record(data: bytes) -> StepRecord:
    """Returns the record that `encode_record` wrote."""
    numbers = array("d")
    numbers.frombytes(data)
    start, end, count = numbers[:3]
    first_send = 3 + 4 * int(count)
    ops = [(int(numbers[i]), numbers[i + 1], numbers[i + 2], numbers[i + 3]) for i in range(3, first_send, 4)]
    sends = [(int(numbers[i]), numbers[i + 1]) for i in range(first_send, len(numbers), 2)]
    return StepRecord(start, end, ops, sends)


def measured_timeline(program: Program, records: list[StepRecord], offsets: list[float]) -> Timeline:
    """Returns the timeline of one step that every rank ran.

    Args:
        program: what ran.
        records: one a rank.
        offsets: seconds by which each rank's clock is ahead of rank 0's.
    """
    shifts = [offset + min(r.start - o for r, o in zip(records, offsets, strict=True)) for offset in offsets]
    left = _departures(program, records, shifts)
    spans: list[Span] = []
    waits: list[Wait] = []
    transmissions: list[Transmission] = []
    for rank, record in enumerate(records):
        incoming = _incoming(program, rank)
        for index, asked, begin, end in record.ops:
            op = program.ranks[rank][index]
            if isinstance(op, Transfer):
                continue
            shift = shifts[rank]
            spans.append(Span(rank, op, begin - shift, end - shift))
            for value, channel in _taken(program, op, incoming):
                sent = left.get(value, asked - shift)
                waits.append(Wait(rank, op, asked - shift, begin - shift, channel.source, sent))
                transmissions.append(Transmission(channel, op, min(sent, begin - shift), begin - shift))
    return Timeline(program.num_ranks, tuple(spans), tuple(waits), tuple(transmissions))


def _departures(program: Program, records: list[StepRecord], shifts: list[float]) -> dict[Value, float]:
    left = {}
    for rank, record in enumerate(records):
        for index, at in record.sends:
            entry = program.ranks[rank][index]
            if isinstance(entry, Transfer) and entry.kind in SENDS:
                left[carried(entry)] = at - shifts[rank]
    return left


def _incoming(program: Program, rank: int) -> dict[Value, Channel]:
    return {
        carried(entry): entry.channel
        for entry in program.ranks[rank]
        if isinstance(entry, Transfer) and entry.kind in RECEIVES
    }


def _taken(program: Program, op: Op, incoming: dict[Value, Channel]) -> list[tuple[Value, Channel]]:
    if op.kind not in COMPUTE:
        return []
    values = consumed(op, program.schedule.num_stages)
    return [(value, incoming[value]) for value in values if value in incoming]
