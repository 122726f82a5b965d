"""What the tests of the schedules share: a grid cut to its rows, and the drawing of a docstring."""

import inspect
import textwrap
from collections.abc import Callable

from penstock import Schedule
from penstock.notation import draw_grid


def rows(schedule: Schedule) -> str:
    """Returns the drawn rows of `schedule`, without the header."""
    return draw_grid(schedule).partition("\n")[2]


def drawn(text: str) -> str:
    """Returns a literal grid as it would be drawn."""
    return textwrap.dedent(text).strip("\n")


def drawing_in(generator: Callable[..., Schedule]) -> str:
    """Returns the grid in the docstring of `generator`."""
    lines = [line.strip() for line in inspect.getdoc(generator).splitlines()]  # type: ignore[union-attr]
    return "\n".join(line for line in lines if line.startswith("rank "))
