"""What goes wrong in the midst of a run is told in one message, ends all processes and spares the checkpoints."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.train.runs import Run, options

from penstock.checkpoint import latest, read_manifest

ENDING_SECONDS = 10.0

FAULT = """
import os, time
if os.environ.get("RANK") == "1":
    from penstock.train import gpt
    forward, calls = gpt.Head.forward, []
    def faulty(self, x):
        calls.append(1) if self.training else None
        if len(calls) == {call}:
            {deed}
        return forward(self, x)
    gpt.Head.forward = faulty
"""


def _faults(folder: Path, deed: str, *, step: int, microbatch: int) -> Path:
    """A directory for PYTHONPATH with which the last stage does `deed` at one of its forwards."""
    (folder / "faults").mkdir()
    (folder / "faults" / "sitecustomize.py").write_text(FAULT.format(call=(step - 1) * 4 + microbatch + 1, deed=deed))
    return folder / "faults"


def _finish_soon(run: Run) -> int:
    began = time.monotonic()
    code = run.finish()
    assert time.monotonic() - began < ENDING_SECONDS
    return code


def test_a_rank_killed_in_a_step_is_told_with_where_both_were(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    faults = _faults(tmp_path, "time.sleep(600)", step=8, microbatch=2)
    words = options(data__paths=text, run__output=output, checkpoint__every=6, pipeline__schedule="gpipe")
    run = Run(tmp_path, *words, "--run.dtype", "float64", faults=faults)
    run.wait_for_step(output, 7)
    time.sleep(1.2)  # a rank writes down where it is twice a second
    os.kill(run.rank(1), signal.SIGKILL)
    assert _finish_soon(run) == 1
    assert run.err == (
        "rank 1 was killed by SIGKILL (somebody's kill -9, or the system ran out of memory: see its kernel log)\n"
        "  it was at 1F2 (forward of stage 1 on microbatch 2) of step 8\n"
        "  rank 0 was at 0B0 (backward of stage 0 on microbatch 0) of step 8, waiting for rank 1\n"
    )
    newest = latest(output / "checkpoints")
    assert newest is not None
    assert read_manifest(newest).step == 6


@pytest.mark.slow
def test_an_error_in_a_stage_is_told_with_rank_op_stage_and_microbatch(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    faults = _faults(tmp_path, "raise ValueError('the head is off')", step=3, microbatch=1)
    words = options(data__paths=text, run__output=output, optimizer__name="sgd")
    run = Run(tmp_path, *words, faults=faults)
    run.wait_for(lambda: "stage 1 on rank 1" in run.out)
    assert _finish_soon(run) == 1
    first, second, third, *trace = run.err.splitlines()
    assert first == "rank 1 failed: ValueError: the head is off"
    assert second == "  it was at 1F1 (forward of stage 1 on microbatch 1) of step 3"
    assert third.startswith("  rank 0 was at ")
    assert third.endswith("of step 3") or " of step 3, waiting for rank 1" in third
    assert trace[0].startswith("Traceback")
    assert run.err.count("Traceback") == 1
    assert trace[-2] == "ValueError: the head is off"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on file sizes stands for a full disk on Linux")
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_spares_the_earlier(text: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the second checkpoint does not fit any more."""
    import resource

    output = tmp_path / "run"
    run = Run(tmp_path, *options(data__paths=text, run__output=output, checkpoint__every=6))
    run.wait_for_step(output, 7)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.prlimit(run.rank(1), resource.RLIMIT_FSIZE, (50_000, unlimited))
    assert _finish_soon(run) == 2
    assert run.err.count("\n") == 1
    assert run.err.startswith("the checkpoint of step ")
    assert "was not saved: rank 1: " in run.err
    assert "File too large" in run.err
    assert "Earlier checkpoints are intact; make room or choose another output directory" in run.err
    newest = latest(output / "checkpoints")
    assert newest is not None
    assert f"step {read_manifest(newest).step + 6} was" in run.err
    assert len(list((output / "checkpoints").iterdir())) >= 1
