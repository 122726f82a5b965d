"""A text to train on, and one run that was not interrupted: what the other runs are compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from tests.train.runs import TEXT, Run, options
from tests.train.test_launch import _listening_addresses


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(TEXT)
    return path


@dataclass(frozen=True)
class Finished:
    """What a run has printed and where it wrote."""

    code: int
    out: str
    err: str
    output: Path
    listening: frozenset[str]


@pytest.fixture(scope="session")
def whole_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run for all workers of pytest: the first that needs it starts it."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if shared.name.startswith("popen-") else shared) / "whole"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "finished.json").exists():
            folder.mkdir()
            (folder / "finished.json").write_text(json.dumps(_run_to_its_end(text, folder)))
    code, out, err, output, listening = json.loads((folder / "finished.json").read_text())
    return Finished(code, out, err, Path(output), frozenset(listening))


def _run_to_its_end(text: Path, folder: Path) -> tuple[int, str, str, str, list[str]]:
    """Returns the values of Finished."""
    output = folder / "run"
    words = options(data__paths=text, run__output=output, log__tensorboard=True, log__predict_after=30)
    run = Run(folder, *words)
    try:
        run.wait_for_step(output, 5)
        listening = sorted({address for process in run.seen for address in _listening_addresses(process)})
        return run.finish(), run.out, run.err, str(output), listening
    finally:
        run.end()
