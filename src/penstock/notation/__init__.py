"""Schedules as text: the grid that `print` draws and the JSON file, both round-trip."""

from penstock.notation.cells import parse_op
from penstock.notation.csv_files import schedule_from_csv, schedule_to_csv
from penstock.notation.files import load_schedule, schedule_from_json, schedule_to_json
from penstock.notation.grid import draw_grid, parse_grid

__all__ = [
    "draw_grid",
    "load_schedule",
    "parse_grid",
    "parse_op",
    "schedule_from_csv",
    "schedule_from_json",
    "schedule_to_csv",
    "schedule_to_json",
]
