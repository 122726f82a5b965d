"""A program as the engine runs it: an I with its own W right behind it, no message between, is one full backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from penstock.ir.halves import whole_backwards
from penstock.ir.ops import ORDERED, Op, OpKind
from penstock.ir.program import Instruction, Program


def as_run(program: Program) -> Program:
    """Returns `program` with a B for each such I and W, to be simulated."""
    merged = [set(whole_backwards(entries)) for entries in program.ranks]
    if not any(merged):
        return program
    ranks = tuple(tuple(_merged(entries, wholes)) for entries, wholes in zip(program.ranks, merged, strict=True))
    schedule = program.schedule
    overlapped = [_moved(*each) for each in zip(program.ranks, merged, schedule.overlapped, strict=False)]
    ops = [tuple(Op(*entry[:4]) for entry in entries if entry.kind in ORDERED) for entries in ranks]
    return replace(program, schedule=replace(schedule, ranks=tuple(ops), overlapped=tuple(overlapped)), ranks=ranks)


def _merged(entries: Sequence[Instruction], wholes: set[int]) -> Iterator[Instruction]:
    for position, entry in enumerate(entries):
        if position in wholes:
            yield Op(OpKind.B, *entry[1:4])
        elif position - 1 not in wholes:
            yield entry


def _moved(entries: Sequence[Instruction], wholes: set[int], starts: Sequence[int]) -> tuple[int, ...]:
    """Returns the numbers of the ops that start a pair, counted without the W that are gone."""
    ordered = [position for position, entry in enumerate(entries) if entry.kind in ORDERED]
    return tuple(start - sum(whole + 1 <= ordered[start] for whole in wholes) for start in starts)
