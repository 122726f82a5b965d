"""The record of losses: whole lines, no step twice, nothing lost on a resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.train.config import Config, LogConfig, RunConfig
from penstock.train.journal import LOSSES_FILE, Journal, StepFigures


def _config(output: Path, *, every: int = 1, steps: int = 40) -> Config:
    return replace(Config(), run=RunConfig(output=str(output), steps=steps), log=LogConfig(every=every))


def _record(output: Path, first: int, last: int, *, every: int = 1) -> None:
    with Journal(_config(output, every=every), first_step=first, active=True) as journal:
        for step in range(first + 1, last + 1):
            journal.step(StepFigures(step, 1 / step, 0.5, 0.1, 1000.0))
            if step % 4 == 0:
                journal.held_out(step, 2.0)


def _steps(output: Path, key: str = "loss") -> list[int]:
    rows = [json.loads(line) for line in (output / LOSSES_FILE).read_text().splitlines()]
    return [row["step"] for row in rows if key in row]


def test_a_resumed_run_drops_the_steps_that_it_runs_again(tmp_path: Path) -> None:
    _record(tmp_path, 0, 9)
    _record(tmp_path, 4, 6)
    assert _steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert _steps(tmp_path, "held_out_loss") == [4], "the one of the checkpoint's own step stays"


def test_a_new_run_starts_a_new_record(tmp_path: Path) -> None:
    _record(tmp_path, 0, 9)
    _record(tmp_path, 0, 2)
    assert _steps(tmp_path) == [1, 2]


def test_a_torn_last_line_does_not_keep_a_run_from_resuming(tmp_path: Path) -> None:
    """Symptom: a JSON traceback on resume. Cause: a full disk had cut the record in the middle of a line."""
    _record(tmp_path, 0, 4)
    path = tmp_path / LOSSES_FILE
    path.write_text(path.read_text()[:-10])
    _record(tmp_path, 3, 5)
    assert _steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_held_out_loss_is_on_disk_at_once(tmp_path: Path) -> None:
    """Symptom: a killed run had lost the held-out loss of its checkpoint. Cause: the line was not flushed."""
    with Journal(_config(tmp_path), first_step=0, active=True) as journal:
        journal.held_out(20, 2.0)
        assert _steps(tmp_path, "held_out_loss") == [20]


def test_steps_are_recorded_as_often_as_asked_and_the_last_always(tmp_path: Path) -> None:
    _record(tmp_path, 0, 40, every=15)
    assert _steps(tmp_path) == [15, 30, 40]


def test_a_rank_that_keeps_no_record_writes_and_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(_config(tmp_path), first_step=0, active=False) as journal:
        journal.step(StepFigures(1, 1.0, 1.0, 1.0, 1.0))
        journal.held_out(1, 1.0)
        journal.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_record_that_cannot_be_written_is_a_message_with_a_remedy(tmp_path: Path) -> None:
    output = tmp_path / "file"
    output.touch()
    with pytest.raises(UserError, match=r"cannot write .*losses\.jsonl: Not a directory; make room or choose"):
        Journal(_config(output), first_step=0, active=True)


def test_a_full_disk_is_a_message_with_a_remedy(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    journal = Journal(_config(tmp_path), first_step=0, active=True)
    journal._losses.close()
    journal._losses = full.open("w", buffering=1 << 16)
    with pytest.raises(UserError, match="No space left on device; make room"):
        journal.held_out(1, 2.0)
    with pytest.raises(OSError, match="No space left"):
        journal._losses.close()


def test_a_reader_that_has_gone_ends_the_run_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symptom: `penstock train | head` blamed another rank. Cause: a broken pipe is a ConnectionError."""

    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    with Journal(_config(tmp_path), first_step=0, active=True) as journal:
        monkeypatch.setattr(journal._console, "print", gone)
        with pytest.raises(UserError, match="nobody reads the output any more"):
            journal.say("hello")


def test_a_long_path_is_not_broken_into_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(_config(tmp_path), first_step=0, active=True) as journal:
        journal.say("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"
