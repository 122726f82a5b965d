"""Schedules and programs as text: the grid that `print` draws and the JSON files, all round-trip."""

from penstock.notation.cells import parse_op
from penstock.notation.csv_files import schedule_from_csv, schedule_to_csv
from penstock.notation.files import load_schedule, schedule_from_json, schedule_to_json
from penstock.notation.grid import draw_grid, parse_grid
from penstock.notation.programs import load_schedule_or_program, program_from_json, program_to_json

__all__ = [
    "draw_grid",
    "load_schedule",
    "load_schedule_or_program",
    "parse_grid",
    "parse_op",
    "program_from_json",
    "program_to_json",
    "schedule_from_csv",
    "schedule_from_json",
    "schedule_to_csv",
    "schedule_to_json",
]
