"""docs/write-a-schedule.md holds: its file, its line in the registry and its test make a schedule.

The three blocks are put into a copy of the package. There the schedule is tested by the page's own test, proven,
simulated, drawn and compared by the commands, and run over loopback against the unsplit model.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "write-a-schedule.md"
MOST_LINES = 120
REGISTRY = "src/penstock/schedules/registry.py"

BLOCK = re.compile(r"^```(?P<language>python|diff)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (?P<path>(?:src|tests)/\S+\.py)\n(?P<text>.*)", re.DOTALL)

IN_THE_COPY = """
import sys
from pathlib import Path

import penstock as ps
from penstock.cli.main import main

assert Path(ps.__file__).is_relative_to(Path.cwd()), ps.__file__
for command in (
    "show half_1f1b -p 4 -m 8 --png half.png",
    "verify half-1f1b -p 4 -m 8",
    "simulate half_1f1b -p 4 -m 8 --forward 1 --backward 2",
    "compare --schedules half_1f1b one_f_one_b -p 4 -m 8",
):
    assert main(command.split()) == 0, command
assert Path("half.png").stat().st_size > 0

import torch
from torch import nn
from penstock.testing import check_against_reference

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Tanh()))).double()
data = torch.randn(12, 6).double(), torch.randn(12, 6).double()
for p, m in [(1, 2), (2, 4), (3, 6), (4, 4), (4, 12)]:
    check = check_against_reference(
        model, nn.functional.mse_loss, *data, num_ranks=p, num_microbatches=m, schedule="half_1f1b"
    )
    assert check.schedule == "half_1f1b"
    assert check.worst == 0, check
"""


def blocks(language: str) -> list[str]:
    return [
        block["text"] for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")) if block["language"] == language
    ]


def new_files() -> dict[str, str]:
    """Returns path -> text of the blocks that are files."""
    found = (FILE.fullmatch(block) for block in blocks("python"))
    return {match["path"]: match["text"] for match in found if match}


def with_diff(text: str, diff: str) -> str:
    """Returns `text` with each added line of `diff` behind the line that stands before it there."""
    lines, at = text.splitlines(), 0
    for line in diff.splitlines()[1:]:
        if line.startswith("+"):
            at += 1
            lines.insert(at, line[1:])
        else:
            assert lines.count(line[1:]) == 1, f"{REGISTRY} has no line {line[1:]!r}, or several"
            at = lines.index(line[1:])
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the package, with what its tests share, in which the page has been followed."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests/schedules/grids.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name, text in new_files().items():
        assert not (root / name).exists(), f"{name} is there already"
        (root / name).write_text(text, encoding="utf-8")
    (diff,) = blocks("diff")
    assert diff.startswith(f"--- {REGISTRY}\n")
    registry = root / REGISTRY
    registry.write_text(with_diff(registry.read_text(encoding="utf-8"), diff), encoding="utf-8")
    return root


def run(copy: Path, *arguments: str) -> None:
    """Runs Python on the copy; fails with what it printed."""
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg"}
    ended = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=copy,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        pytest.fail(f"ended with {ended.returncode}\n{ended.stdout[-4000:]}{ended.stderr[-4000:]}", pytrace=False)


def test_a_schedule_is_one_short_file_one_line_in_the_registry_and_one_test() -> None:
    assert list(new_files()) == ["src/penstock/schedules/half_1f1b.py", "tests/schedules/test_half_1f1b.py"]
    for text in new_files().values():
        assert len(text.splitlines()) <= MOST_LINES
        assert max(map(len, text.splitlines())) <= 120
    (diff,) = blocks("diff")
    added = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    assert [line.split()[0] for line in added] == ["from", '"half_1f1b":']


def test_the_pages_own_test_passes(copy: Path) -> None:
    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/schedules/test_half_1f1b.py")


def test_the_name_is_proven_simulated_drawn_compared_and_trains_as_the_unsplit_model(copy: Path) -> None:
    run(copy, "-c", IN_THE_COPY)


@pytest.mark.slow
def test_the_pages_test_can_fail(copy: Path) -> None:
    file = copy / "src/penstock/schedules/half_1f1b.py"
    right = file.read_text(encoding="utf-8")
    assert right.count("ahead=num_ranks - 1 - rank") == 1
    file.write_text(right.replace("ahead=num_ranks - 1 - rank", "ahead=num_ranks - rank"), encoding="utf-8")
    try:
        with pytest.raises(pytest.fail.Exception, match="test_half_1f1b_is_drawn_so"):
            run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/schedules/test_half_1f1b.py")
    finally:
        file.write_text(right, encoding="utf-8")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_registered_schedule_has_its_row_its_section_and_a_small_drawing(name: str) -> None:
    page = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    assert f"| [`{name}`](#{name}) |" in page
    assert f"### {name}\n\n![{name}](images/{name}.png)\n" in page
    assert f"| `{name}` |" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert 0 < (ROOT / "docs" / "images" / f"{name}.png").stat().st_size <= 40_000
