"""`penstock trace` answers how large the bubble of a run was, from what the run left behind."""

import json
from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.notation.timelines import RECORDING_FILE, Recording, save_recording
from penstock.schedules import one_f_one_b
from penstock.simulator import simulate

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    schedule = one_f_one_b(2, 4)
    costs = StageCosts(0.01, 0.01, 0.01)
    measured = simulate(schedule, costs, Cluster.uniform(2, latency_seconds=0.002))
    timelines = {"planned": simulate(schedule, costs), "measured": measured}
    save_recording(Recording(schedule, timelines), tmp_path / RECORDING_FILE)
    return tmp_path


def test_the_directory_of_a_run_or_its_file_gives_the_table(run: Path, capsys: Captured) -> None:
    assert main(["trace", str(run)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("one_f_one_b, 2 ranks, 4 microbatches\n")
    assert "bubble = step - compute" in output
    assert main(["trace", str(run / RECORDING_FILE)]) == 0
    assert capsys.readouterr().out == output


def test_picture_and_trace_are_drawn_again(run: Path, capsys: Captured) -> None:
    arguments = ["--png", str(run / "both.png"), "--perfetto", str(run / "trace.json")]
    assert main(["trace", str(run), *arguments]) == 0
    assert (run / "both.png").read_bytes().startswith(b"\x89PNG")
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["planned", "measured"]


def test_the_page_has_both_timelines_below_each_other(run: Path) -> None:
    assert main(["trace", str(run), "--html", str(run / "both.html")]) == 0
    assert "<title>planned, measured</title>" in (run / "both.html").read_text()


def test_a_directory_without_a_recording_is_named(tmp_path: Path, capsys: Captured) -> None:
    assert main(["trace", str(tmp_path)]) == 1
    reason = f"cannot read {tmp_path / RECORDING_FILE}: No such file or directory"
    remedy = "name the output of a finished penstock train, e.g. runs/gpt"
    assert capsys.readouterr().err == f"penstock: {reason}; {remedy}\n"


def test_a_simulation_alone_has_nothing_to_compare(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "simulated.json"
    main(["simulate", "gpipe", "--json", str(path)])
    assert main(["trace", str(path)]) == 1
    assert "holds no measured timeline (it holds: planned)" in capsys.readouterr().err
