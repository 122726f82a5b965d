"""`penstock compare` sets all schedules side by side and gives the reason of those that are not defined."""

from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.schedules.registry import SCHEDULES

Captured = pytest.CaptureFixture[str]


def rows(capsys: Captured, *arguments: str) -> dict[str, list[str]]:
    """Returns schedule -> its cells, in the order of the table."""
    assert main(["compare", *arguments]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells and cells[0] in SCHEDULES and len(cells) == 9}


def test_a_row_tells_all_there_is_to_compare(capsys: Captured) -> None:
    found = rows(capsys, "-p", "4", "-m", "8", "--schedules", "1F1B", "interleaved_1f1b", "chimera")
    assert found["one_f_one_b"] == ["1", "27.3%", "33", "33", "4", "0", "1", "48"]
    assert found["interleaved_1f1b"] == ["2", "15.8%", "28.5", "28.5", "5.5", "0", "1", "112"]
    assert found["chimera"][6] == "2"


def test_the_best_is_first_in_what_is_asked_for(capsys: Captured) -> None:
    names = ("--schedules", "gpipe", "zb_h1", "naive")
    assert list(rows(capsys, *names)) == ["zb_h1", "gpipe", "naive"]
    assert list(rows(capsys, *names, "--sort", "memory")) == ["naive", "zb_h1", "gpipe"]


def test_costs_and_transfers_count(capsys: Captured) -> None:
    arguments = ("-p", "2", "-m", "3", "--schedules", "gpipe", "--forward", "0.002", "--backward", "0.003")
    assert rows(capsys, *arguments)["gpipe"][2] == "20"
    assert rows(capsys, *arguments, "--transfer", "0.001")["gpipe"][2] == "22"


def test_all_schedules_are_told_of_and_reasons_are_one_line(capsys: Captured) -> None:
    assert main(["compare", "-p", "3", "-m", "5"]) == 0
    table, _, reasons = capsys.readouterr().out.partition("not defined at these sizes:\n")
    listed = {line.split()[0] for line in reasons.splitlines()}
    assert "chimera" in listed
    assert {line.split()[0] for line in table.splitlines() if line.split()} & set(SCHEDULES) == set(SCHEDULES) - listed


def test_the_help_says_how_chunks_and_directions_are_counted(capsys: Captured) -> None:
    assert main(["compare", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "takes 1/v of these seconds" in words
    assert "A bidirectional schedule takes the full seconds" in words


def test_the_files_asked_for_are_written_and_named(tmp_path: Path, capsys: Captured) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("png", "svg", "html")}
    arguments = [word for option, path in files.items() for word in (f"--{option}", str(path))]
    assert main(["compare", "--schedules", "gpipe", "naive", *arguments]) == 0
    output = capsys.readouterr().out
    assert all(f"wrote {path}\n" in output for path in files.values())
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert files["svg"].read_bytes().startswith(b"<?xml")
    assert files["html"].read_text().lstrip().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "0"], "compare: num_ranks=0; use at least 1, e.g. num_ranks=4"),
        (["-m", "-1"], "compare: num_microbatches=-1; use at least 1"),
        (["--forward", "nan"], "forward=nan; a cost is finite and not negative"),
        (["--transfer", "-1"], "--transfer -1.0; give seconds, not negative"),
        (["--schedules", "gpip"], 'unknown schedule "gpip". Did you mean "'),
        (["--svg", "a.png"], "--svg a.png; name a file that ends in .svg"),
        (["--schedules", "gpipe", "--png", "a.bmp"], 'cannot draw "a.bmp"; use a suffix of .png, .svg, .pdf'),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: Captured) -> None:
    assert main(["compare", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"penstock: {message}")
    assert error.count("\n") == 1
