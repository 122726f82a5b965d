"""The JSON file of a program, versioned and checked on load.

    {"format": "penstock.program", "version": 1,
     "schedule": {"format": "penstock.schedule", "version": 1, "name": "gpipe", "num_microbatches": 1,
                  "weight_rule": "flush", "placement": [[0, 1]], "ranks": [["0F0", "0B0"], ["1F0", "1B0"]]},
     "ranks": [["0RECV_B0<1", "0F0", "0SEND_F0>1", "0B0"],
               ["1RECV_F0<0", "1F0", "1B0", "1SEND_B0>0"]]}

`schedule` is what a schedule's file holds; `ranks` has for each rank its instructions in order. An instruction is
stage, kind, microbatch, then `@replica` where that is not 0. One end of a message is followed by the other: `>1` is the
rank it is sent to, `<0` the rank it comes from. What belongs to a stage as a whole has no microbatch: `0REDUCE_GRAD`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from penstock.errors import NotationError, check_type, nearest
from penstock.ir.dependencies import TRAVELS
from penstock.ir.ops import NO_MICROBATCH, ORDERED, SENDS, Channel, Op, OpKind, Transfer
from penstock.ir.placement import Placement
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import Schedule
from penstock.notation.cells import parse_op
from penstock.notation.files import (
    check_heading,
    format_of,
    is_json,
    load,
    remedy,
    schedule_from_json,
    schedule_in,
    schedule_to_json,
)

FORMAT = "penstock.program"
VERSION = 1

_INSTRUCTION = re.compile(
    r"(?P<stage>\d{1,9})(?P<kind>[A-Z_]+)(?P<microbatch>\d{1,9})?(?:@(?P<replica>\d{1,9}))?"
    r"(?:(?P<way>[<>])(?P<rank>\d{1,9}))?"
)
_CHANNELS = {end: kind for _, send, receive, kind in TRAVELS.values() for end in (send, receive)}
"""Kind of transfer -> the kind of its channel."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["penstock.program"]
    version: int
    schedule: msgspec.Raw
    ranks: list[list[str]]


_FILES = msgspec.json.Decoder(_File)  # made once, for threads: see notation/files.py


def program_to_json(program: Program) -> str:
    """Returns `program` as JSON text.

    Raises:
        NotationError: a message whose channel does not start or end at the rank that holds it.
    """
    check_type("program", program, Program, example="e.g. penstock.lower(penstock.gpipe(4, 8))")
    file = _File(
        format="penstock.program",
        version=VERSION,
        schedule=msgspec.Raw(schedule_to_json(program.schedule).encode()),
        ranks=[[_text(entry, rank) for entry in entries] for rank, entries in enumerate(program.ranks)],
    )
    return msgspec.json.encode(file).decode()


def program_from_json(text: str | bytes) -> Program:
    """Returns the program written in `text`; the inverse of `program_to_json`. `verify` says whether it is right.

    Raises:
        NotationError: not JSON, another format, another version, or a field that does not fit, and where.
    """
    try:
        check_heading(text, FORMAT, VERSION, what="program")
        file = _FILES.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NotationError(f"not a program file: {error}{remedy(error)}") from None
    try:
        schedule = schedule_from_json(bytes(file.schedule))
    except NotationError as error:
        raise NotationError(f"schedule of the program: {error}") from None
    if len(file.ranks) != schedule.num_ranks:
        raise NotationError(
            f"not a program file: instructions for {len(file.ranks)} ranks, but its schedule {schedule.name} has "
            f"{schedule.num_ranks}; give one row a rank"
        )
    placement = schedule.placement
    return Program(
        schedule,
        tuple(tuple(_instruction(cell, rank, placement) for cell in cells) for rank, cells in enumerate(file.ranks)),
    )


def load_schedule_or_program(path: str | Path) -> Schedule | Program:
    """Returns what the file at `path` holds: a program as JSON, or a schedule in one of its forms.

    Raises:
        NotationError: the file cannot be read or holds neither; the message names the file.
    """
    return load(path, _either)


def _either(data: bytes, path: Path) -> Schedule | Program:
    try:
        is_program = is_json(data, path) and format_of(data) == FORMAT
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        is_program = False  # read as a schedule, so that the error says what does not fit
    return program_from_json(data) if is_program else schedule_in(data, path)


def _text(entry: Instruction, rank: int) -> str:
    if not isinstance(entry, Transfer):
        return str(entry)
    source, target, kind = entry.channel
    sends = entry.kind in SENDS
    if rank != (source if sends else target) or _CHANNELS.get(entry.kind) != kind:
        raise NotationError(
            f"rank {rank}: {entry} on channel {entry.channel} cannot be written: a send leaves its own rank, a receive "
            "ends there, and F or B travels on a channel of its kind"
        )
    return f"{entry}>{target}" if sends else f"{entry}<{source}"


def _instruction(text: str, rank: int, placement: Placement) -> Instruction:
    match = _INSTRUCTION.fullmatch(text)
    if match is None:
        raise NotationError(
            f'rank {rank}: "{text}" is not an instruction; write stage, kind, microbatch, e.g. 0F3, 0SEND_F3>1 or 1B0'
        )
    if match["kind"] not in OpKind.__members__:
        near, known = nearest(match["kind"], OpKind.__members__), ", ".join(OpKind.__members__)
        raise NotationError(f'rank {rank}: "{text}" is of an unknown kind.{near} Known: {known}')
    kind = OpKind[match["kind"]]
    if kind not in _CHANNELS and match["way"]:
        raise NotationError(f'rank {rank}: "{text}" names rank {match["rank"]}, but is no message; leave it out')
    if kind in ORDERED:
        return parse_op(text, rank=rank, placement=placement)
    stage, replica = int(match["stage"]), int(match["replica"] or 0)
    microbatch = int(match["microbatch"] or NO_MICROBATCH)
    if replica >= placement.num_replicas:
        raise NotationError(f'rank {rank}: "{text}" names replica {replica} of {placement.num_replicas}')
    if stage >= placement.num_stages:
        raise NotationError(f'rank {rank}: "{text}" names stage {stage} of {placement.num_stages}')
    if kind not in _CHANNELS:
        return Op(kind, stage, microbatch, replica)
    return Transfer(kind, stage, microbatch, replica, _channel(match, kind, rank, placement))


def _channel(match: re.Match[str], kind: OpKind, rank: int, placement: Placement) -> Channel:
    """Returns the channel of the message written in `match`."""
    text, way = match[0], ">" if kind in SENDS else "<"
    if match["microbatch"] is None:
        raise NotationError(f'rank {rank}: "{text}" names no microbatch; write e.g. 0SEND_F3>1 or 1RECV_F3<0')
    if match["way"] != way:
        raise NotationError(
            f'rank {rank}: "{text}" does not end in {way} and the rank at its other end; a send does in e.g. >1, a '
            "receive in e.g. <0"
        )
    other = int(match["rank"])
    if other >= placement.num_ranks:
        raise NotationError(f'rank {rank}: "{text}" names rank {other} of {placement.num_ranks}')
    return Channel(rank, other, _CHANNELS[kind]) if way == ">" else Channel(other, rank, _CHANNELS[kind])
