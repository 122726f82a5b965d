"""`penstock plan`: a table with reasons, files, and one sentence for what does not fit."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from penstock.cli.main import main
from penstock.planner import Forecast, Plan, load_plan
from penstock.view.plans import plan_table

CLUSTER = """
[devices.gpu]
memory_bytes = {memory}
flops_per_second = 1e12
memory_bytes_per_second = 1e11

[[hosts]]
device = "gpu"
devices = 4
bytes_per_second = 1e10
"""
MODEL = {"model_type": "gpt2", "n_layer": 6, "n_embd": 64, "n_head": 4, "vocab_size": 256}
SIZES = ["--global-batch", "16", "--sequence", "64"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    (tmp_path / "cluster.toml").write_text(CLUSTER.format(memory=1e9))
    (tmp_path / "tiny.toml").write_text(CLUSTER.format(memory=2e5))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_best_plan_is_printed_with_its_reason_and_saved(files: Path, capsys: Captured) -> None:
    command = ["plan", "config.json", "cluster.toml", *SIZES, "--pipeline", "2", "--tensor", "1", "--keep", "3"]
    assert main([*command, "--out", "plan.json", "--json", "all.json"]) == 0
    printed = capsys.readouterr().out
    plan = load_plan(files / "plan.json")
    assert (plan.data, plan.tensor, plan.pipeline, sum(plan.partition)) == (2, 1, 2, 8)
    assert f"best       {plan.name}" in printed
    assert f"why        {plan.reason}" in printed
    tree = json.loads((files / "all.json").read_text())
    assert tree["plans"][0]["schedule"] == plan.schedule
    assert len(tree["plans"]) == 3
    assert max(map(len, printed.split("best  ")[0].splitlines())) <= 80


def test_a_table_of_large_plans_is_cut_nowhere_within_80_columns() -> None:
    """Symptom: memory ended in an ellipsis where degrees and the schedule's name were long."""
    long = Plan(
        *(256, 8, 16, "pipeline", "interleaved_1f1b", 8, 128, 16, 8192, 3, (1,) * 128, tuple(range(126))),
        Forecast(12345.6, 2e6, 0.363, 0.155, (74.3e9,), (75e9,), {}),
    )
    told = io.StringIO()
    Console(file=told, width=80).print(plan_table([long] * 10))
    assert "…" not in told.getvalue()
    assert "69.2" in told.getvalue()


def test_a_layout_in_use_is_set_against_the_best_plan(files: Path, capsys: Captured) -> None:
    command = ["plan", "config.json", "cluster.toml", *SIZES, "--keep", "1"]
    assert main([*command, "--against", "1", "4"]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("against"))
    assert " faster than data 1 × tensor 1 × pipeline 4, " in told
    assert main([*command, "--against", "1", "9"]) == 0
    assert "against    no combination of Limits(tensor=(1,), pipeline=(9,)" in capsys.readouterr().out
    assert main([*command, "--against", "8"]) == 1
    assert "--against 8; give a tensor and a pipeline degree, e.g. 8 16" in capsys.readouterr().err


def test_stages_a_rank_are_limited(files: Path) -> None:
    command = ["plan", "config.json", "cluster.toml", *SIZES, "--pipeline", "2", "--chunks", "3", "--out", "plan.json"]
    assert main(command) == 0
    assert load_plan(files / "plan.json").chunks == 3


def test_pictures_and_pages_are_written(files: Path) -> None:
    command = ["plan", ".", "cluster.toml", *SIZES, "--pipeline", "2", "--schedules", "one_f_one_b", "--tensor", "1"]
    assert main([*command, "--png", "plan.png", "--html", "plan.html"]) == 0
    assert (files / "plan.png").read_bytes().startswith(b"\x89PNG")
    page = (files / "plan.html").read_text(encoding="utf-8")
    assert "one_f_one_b" in page
    assert "tokens/s" in page


def test_a_profile_is_planned_with(files: Path, capsys: Captured) -> None:
    costs = {"forward": [1e-3] * 7 + [3e-3], "input_grad": [1e-3] * 7 + [3e-3], "parameter_bytes": [1e5] * 8}
    (files / "profile.json").write_text(json.dumps(costs))
    assert main(["plan", "profile.json", "cluster.toml", *SIZES, "--pipeline", "4"]) == 0
    assert "data 1 × tensor 1 × pipeline 4" in capsys.readouterr().out


def test_memory_is_told_beside_that_of_each_ranks_own_device(files: Path, capsys: Captured) -> None:
    """Symptom: "42.98 … of 20.49 GiB". Cause: the least memory of any device stood behind what all ranks hold."""
    small = CLUSTER.format(memory=5e6).replace("devices.gpu", "devices.small").replace('"gpu"', '"small"')
    network = "[[network]]\nlatency_seconds = 1e-5\nbytes_per_second = 1e9\n"
    (files / "mixed.toml").write_text(CLUSTER.format(memory=8e6) + small + network)
    command = ["plan", "config.json", "mixed.toml", *SIZES, "--pipeline", "2", "--tensor", "1", "--sharding", "0"]
    assert main([*command, "--out", "plan.json"]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("memory"))
    first, second = (f"{held / 2**20:.4g}" for held in load_plan(files / "plan.json").forecast.memory_bytes)
    assert told == f"memory     {first} of 7.629, {second} of 4.768 MiB"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("config.json tiny.toml", "too large for a device at tensor degree 1"),
        ("none.json cluster.toml", "none.json: cannot be read as JSON"),
        ("config.json none.toml", "cannot read none.toml"),
        ("config.json cluster.toml --schedules zb_w", 'schedule "zb_w"'),
        ("config.json cluster.toml --png plan.gif", 'cannot draw "plan.gif"'),
        ("cluster.toml cluster.toml", "cluster.toml: cannot be read as JSON"),
    ],
)
def test_a_mistake_is_one_sentence(files: Path, words: str, message: str, capsys: Captured) -> None:
    assert main(["plan", *words.split(), *SIZES]) == 1
    error = capsys.readouterr().err
    assert error.startswith("penstock: ")
    assert message in error
    assert error.count("\n") == 1
