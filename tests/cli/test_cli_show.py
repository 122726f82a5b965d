"""`penstock show` prints the grid and draws the picture."""

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpipe", "-p", "0"], "penstock: gpipe: num_ranks=0; use at least 1, e.g. num_ranks=4\n"),
        (["gpipe", "-m", "-1"], "penstock: gpipe: num_microbatches=-1; use at least 1"),
        (["nope.json"], "penstock: cannot read nope.json: No such file or directory\n"),
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
