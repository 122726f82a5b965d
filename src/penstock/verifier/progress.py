"""All ranks reach their end, even when every send blocks until its receive is posted.

An overlapped pair starts only once the inputs of both its ops exist. The optimizer step of a stage that several ranks
hold waits for the reductions of all of them.

What waits for what is known from the program alone, so one walk decides (`ir/waiting.py`). A walk that stops short
leaves every unfinished rank waiting for one instruction elsewhere; following those arrows from any of them runs into a
cycle, or into an instruction that never comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from penstock.errors import VerificationError
from penstock.ir.columns import ABSENT, Ints
from penstock.ir.dependencies import Value, carried, consumed, produced
from penstock.ir.ops import BACKWARD, GUESTS, MOVES, ORDERED, SENDS, Op, OpKind, Transfer
from penstock.ir.program import Program
from penstock.ir.steps import awaited_gradients, contributed
from penstock.ir.waiting import NEVER, Waits, Walk

_COPIES = (
    (OpKind.HOST, OpKind.OFFLOAD),
    (OpKind.RELOAD, OpKind.RETURN),
    (OpKind.OFFLOAD, OpKind.RETURN),
    *((OpKind.RETURN, kind) for kind in BACKWARD),
)
"""What comes before what, of one microbatch's activations that another rank keeps."""


class _Arrows(NamedTuple):
    """Instruction `entry` waits for instruction `cause`, or, where that is ABSENT, for good."""

    entry: Ints
    cause: Ints


def check_progress(program: Program) -> None:
    """Refuses a program in which ranks end up waiting for one another.

    Raises:
        VerificationError: the cycle: each op with rank and position, and the op it waits for.
    """
    arrows = _arrows(program)
    columns = program.columns
    rank = columns.rank[np.where(arrows.cause == ABSENT, arrows.entry, arrows.cause)]
    walk = Walk(columns.first, Waits(arrows.entry, rank, np.where(arrows.cause == ABSENT, NEVER, arrows.cause + 1)))
    stuck = walk.run()
    if stuck:
        causes = {rank: int(arrows.cause[wait]) for rank, wait in stuck.items()}
        raise VerificationError(_counter_example(program, walk.reached, causes))


def _arrows(program: Program) -> _Arrows:
    """Returns everything that waits for something on another rank, or in vain."""
    sends, receives, meets, taker, takes, lacking, maker, *_ = program.links
    met = np.full(len(sends.entry), ABSENT)
    met[meets[meets != ABSENT]] = receives.entry[meets != ABSENT]
    others = np.array([*_copies(program), *_steps(program)], np.int64).reshape(-1, 2)
    entry = np.concatenate([sends.entry, lacking.entry, taker, others[:, 0]])
    cause = np.concatenate([met, maker, np.append(sends.entry, ABSENT)[meets[takes]], others[:, 1]])
    order = np.argsort(entry, kind="stable")  # of a pair, what its first op needs comes first
    return _Arrows(entry[order] - program.ends_pair[entry[order]], cause[order])


def _copies(program: Program) -> Iterator[tuple[int, int]]:
    """Yields what waits for what when activations move to the rank that keeps them, and back."""
    columns = program.columns
    if not np.isin(columns.kind, [*MOVES, *GUESTS]).any():
        return
    at = {entry[:4]: number for number, (_, _, entry) in enumerate(program.instructions())}
    for before, after in _COPIES:
        for (kind, stage, microbatch, replica), number in at.items():
            cause = at.get((before, stage, microbatch, replica))
            if kind == after and cause is not None:
                yield number, cause


def _steps(program: Program) -> Iterator[tuple[int, int]]:
    """Yields what optimizer steps wait for: the reductions of the stage's other owners."""
    awaited = awaited_gradients(program.schedule)
    if not awaited:
        return
    numbers = {entry: number for number, (_, _, entry) in enumerate(program.instructions())}
    given = {
        contributed(entry): at
        for entry, at in numbers.items()
        if isinstance(entry, Op) and entry.kind == OpKind.REDUCE_GRAD
    }
    for step, values in awaited.items():
        for value in values:
            yield numbers[step], given.get(value, ABSENT)


def _counter_example(program: Program, reached: list[int], causes: dict[int, int]) -> str:
    """Returns the cycle that the waits of the stuck ranks run into, one line an op.

    Args:
        program: the program.
        reached: per rank the instruction at which it stands.
        causes: stuck rank -> the instruction that it waits for.
    """
    path: list[int] = []
    lines: dict[int, str] = {}
    following: int | None = next(iter(causes))
    while following is not None and following not in lines:
        path.append(following)
        rank, position = program.columns.place(reached[following])
        cause = _not_run(program, reached, causes[rank])
        if cause == ABSENT:
            waits, following = _missing(program, reached[rank]), None
        else:
            following, at = program.columns.place(cause)
            other = program.ranks[following][at]
            received = isinstance(other, Transfer) and other.kind not in SENDS
            waits = f"{'its receive ' if received else ''}{other} (rank {following} position {at})"
        lines[rank] = f"  rank {rank} position {position}: {_text(program, rank, position)} waits for {waits}"
    cycle = path[path.index(following) :] if following is not None else path
    name = program.schedule.name
    head = f"{name} deadlocks, in a cycle:" if following is not None else f"{name} cannot go on:"
    return "\n".join([head, *(lines[member] for member in cycle)])


def _text(program: Program, rank: int, position: int) -> str:
    size = 2 if position in program.pairs[rank] else 1
    return "+".join(map(str, program.ranks[rank][position : position + size]))


def _not_run(program: Program, reached: list[int], cause: int) -> int:
    """Returns `cause`, or where it is a send, and the op that makes its value has not run, that op."""
    if cause == ABSENT:
        return cause
    rank, position = program.columns.place(cause)
    entry = program.ranks[rank][position]
    first = int(program.columns.first[rank])
    if isinstance(entry, Transfer) and entry.kind in SENDS:
        value = carried(entry)
        for at in range(reached[rank], cause):
            other = program.ranks[rank][at - first]
            if isinstance(other, Op) and other.kind in ORDERED and value in produced(other):
                return at
    return cause


def _missing(program: Program, number: int) -> str:
    """Returns what never comes that the instruction waits for."""
    rank, position = program.columns.place(number)
    entries = program.ranks[rank][position : position + (2 if position in program.pairs[rank] else 1)]
    values: list[Value] = []
    for entry in entries:
        if isinstance(entry, Transfer):
            return "a receive that is never posted"
        values += consumed(entry, program.schedule.num_stages)
    made = {value for _, _, other in program.instructions() for value in _gives(other)}
    value = next((value for value in values if value not in made), None)
    if value is None:
        return "what its rank never receives"
    return f"the {value.kind.name.lower()} of stage {value.stage} microbatch {value.microbatch}, never made"


def _gives(entry: Op | Transfer) -> list[Value]:
    if isinstance(entry, Transfer):
        return []
    if entry.kind == OpKind.REDUCE_GRAD:
        return [contributed(entry)]
    return produced(entry) if entry.kind in ORDERED else []
