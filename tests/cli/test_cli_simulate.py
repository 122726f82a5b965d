"""`penstock simulate` says the measures of a step and writes what was asked for."""

import json
from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.notation.timelines import Recording, load_recording
from penstock.schedules import one_f_one_b, zb_auto
from penstock.simulator import simulate

Captured = pytest.CaptureFixture[str]


def told(capsys: Captured, *arguments: str) -> dict[str, str]:
    """Returns the first words of each line -> the number behind them."""
    assert main(["simulate", *arguments]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    return {cells[0]: next(filter(None, cells[1:]), "").strip() for cells in lines}


def test_the_measures_of_a_step(capsys: Captured) -> None:
    facts = told(capsys, "1f1b", "-p", "4", "-m", "8")
    assert facts["bubble_fraction"] == "0.272727"
    assert facts["bubble_ratio"] == "0.375"
    assert facts["makespan"] == "33 s"
    assert facts["per-rank span"] == "33 s"


def test_costs_and_latency_count(capsys: Captured) -> None:
    arguments = ("gpipe", "-p", "2", "-m", "3", "--forward", "0.002", "--backward", "0.003")
    assert told(capsys, *arguments)["makespan"] == "20 ms"
    assert told(capsys, *arguments, "--latency", "0.001")["makespan"] == "22 ms"
    halves = ("gpipe", "-p", "1", "-m", "1", "--input-grad", "2", "--weight-grad", "4")
    assert told(capsys, *halves)["makespan"] == "7 s"


def test_peaks_are_told_for_each_rank(capsys: Captured) -> None:
    main(["simulate", "1f1b", "-p", "3", "-m", "8"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows if row and row[0].isdigit()] == ["3", "2", "1"]


def test_the_files_asked_for_are_written_and_named(tmp_path: Path, capsys: Captured) -> None:
    files = {option: tmp_path / f"out.{option}" for option in ("png", "svg", "html", "json")} | {
        "perfetto": tmp_path / "trace"
    }
    arguments = [word for option, path in files.items() for word in (f"--{option}", str(path))]
    assert main(["simulate", "1f1b", *arguments]) == 0
    output = capsys.readouterr().out
    assert all(f"wrote {path}\n" in output for path in files.values())
    schedule = one_f_one_b(4, 8)
    assert load_recording(files["json"]) == Recording(schedule, {"planned": simulate(schedule, StageCosts())})
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert json.loads(files["perfetto"].read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forward", "nan"], "forward=nan; a cost is finite and not negative"),
        (["--backward", "-1"], "backward=-1.0; a cost is finite and not negative"),
        (["--transfer", "-1"], "--transfer -1.0; give seconds, not negative, e.g. --transfer 0.1"),
        (["--latency", "inf"], "--transfer inf; give seconds"),
        (["--svg", "a.png"], "--svg a.png; name a file that ends in .svg"),
        (["--html", "absent/a.html"], "cannot write absent/a.html: there is no folder absent"),
        (["--png", "a.bmp"], 'cannot draw "a.bmp"; use a suffix of .png, .svg, .pdf'),
        (["--json", "absent/a.json"], "cannot write absent/a.json: there is no folder absent"),
        (["--perfetto", "absent/a.json"], "cannot write absent/a.json: there is no folder absent"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "gpipe", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"penstock: {message}")
    assert error.count("\n") == 1


def test_a_picture_of_a_foreign_format_is_refused_before_anything_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ("simulate gpipe", "show gpipe", "compare -p 2 -m 2"):
        assert main([*command.split(), "--png", "x.doc"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert 'cannot draw "x.doc"; use a suffix of .png, .svg, .pdf' in err


def test_a_schedule_that_depends_on_costs_is_found_for_those_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    costs = StageCosts(1, 3, 2)
    cluster = Cluster.uniform(4, latency_seconds=0.2)
    expected = simulate(zb_auto(4, 8, costs=costs, cluster=cluster), costs, cluster)
    arguments = "simulate zb_auto -p 4 -m 8 --forward 1 --input-grad 3 --weight-grad 2 --transfer 0.2"
    assert main(arguments.split()) == 0
    assert f"bubble_fraction  {expected.bubble_fraction:.6g}" in capsys.readouterr().out
    assert expected.makespan != simulate(zb_auto(4, 8), costs, cluster).makespan
