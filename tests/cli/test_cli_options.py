"""A schedule on the command line: by name with sizes, or from a file that knows its own."""

from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.cli.options import read_schedule
from penstock.errors import UserError
from penstock.ir import Schedule
from penstock.notation import draw_grid, schedule_to_json
from penstock.schedules import gpipe, interleaved_1f1b, one_f_one_b, zb_v


def read(subject: str | Path, p: int | None = None, m: int | None = None, v: int | None = None) -> Schedule:
    return read_schedule(str(subject), num_ranks=p, num_microbatches=m, num_chunks=v)


def test_a_name_takes_the_sizes_asked_for_or_4_and_8() -> None:
    assert read("gpipe", 3, 5) == gpipe(3, 5)
    assert read("gpipe") == gpipe(4, 8)


def test_a_name_takes_the_chunks_asked_for_or_its_own() -> None:
    assert read("interleaved_1f1b", 2, 4, 3) == interleaved_1f1b(2, 4, num_chunks=3)
    assert read("interleaved_1f1b", 2, 4) == interleaved_1f1b(2, 4, num_chunks=2)
    assert read("zb_v", 2, 4, 2) == zb_v(2, 4)


@pytest.mark.parametrize("command", ["show", "verify", "simulate"])
@pytest.mark.parametrize("option", ["-v", "--num-chunks"])
def test_commands_take_the_chunks(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "interleaved_1f1b", "-p", "2", "-m", "4", option, "3"]) == 0
    said = {"show": "placement=0,1,0,1,0,1", "verify": "2 ranks, 6 stages", "simulate": "interleaved_1f1b"}
    assert said[command] in capsys.readouterr().out
    assert main([command, "zb_v", "-p", "2", "-m", "4", option, "3"]) == 1
    assert "zb_v: num_chunks=3; it is defined for 2 a rank" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["one_f_one_b", "one-f-one-b", "1F1B"])
def test_names_of_other_tools_are_known(name: str) -> None:
    assert read(name) == one_f_one_b(4, 8)


def test_a_file_is_json_or_a_grid_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "schedule"
    for text in (
        schedule_to_json(gpipe(2, 3)),
        "\n " + schedule_to_json(gpipe(2, 3)),
        draw_grid(gpipe(2, 3)),
    ):
        path.write_text(text)
        assert read(path) == gpipe(2, 3)


def test_sizes_that_agree_with_the_file_are_accepted_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text(draw_grid(gpipe(2, 3)))
    assert read(path, 2, 3) == gpipe(2, 3)
    with pytest.raises(UserError, match=r"-p 4 contradicts .*s.txt, which has 2; leave -p out"):
        read(path, 4)
    with pytest.raises(UserError, match=r"-m 4 contradicts"):
        read(path, 2, 4)
    assert read(path, 2, 3, 1) == gpipe(2, 3)
    with pytest.raises(UserError, match=r"-v 2 contradicts .*s.txt, which has 1; leave -v out"):
        read(path, v=2)


def test_an_unknown_name_gives_a_near_miss_and_says_that_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'"gpip". Did you mean "(gpipe|GPipe)"\? .* Nor is there a file'):
        read("gpip")


def test_files_that_hold_no_schedule_are_named(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text(schedule_to_json(gpipe(2, 3))[:-20])
    (tmp_path / "grid.txt").write_text("gpipe p=2\nrank 0: F0")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    for name, message in {
        "absent.json": "cannot read .*absent.json: No such file",
        ".": "cannot read .*: Is a directory",
        "torn.json": "torn.json: not a schedule file",
        "grid.txt": "grid.txt: header: m, weights, placement missing",
        "picture.png": "picture.png is not text",
    }.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)
