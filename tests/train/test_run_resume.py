"""An interrupted run that goes on is the run that was not interrupted, bit for bit."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from tests.train.conftest import Finished
from tests.train.runs import Run, losses, options, same_bits, saved_tensors

from penstock.checkpoint import latest
from penstock.cli.main import main
from penstock.train.config_file import load_toml

FIRST_OF_THE_RUN = 20
"""While the learning rate rises, it does not depend on how many steps there will be."""


@pytest.fixture(scope="module")
def interrupted(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """A run ended by Ctrl-C between two checkpoints: output, exit code, stdout, stderr."""
    folder = tmp_path_factory.mktemp("interrupted")
    output = folder / "run"
    run = Run(folder, *options(data__paths=text, run__output=output))
    try:
        run.wait_for_step(output, 24)
        run.process.send_signal(signal.SIGINT)
        return output, run.finish(), run.out, run.err
    finally:
        run.end()


def test_ctrl_c_ends_the_run_with_one_line_and_leaves_the_checkpoint(interrupted: tuple[Path, int, str, str]) -> None:
    output, code, _, err = interrupted
    assert code == 130
    assert err.startswith("stopped by Ctrl-C in step ")
    assert err.endswith("; all 2 ranks have ended\n")
    assert err.count("\n") == 1
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000020"]
    assert not list(output.glob("*.part"))


def test_a_run_resumed_after_ctrl_c_and_after_its_launcher_was_killed_equals_the_unbroken_one(
    interrupted: tuple[Path, int, str, str], whole_run: Finished, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(interrupted[0], output)
    words = options(data__paths=text, run__output=output, run__resume="latest")
    killed = Run(tmp_path, *words)
    killed.wait_for_step(output, 44)
    killed.wait_for(
        lambda: (output / "checkpoints" / "step-00000040" / "manifest.json").exists()
    )  # saved behind training
    killed.process.kill()
    killed.finish()
    assert latest(output / "checkpoints") == output / "checkpoints" / "step-00000040"
    resumed = Run(tmp_path, *words)
    assert (resumed.finish(), resumed.err) == (0, "")
    assert f"resumed {output}/checkpoints/step-00000040 at step 40\n" in resumed.out
    assert losses(output) == losses(whole_run.output)
    assert same_bits(saved_tensors(output, 60), saved_tensors(whole_run.output, 60))


def test_a_checkpoint_of_two_ranks_goes_on_in_one_rank_under_another_schedule(
    whole_run: Finished, text: Path, tmp_path: Path
) -> None:
    """Bitwise, too: gradients are added in the order of microbatches, and dropout is keyed, in every layout."""
    output = tmp_path / "run"
    resume = whole_run.output / "checkpoints" / "step-00000020"
    run = Run(
        tmp_path,
        *options(data__paths=text, run__output=output, run__resume=resume),
        *("--pipeline.ranks", "1", "--pipeline.schedule", "naive"),
    )
    assert (run.finish(), run.err) == (0, "")
    assert losses(output) == {step: loss for step, loss in losses(whole_run.output).items() if step > 20}
    assert same_bits(saved_tensors(output, 60), saved_tensors(whole_run.output, 60))


def test_a_new_run_never_writes_over_an_earlier_one(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that resumes a checkpoint from elsewhere, which is a new run in this directory."""
    monkeypatch.setattr("penstock.train.command.launch", lambda *_, **__: 0)
    for name in ("run", "run-2", "run-3"):
        assert main(["train", *options(data__paths=text, run__output=tmp_path / "run")]) == 0
        assert load_toml(tmp_path / name / "config.toml").run.output == str(tmp_path / name)
    out = capsys.readouterr().out
    assert f"{tmp_path}/run holds an earlier run; this one writes to {tmp_path}/run-3" in out


def test_a_finished_run_says_that_nothing_is_left(
    whole_run: Finished, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.train.command.launch", lambda *_, **__: pytest.fail("ranks were started"))
    words = options(data__paths=text, run__output=whole_run.output, run__resume="latest")
    before = (whole_run.output / "config.toml").read_text()
    assert main(["train", *words]) == 0
    out = capsys.readouterr().out
    assert "step-00000060 is of step 60, the last of run.steps=60: nothing is left to do" in out
    assert "e.g. --run.steps 120" in out
    assert (whole_run.output / "config.toml").read_text() == before
