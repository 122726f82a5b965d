"""In a terminal the grid has colours and fits; in a file it is the text that can be read back."""

import io

from rich.console import Console

from penstock.notation import draw_grid, parse_grid
from penstock.schedules import one_f_one_b
from penstock.view.terminal import grid_text, print_grid

SCHEDULE = one_f_one_b(3, 12)


def printed(*, terminal: bool, width: int) -> str:
    output = io.StringIO()
    colours = "standard" if terminal else None
    print_grid(SCHEDULE, Console(file=output, width=width, force_terminal=terminal, color_system=colours))
    return output.getvalue()


def test_a_file_gets_the_plain_grid_however_long() -> None:
    text = printed(terminal=False, width=20)
    assert text == draw_grid(SCHEDULE) + "\n"
    assert parse_grid(text) == SCHEDULE


def test_a_terminal_gets_colours_by_kind() -> None:
    text = printed(terminal=True, width=400)
    assert "\x1b[94mF0\x1b[0m" in text
    assert "\x1b[31mB0\x1b[0m" in text


def test_colours_do_not_change_the_text() -> None:
    assert grid_text(SCHEDULE).plain == draw_grid(SCHEDULE)


def test_long_rows_are_cut_between_cells_and_it_is_said() -> None:
    header, *rows, note = grid_text(SCHEDULE, width=60).plain.splitlines()
    whole = draw_grid(SCHEDULE).splitlines()
    assert header == whole[0]
    for row, full in zip(rows, whole[1:], strict=True):
        assert len(row) <= 60
        kept, ellipsis = row[:-2], row[-2:]
        assert ellipsis == " …"
        assert full.startswith(kept)
        assert full[len(kept)] == " "
    assert note.startswith("… ") and "--png" in note


def test_a_grid_that_just_fits_is_whole() -> None:
    longest = max(map(len, draw_grid(SCHEDULE).splitlines()))
    assert grid_text(SCHEDULE, width=longest).plain == draw_grid(SCHEDULE)
    assert "…" in grid_text(SCHEDULE, width=longest - 1).plain


def test_a_terminal_too_narrow_for_one_cell_still_gets_rows() -> None:
    assert grid_text(SCHEDULE, width=3).plain.splitlines()[1].endswith("…")
