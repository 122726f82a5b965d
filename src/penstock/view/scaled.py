"""A timeline in a terminal, to scale: an op is as wide as it is long.

    rank 0 F0─F1─F2─F3─                  B0────F4─B1────F5─B2──── …
    rank 1    F0─F1─F2─            B0────F3─B1────F4─B2────F5─B3─ …
    rank 2       F0─F1─      B0────F2─B1────F3─B2────F4─B3────F5─ …
    rank 3          F0─B0────F1─B1────F2─B2────F3─B3────F4─B4──── …
           0           4           8           12          16     s

The letter says the kind and the number the microbatch, so the picture reads without colours too; small letters are a
rank's stages beside its first. Where ops get too narrow for that, a picture becomes several, one below the other like
the staves of a score. Where even that is too much, first the letters go and then the ops narrower than a column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from penstock.ir.ops import NO_MICROBATCH, Op, OpKind
from penstock.timeline import Timeline
from penstock.units import time_unit
from penstock.view.palette import LOOKS, TRANSFER, look

_FILL, _TRANSFER, _IDLE = "─", "░", " "
_MOST_STAVES = 6
_SPARE = 2
"""Columns that the shortest op gets beyond its text, where there is room."""
_NARROWEST = 20
"""Columns of time that even a narrow terminal gets."""
_TICK_COLUMNS = 12
"""Between two numbers below a stave there are at least so many columns."""


def scaled_text(timeline: Timeline, *, width: int, title: str = "") -> Text:
    """Returns `timeline` to scale, in rows of at most `width` columns.

    Args:
        timeline: what ran.
        width: columns of the terminal.
        title: of the first line.
    """
    margin = len(f"rank {timeline.num_ranks - 1} ")
    room = max(width - margin, _NARROWEST)
    columns = _columns_per_second(timeline, room)
    total = max(1, math.ceil(float(timeline.makespan) * columns - 1e-9))
    stave = math.ceil(total / math.ceil(total / room))
    rows = [_row(timeline, rank, columns, total) for rank in range(timeline.num_ranks)]
    unit = time_unit(timeline.makespan)
    makespan = unit.text(timeline.makespan)
    facts = f"{title}  bubble {float(timeline.bubble_fraction):.1%}  makespan {makespan}"
    lines = [Text(facts.strip(), style="bold")]
    for start in range(0, total, stave):
        for rank, row in enumerate(rows):
            lines.append(Text(f"{f'rank {rank}':<{margin}}").append_text(row[start : start + stave]))
        axis = _axis(start, min(start + stave, total), columns / unit.per_base, room)
        lines.append(Text(f"{'':{margin}}{axis} {unit.name}", style="dim"))
    return Text("\n").join([*lines, _legend(timeline)])


def print_scaled(timeline: Timeline, console: Console, *, title: str) -> None:
    """Prints `timeline` to scale, as wide as the console."""
    console.print(scaled_text(timeline, width=console.width, title=title), soft_wrap=True, highlight=False)


def _columns_per_second(timeline: Timeline, room: int) -> float:
    """Returns the scale: every op has room for its text on as few staves as that takes, or as large as fits."""
    spans = [span for span in timeline.spans if span.end > span.start]
    if not spans:
        return 1.0
    makespan = float(timeline.makespan)
    shortest = min(float(span.end - span.start) for span in spans)
    text = max(len(_words(span.op, first=True)[0]) for span in spans)
    staves = math.ceil(makespan * text / shortest / room - 1e-9)
    if staves > _MOST_STAVES:
        return min(text / shortest, _MOST_STAVES * room / makespan)
    widest = min(text + _SPARE, staves * room * shortest / makespan)
    # A whole number of columns keeps equal ops equally wide.
    return max(text, math.floor(widest + 1e-9)) / shortest


def _row(timeline: Timeline, rank: int, columns: float, total: int) -> Text:
    """Returns one rank's row over the whole time."""
    cells = [_IDLE] * total
    for wait in timeline.waits:
        if wait.rank == rank:
            for column in _range(max(wait.sent, wait.start), wait.end, columns):
                cells[column] = _TRANSFER
    styles = []
    _, first = min(((span.op.replica, span.op.stage) for span in timeline.by_rank[rank]), default=(0, 0))
    for span in timeline.by_rank[rank]:
        at = _range(span.start, span.end, columns)
        if at:
            words = _words(span.op, first=span.op.stage == first)
            cells[at.start : at.stop] = next((word for word in words if len(word) <= len(at)), "").ljust(len(at), _FILL)
            styles.append((_colours(span.op.kind), at))
    row = Text("".join(cells))
    for style, at in styles:
        row.stylize(style, at.start, at.stop)
    return row


def _range(start: float, end: float, columns: float) -> range:
    """Returns the columns from `start` to `end`, both rounded, so that what touches in time touches here."""
    return range(round(float(start) * columns), round(float(end) * columns))


def _words(op: Op, *, first: bool) -> tuple[str, str]:
    """Returns what may stand for `op`, the longest first; `first` says whether it is of the rank's first stage."""
    letter = op.kind.name[0] if first else op.kind.name[0].lower()
    return (letter if op.microbatch == NO_MICROBATCH else f"{letter}{op.microbatch}", letter)


def _colours(kind: OpKind) -> str:
    return f"{look(kind).ink} on {look(kind).fill}"


def _axis(start: int, end: int, columns_per_unit: float, room: int) -> str:
    """Returns the numbers below a stave, each at its column; the last leaves room for the unit."""
    line = ""
    for number in _ticks(start / columns_per_unit, end / columns_per_unit, _TICK_COLUMNS / columns_per_unit):
        text = f"{number:g}"
        column = round(number * columns_per_unit) - start
        if column >= len(line) and column + len(text) <= room - 3:
            line = f"{line:<{column}}{text}"
    return line


def _ticks(start: float, end: float, distance: float) -> Iterator[float]:
    """Yields round numbers from `start` to `end`, at least `distance` apart."""
    power = 10.0 ** math.floor(math.log10(distance))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= distance * (1 - 1e-9))
    for index in range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1):
        yield round(index * step, 9)


def _legend(timeline: Timeline) -> Text:
    kinds = {span.op.kind for span in timeline.spans if span.end > span.start}
    legend = Text()
    for kind in (kind for kind in LOOKS if kind in kinds):
        legend.append(kind.name[0], _colours(kind)).append(f" {look(kind).word}   ")
    if any(wait.end > max(wait.sent, wait.start) for wait in timeline.waits):
        legend.append(f"{_TRANSFER} {TRANSFER.word}   ")
    if any(len({span.op.stage for span in row}) > 1 for row in timeline.by_rank):
        legend.append("small letters: the rank's other stages")
    legend.rstrip()
    return legend
