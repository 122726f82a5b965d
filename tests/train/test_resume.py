"""A run goes on in place or somewhere new, and says what of it has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from penstock.checkpoint import Label, Shard, write_checkpoint
from penstock.errors import CheckpointError
from penstock.train.config import Config, RunConfig
from penstock.train.config_file import to_toml
from penstock.train.resume import changes_of_curve, check_same_run, goes_on_in_place, nothing_left, resume_path


def _config(output: Path, **changes: object) -> Config:
    return replace(Config(), run=replace(RunConfig(output=str(output)), **changes))  # type: ignore[arg-type]


def _save(output: Path, step: int, **extra: object) -> Path:
    shard = Shard({"model/w": torch.zeros(1)})
    return write_checkpoint(output / "checkpoints", shard, Label(step, extra), rank=0, exchange=lambda mine: [mine])


@pytest.mark.parametrize(
    ("resume", "in_place"),
    [("", False), ("latest", True), ("{output}/checkpoints/step-00000003", True), ("{output}-2/checkpoints/x", False)],
)
def test_a_checkpoint_of_another_directory_makes_a_new_run(resume: str, in_place: bool, tmp_path: Path) -> None:
    """Symptom: such a run overwrote the configuration and losses of the one in its output directory."""
    output = tmp_path / "run"
    assert goes_on_in_place(_config(output, resume=resume.format(output=output))) is in_place


def test_latest_is_the_highest_step_and_a_path_is_itself(tmp_path: Path) -> None:
    paths = [_save(tmp_path, step) for step in (3, 12)]
    assert resume_path(_config(tmp_path)) is None
    assert resume_path(_config(tmp_path, resume="latest")) == paths[1]
    assert resume_path(_config(tmp_path, resume=str(paths[0]))) == paths[0]


def test_a_run_with_steps_left_goes_on_and_one_without_says_so(tmp_path: Path) -> None:
    _save(tmp_path, 12)
    assert nothing_left(_config(tmp_path, resume="latest", steps=13)) == ""
    assert "nothing is left to do" in nothing_left(_config(tmp_path, resume="latest", steps=12))
    assert nothing_left(_config(tmp_path, steps=12)) == ""


def test_what_bends_the_curve_is_told_with_both_values(tmp_path: Path) -> None:
    path = _save(tmp_path, 3, config=to_toml(_config(tmp_path)), data_digest="d")
    now = _config(tmp_path / "elsewhere", resume="latest", batch_size=16)
    check_same_run(now, path, data_digest="d")
    assert changes_of_curve(now, path) == ["run.batch_size is 16, it was 8"]


def test_a_checkpoint_that_others_have_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not saved by penstock train"):
        check_same_run(_config(tmp_path), _save(tmp_path, 3), data_digest="d")


def test_keys_that_the_checkpoint_does_not_know_are_passed_over(tmp_path: Path) -> None:
    path = _save(tmp_path, 3, config="[model]\nwidth = 256\n", data_digest="d")
    check_same_run(_config(tmp_path), path, data_digest="d")
