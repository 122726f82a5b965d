"""Every snippet of the README and of docs/ runs as printed.

A page becomes one script with the same line numbers, so that a traceback points into the page: a ```python
block stands as it is, a line `$ penstock …` of a ```console or ```sh block becomes a call, all else is
blank. The snippets of a page therefore share their names and their directory, in the order of the page.

    page                              script
    1  Some words.                    1
    2  ```python                      2
    3  x = 1                          3  x = 1
    4  ```                            4
    5  ```console                     5
    6  $ penstock show zb-v           6  __import__("subprocess").run([…, "show", "zb-v"], check=True)
    7  (what it prints)               7
    8  ```                            8

A block that cannot run here says why on the line before it: `<!-- not run: needs two hosts -->`.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.is_file()]
PAGE_SECONDS = 300

FENCE = re.compile(r"(?P<indent> *)(?P<marks>`{3,})(?P<language>[\w-]*)")
NOT_RUN = re.compile(r"\s*<!--\s*not run:(?P<reason>.*?)-->\s*")
COMMAND = "$ penstock "
SHELL_WORDS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>&1"}


@pytest.mark.timeout(PAGE_SECONDS + 30)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page: Path, tmp_path: Path) -> None:
    script = script_of(page.read_text(encoding="utf-8"))
    if script.strip():
        _run_script(script, name=page.name, directory=tmp_path)


def script_of(page: str) -> str:
    """Returns the Python script of a Markdown page, line for line.

    Raises:
        ValueError: a `not run` comment without a reason or without a block, a block that does not end, or
            a command that needs a shell.
    """
    lines = page.splitlines()
    script = [""] * len(lines)
    excuse = None
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence:
            end = _end_of_block(lines, number, fence["marks"])
            if excuse is None:
                block = [line.removeprefix(fence["indent"]) for line in lines[number + 1 : end]]
                script[number + 1 : end] = _script_of_block(fence["language"], block)
            excuse = None
            number = end
        elif lines[number].strip():
            if excuse is not None:
                raise ValueError(f"line {number}: no block follows the comment <!-- not run: {excuse} -->")
            excuse = _excuse(lines[number], number + 1)
        number += 1
    return "\n".join(script) + "\n"


def _end_of_block(lines: list[str], start: int, marks: str) -> int:
    """Returns the index of the line that closes the block opened on line index `start`."""
    for index in range(start + 1, len(lines)):
        if lines[index].strip() == marks:
            return index
    raise ValueError(f"line {start + 1}: the block has no end")


def _excuse(line: str, number: int) -> str | None:
    """Returns why the next block is not run, or None if `line` is no such comment."""
    comment = NOT_RUN.fullmatch(line)
    if comment is None:
        return None
    reason = comment["reason"].strip()
    if not reason:
        raise ValueError(f"line {number}: say why the block is not run: <!-- not run: needs two hosts -->")
    return reason


def _script_of_block(language: str, block: list[str]) -> list[str]:
    """Returns as many lines as the block has."""
    if language == "python":
        return block
    if language in {"console", "sh"}:
        return _calls(block)
    return [""] * len(block)


def _calls(block: list[str]) -> list[str]:
    """Returns a call in place of each command; one continued by a backslash is called on its first line."""
    calls = [""] * len(block)
    for index, line in enumerate(block):
        if line.startswith(COMMAND):
            last = index
            while block[last].endswith("\\"):
                last += 1
            text = " ".join(part.removesuffix("\\") for part in block[index : last + 1])
            calls[index] = _call(text.removeprefix(COMMAND))
    return calls


def _call(arguments: str) -> str:
    """Returns the line of Python that runs `penstock` with these arguments as a person would type them.

    In a process of its own where it starts others; else in the page's, which has loaded everything already.
    """
    words = shlex.split(arguments, comments=True)
    if SHELL_WORDS & set(words):
        raise ValueError(f"`penstock {arguments}` needs a shell; write it without one, or mark it as not run")
    if words[:1] == ["train"]:
        return f'__import__("subprocess").run({[sys.executable, "-m", "penstock", *words]!r}, check=True)'
    return f'__import__("sys").exit(1) if __import__("penstock.cli.main", fromlist=["main"]).main({words!r}) else None'


def _run_script(script: str, *, name: str, directory: Path) -> None:
    """Runs a script in an interpreter and process group of its own; fails with what it printed.

    The file bears the page's name, so that a traceback reads `File ".../README.md", line 40`.
    """
    file = directory / name
    file.write_text(script, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(file)],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=PAGE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        pytest.fail(f"{name} took longer than {PAGE_SECONDS} s\n{printed[-4000:]}", pytrace=False)
    if process.returncode:
        pytest.fail(f"{name} ended with {process.returncode}\n{printed[-4000:]}", pytrace=False)


def test_a_snippet_keeps_its_line_number_and_the_rest_is_blank() -> None:
    page = "words\n```python\nx = 1\n```\n  ```python\n  if x:\n      y = 2\n  ```\n```text\nno code\n```\n"
    assert script_of(page) == "\n\nx = 1\n\n\nif x:\n    y = 2\n\n\n\n\n"


def test_a_command_becomes_a_call_and_what_it_prints_is_left_out() -> None:
    page = "```console\n$ penstock show zb-v \\\n    -p 4  # four ranks\n0F0 0F1\n$ ls\n```\n"
    assert script_of(page) == f"\n{_call('show zb-v -p 4')}\n\n\n\n\n"
    assert repr(["show", "zb-v", "-p", "4"]) in _call("show zb-v -p 4")


def test_a_command_that_fails_fails_the_page(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="unknown schedule"):
        _run_script(script_of("```console\n$ penstock show nonsense -p 4\n```\n"), name="PAGE.md", directory=tmp_path)


def test_a_block_marked_with_a_reason_is_not_run_but_the_next_one_is() -> None:
    page = "<!-- not run: needs two hosts -->\n\n```python\nraise\n```\n```python\nx = 1\n```\n"
    assert script_of(page).split() == ["x", "=", "1"]


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("<!-- not run: -->\n```python\nx\n```\n", "line 1: say why"),
        ("<!-- not run: why -->\nwords\n", "line 1: no block follows"),
        ("```python\nx = 1\n", "line 1: the block has no end"),
        ("```sh\n$ penstock show zb-v | less\n```\n", "needs a shell"),
    ],
)
def test_a_page_that_would_be_run_in_part_is_refused(page: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        script_of(page)


def test_a_snippet_that_fails_fails_the_page_at_its_line(tmp_path: Path) -> None:
    script = script_of("# Title\n\n```python\nx = 1\n```\nthen\n```python\nassert x == 2\n```\n")
    with pytest.raises(pytest.fail.Exception, match=r'PAGE\.md", line 8') as failure:
        _run_script(script, name="PAGE.md", directory=tmp_path)
    assert "AssertionError" in str(failure.value)
