"""A schedule in a terminal: the text grid, coloured by kind of op and cut to the width."""

from __future__ import annotations

import re

from rich.console import Console
from rich.text import Text

from penstock.ir.ops import OpKind
from penstock.ir.schedule import Schedule
from penstock.notation.grid import draw_grid
from penstock.view.palette import look

_CELL = re.compile(r"\b\d*([A-Z]+)\d+(?:@\d+)?(?=\s|$)")


def grid_text(schedule: Schedule, *, width: int | None = None) -> Text:
    """Returns the grid of `schedule`, coloured; rows wider than `width` end in … and a last line says so.

    Args:
        schedule: what to draw.
        width: columns of the terminal; None keeps every row whole, as a file needs it.
    """
    header, *rows = draw_grid(schedule).splitlines()
    longest = max(map(len, rows))
    note = ""
    if width is not None and longest > width:
        cut = _cut(rows, width)
        note = f"\n… {longest - cut} columns do not fit in {width}; send it to a file, or draw it with --png"
        rows = [row if len(row) <= cut else f"{row[:cut]} …" for row in rows]
    return Text("\n").join([Text(header, style="bold"), *map(_coloured, rows)]).append(note)


def print_grid(schedule: Schedule, console: Console) -> None:
    """Prints the grid of `schedule`: cut to a terminal's width, whole and plain into a file or pipe."""
    width = console.width if console.is_terminal else None
    console.print(grid_text(schedule, width=width), soft_wrap=True, highlight=False)


def _cut(rows: list[str], width: int) -> int:
    """Returns the last column before `width` at which no row has a cell, or just `width` where none is."""
    for column in range(width - 2, 0, -1):
        if all(row[column : column + 1] in ("", " ") for row in rows):
            return column
    return max(width - 2, 1)


def _coloured(row: str) -> Text:
    text = Text(row)
    for match in _CELL.finditer(row):
        if match[1] in OpKind.__members__:
            text.stylize(look(OpKind[match[1]]).terminal, *match.span())
    return text
