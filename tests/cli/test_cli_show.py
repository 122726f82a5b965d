"""`penstock show` prints a grid into files and a picture to scale on terminals, and draws pictures and pages."""

from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.notation import parse_grid
from penstock.schedules import one_f_one_b

Captured = pytest.CaptureFixture[str]


def test_the_grid_of_a_name(capsys: Captured) -> None:
    assert main(["show", "1f1b", "-p", "3", "-m", "4"]) == 0
    assert capsys.readouterr().out == (
        "one_f_one_b p=3 m=4 weights=flush placement=0,1,2\n"
        "rank 0: F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3\n"
        "rank 1: .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .\n"
        "rank 2: .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .\n"
    )


def test_what_show_prints_can_be_shown_again(tmp_path: Path, capsys: Captured) -> None:
    main(["show", "1f1b", "-p", "8", "-m", "64"])
    text = capsys.readouterr().out
    assert parse_grid(text) == one_f_one_b(8, 64)
    (tmp_path / "grid.txt").write_text(text)
    assert main(["show", str(tmp_path / "grid.txt")]) == 0
    assert capsys.readouterr().out == text


def test_the_picture_is_written_and_named(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "gpipe.png"
    assert main(["show", "gpipe", "--png", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_every_file_asked_for_is_written(tmp_path: Path, capsys: Captured) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("png", "svg", "html")}
    arguments = [word for option, path in files.items() for word in (f"--{option}", str(path))]
    assert main(["show", "gpipe", *arguments]) == 0
    assert all(path.stat().st_size for path in files.values())
    assert files["svg"].read_bytes().startswith(b"<?xml")
    assert capsys.readouterr().out.count("wrote ") == 3


def test_to_scale_ops_are_as_wide_as_they_cost(capsys: Captured) -> None:
    costs = ["--forward", "1", "--input-grad", "2", "--weight-grad", "1"]
    assert main(["show", "gpipe", "-p", "1", "-m", "2", "--style", "scale", *costs]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "gpipe p=1 m=2  bubble 0.0%  makespan 8 s",
        "rank 0 F0──F1──B0──────────B1──────────",
    ]


def test_a_terminal_gets_the_picture_to_scale_unless_the_grid_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    main(["show", "gpipe", "-p", "2", "-m", "2"])
    assert "makespan 9 s" in capsys.readouterr().out
    main(["show", "gpipe", "-p", "2", "-m", "2", "--style", "grid"])
    assert "weights=flush" in capsys.readouterr().out


def test_costs_that_are_none_are_drawn_as_a_grid(capsys: Captured) -> None:
    free = ["--forward", "0", "--backward", "0", "--style", "scale"]
    assert main(["show", "gpipe", "-p", "1", "-m", "1", *free]) == 0
    assert "weights=flush" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpipe", "-p", "0"], "penstock: gpipe: num_ranks=0; use at least 1, e.g. num_ranks=4\n"),
        (["gpipe", "-m", "-1"], "penstock: gpipe: num_microbatches=-1; use at least 1"),
        (["gpipe", "--forward", "nan"], "penstock: forward=nan; a cost is finite and not negative"),
        (["gpipe", "--transfer", "-1"], "penstock: --transfer -1.0; give seconds, not negative"),
        (["nope.json"], "penstock: cannot read nope.json: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: Captured) -> None:
    assert main(["show", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_a_size_that_is_no_number_is_a_usage_error(capsys: Captured) -> None:
    assert main(["show", "gpipe", "-p", "four"]) == 2
    assert "-p/--ranks" in capsys.readouterr().err
