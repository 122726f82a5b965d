"""The report draws the planned and the measured step from the same program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.costs import StageCosts
from penstock.ir.program import Program
from penstock.lowering import lower
from penstock.notation.timelines import MEASURED, PLANNED, load_recording
from penstock.schedules import one_f_one_b
from penstock.simulator import simulate
from penstock.timeline import Timeline
from penstock.train.report import planned_and_measured, write_report


@pytest.fixture
def program() -> Program:
    return lower(one_f_one_b(num_ranks=2, num_microbatches=3))


def _step(program: Program, seconds: float) -> Timeline:
    return simulate(program, StageCosts(forward=seconds, input_grad=seconds, weight_grad=seconds))


def test_measured_is_the_step_of_median_length(program: Program) -> None:
    steps = [_step(program, seconds) for seconds in (0.5, 0.1, 0.2)]
    assert planned_and_measured(program, steps)[MEASURED] == steps[2]


def test_planned_is_simulated_with_the_median_of_every_op_and_free_transfers(program: Program) -> None:
    steps = [_step(program, seconds) for seconds in (0.5, 0.1, 0.2)]
    planned = planned_and_measured(program, steps)[PLANNED]
    assert planned.makespan == pytest.approx(_step(program, 0.2).makespan)


def test_the_files_are_written_and_hold_both(program: Program, tmp_path: Path) -> None:
    table, written = write_report(program, [_step(program, 0.1)], tmp_path)
    assert table.row_count >= 3
    recording = load_recording(written.timelines)
    assert set(recording.timelines) == {PLANNED, MEASURED}
    assert recording.schedule == program.schedule
    assert written.picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(written.trace.read_text())["traceEvents"]
