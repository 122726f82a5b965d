"""What a run leaves behind: its timeline, planned beside measured, as table, picture, trace and file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from penstock.costs import measured_costs
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS
from penstock.notation.timelines import MEASURED, PLANNED, RECORDING_FILE, Recording, save_recording
from penstock.schedules import unbroken
from penstock.simulator import simulate
from penstock.simulator.steady import simulate_steady
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


def steady_planned_and_measured(schedule: Schedule, measured: Timeline) -> dict[str, Timeline]:
    """Returns the steady phase of batches without a flush in between: as planned, and as it was measured.

    Planned is as for `planned_and_measured`, over about as long.

    Raises:
        UserError: fewer batches were measured than it takes until all ranks are at work.
    """
    batches = max(2, -(-len({span.op.microbatch for span in measured.spans}) // schedule.num_microbatches))
    return {PLANNED: simulate_steady(schedule, measured_costs([measured]), batches=batches), MEASURED: measured}


def write_report(program: Program, timelines: list[Timeline], output: Path) -> tuple[Table, Written]:
    """Returns the table of planned against measured bubble, and the files written into `output`."""
    schedule = program.schedule
    if schedule.weight_rule in SYNCHRONOUS or schedule.placement.num_replicas > 1:
        both = planned_and_measured(program, timelines)
    else:
        both = steady_planned_and_measured(schedule, timelines[-1])
        last = max(span.op.microbatch for line in both.values() for span in line.spans)
        schedule = unbroken(schedule, last // schedule.num_microbatches + 1)
    written = Written(output / RECORDING_FILE, output / "timeline.png", output / "trace.json")
    save_recording(Recording(schedule, both), written.timelines)
    draw_timelines({"simulated" if name == PLANNED else name: line for name, line in both.items()}, written.picture)
    save_perfetto(both, written.trace)
    return bubble_table(both[PLANNED], both[MEASURED]), written
