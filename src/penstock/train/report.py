"""What a run leaves behind: its timeline, planned beside measured, as table, picture, trace and file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from penstock.costs import measured_costs
from penstock.ir.program import Program
from penstock.notation.timelines import MEASURED, PLANNED, RECORDING_FILE, Recording, save_recording
from penstock.simulator import simulate
from penstock.timeline import Timeline
from penstock.view.perfetto import save_perfetto
from penstock.view.picture import draw_timelines
from penstock.view.tables import bubble_table


class Written(NamedTuple):
    """Where the report was written."""

    timelines: Path
    picture: Path
    trace: Path


def planned_and_measured(program: Program, timelines: list[Timeline]) -> dict[str, Timeline]:
    """Returns the step that was planned and one that was measured.

    Planned is the program simulated with the median time of every op that was measured, its transfers free;
    measured is the step of median length. So they differ by what the plan does not know: transfers, the host's
    own work, and ops that took longer than usual.
    """
    by_length = sorted(timelines, key=lambda timeline: timeline.makespan)
    return {
        PLANNED: simulate(program, measured_costs(timelines)),
        MEASURED: by_length[len(by_length) // 2],
    }


def write_report(program: Program, timelines: list[Timeline], output: Path) -> tuple[Table, Written]:
    """Returns the table of planned against measured bubble, and the files written into `output`."""
    both = planned_and_measured(program, timelines)
    written = Written(output / RECORDING_FILE, output / "timeline.png", output / "trace.json")
    save_recording(Recording(program.schedule, both), written.timelines)
    draw_timelines({"simulated" if name == PLANNED else name: line for name, line in both.items()}, written.picture)
    save_perfetto(both, written.trace)
    return bubble_table(both[PLANNED], both[MEASURED]), written
