"""The same command under torchrun: two agents on this machine, joined by a rendezvous on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.train.conftest import Finished
from tests.train.runs import Run, losses, options
from tests.train.test_launch import _free_port, _torchrun

from penstock.train.config_file import load_toml

STEPS = 10


def test_two_agents_train_as_one_launcher_does_and_spare_an_earlier_run(
    whole_run: Finished, text: Path, tmp_path: Path
) -> None:
    given, output = tmp_path / "run", tmp_path / "run-2"
    given.mkdir()
    (given / "config.toml").write_text("# an earlier run's\n")
    words = options(data__paths=text, run__output=given, run__steps=STEPS)
    command = (*_torchrun(_free_port()), "-m", "penstock", "train")
    agents = [Run(tmp_path, *words, command=command) for _ in range(2)]
    assert [agent.finish() for agent in agents] == [0, 0], [agent.err for agent in agents]
    assert losses(output) == {step: losses(whole_run.output)[step] for step in range(1, STEPS + 1)}
    assert load_toml(output / "config.toml").run.output == str(output)
    assert [path.name for path in given.iterdir()] == ["config.toml"]
    told = [agent.out for agent in agents if agent.out]
    assert len(told) == 1, "rank 0 alone reports"
    assert f"this one writes to {output}" in told[0]
    assert f"checkpoint:         {output}/checkpoints/step-00000010\n" in told[0]


@pytest.mark.slow
def test_another_number_of_processes_is_told_once_per_host(text: Path, tmp_path: Path) -> None:
    one_host = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "penstock", "train")
    words = options(data__paths=text, run__output=tmp_path / "run", pipeline__ranks=3)
    run = Run(tmp_path, *words, command=one_host)
    assert run.finish() != 0
    message = "2 processes were started and pipeline.ranks=3; start as many, or add --pipeline.ranks 2"
    assert run.err.splitlines().count(message) == 1
    assert run.err.startswith(message), "before torchrun's own report"
    assert not (tmp_path / "run").exists()
