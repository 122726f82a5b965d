"""A text to train on, and one run that was not interrupted: what the other runs are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
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
def whole_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("whole")
    output = folder / "run"
    run = Run(folder, *options(data__paths=text, run__output=output, log__tensorboard=True))
    try:
        run.wait_for_step(output, 5)
        listening = frozenset(address for process in run.seen for address in _listening_addresses(process))
        yield Finished(run.finish(), run.out, run.err, output, listening)
    finally:
        run.end()
