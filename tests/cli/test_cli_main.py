"""The command line as a whole: help, near misses, exit codes, and no traceback for a user's mistake."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock._version import __version__
from penstock.cli import main as module
from penstock.cli.main import COMMANDS, main
from penstock.errors import UserError

PENSTOCK = [sys.executable, "-c", "import sys; from penstock.cli.main import main; sys.exit(main())"]

Captured = pytest.CaptureFixture[str]


def test_help_has_a_line_for_every_command(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, line in COMMANDS.items():
        assert any(text.split()[:1] == [name] and text.endswith(line) for text in lines)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"train"}))
def test_every_command_has_help_of_its_own(name: str, capsys: Captured) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: penstock {name}" in capsys.readouterr().out


def test_no_command_is_a_usage_error(capsys: Captured) -> None:
    assert main([]) == 2
    assert "usage: penstock" in capsys.readouterr().out


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"penstock {__version__}\n"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("simulat", 'unknown command "simulat". Did you mean "simulate"?'),
        ("frobnicate", 'unknown command "frobnicate". Known: show, verify'),
        ("--verison", 'unknown option "--verison".'),
    ],
)
def test_an_unknown_command_gives_a_near_miss(word: str, line: str, capsys: Captured) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err.startswith(f"penstock: {line}")


def test_an_unknown_option_is_a_usage_error(capsys: Captured) -> None:
    assert main(["show", "gpipe", "--pngg", "x"]) == 2
    assert "--png" in capsys.readouterr().err


def test_a_user_error_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def fail(argv: list[str]) -> int:
        raise UserError("width=0; use at least 1")

    monkeypatch.setattr(module, "_run", fail)
    assert main([]) == 1
    assert capsys.readouterr().err == "penstock: width=0; use at least 1\n"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise FileNotFoundError("ours")

    monkeypatch.setattr(module, "_run", fail)
    with pytest.raises(FileNotFoundError):
        main([])


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupted(argv: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    monkeypatch.setattr(module, "_run", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's shell ignores the signal
    try:
        assert main([]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [["--help"], ["show", "gpipe", "-m", "2000"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([*PENSTOCK, *arguments], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert ended.returncode == 1
    assert ended.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["show", "gpipe"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([*PENSTOCK, *arguments], stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 1
    assert ended.stderr == b"penstock: cannot write: no space left on the device\n"


def test_help_and_show_load_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys; from penstock.cli.main import main; main(['--help']); main(['show', 'gpipe']);"
        "sys.exit(bool({'torch', 'matplotlib', 'bokeh'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_a_path_that_the_system_refuses_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Symptom: `penstock convert … /proc/x/y` ended in a traceback."""

    def run(argv: list[str]) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/x")

    monkeypatch.setattr("penstock.cli.verify.run", run)
    assert main(["verify", "gpipe"]) == 1
    assert capsys.readouterr().err == (
        "penstock: /proc/x: No such file or directory; check the path, and that it is yours\n"
    )
