"""Claims about the project as a whole: what importing it costs, and what its files say of themselves."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from penstock._version import __version__

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "penstock"

MAY_IMPORT_TORCH = {"__main__", "cli", "train", "testing", "checkpoint", "runtime", "profiler", "models"}
"""The top-level modules outside the pure core, the same as in pyproject's import contract."""

IMPORT_SECONDS = 0.15

TIME_THE_IMPORT = """
import json, sys, time
start = time.perf_counter()
import penstock
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""

IMPORT_AND_TELL = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps("torch" in sys.modules))
"""

PROVE_AND_TELL = """
import json, sys, penstock
penstock.verify(penstock.lower(penstock.zb_v(4, 8)))
print(json.dumps("numpy.ma" in sys.modules))
"""


def test_import_takes_less_than_150_ms() -> None:
    # The best of several: a busy machine can only make it slower.
    seconds = []
    for _ in range(8):
        seconds.append(_run(TIME_THE_IMPORT)["seconds"])
        if seconds[-1] < IMPORT_SECONDS:
            return
    pytest.fail(f"`import penstock` took {min(seconds):.3f} s at best; python -X importtime shows where")


def test_import_brings_in_neither_torch_nor_numpy() -> None:
    modules = set(_run(TIME_THE_IMPORT)["modules"])
    assert not modules & {"torch", "numpy", "matplotlib"}


def test_a_proof_needs_no_masked_arrays() -> None:
    # Every rank proves its program; numpy.ma takes three megabytes of each.
    assert not _run(PROVE_AND_TELL)


def test_core_and_view_import_without_torch() -> None:
    # The import contract reads the source; this also sees an import made by name.
    modules = [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(SOURCES.rglob("*.py"))
        if path.relative_to(SOURCES).with_suffix("").parts[0] not in MAY_IMPORT_TORCH
    ]
    assert "penstock.errors" in modules
    assert _run(IMPORT_AND_TELL, *modules) is False


def test_torch_is_allowed_in_the_same_packages_as_in_the_import_contract() -> None:
    contracts = _pyproject()["tool"]["importlinter"]["contracts"]
    (pure,) = (contract for contract in contracts if contract["id"] == "pure")
    allowed = {line.split(" -> ")[0].split(".")[1] for line in pure["ignore_imports"]}
    assert allowed == MAY_IMPORT_TORCH - {"__main__"}


def test_changelog_has_a_section_for_this_version() -> None:
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert __version__ in headings


def test_no_file_names_a_path_of_one_machine() -> None:
    # Written so that the pattern does not match itself.
    absolute = re.compile(r"(?<![\w.~-])/(?:work|root|home/[a-z]\w*|Users/[A-Z]\w*)/")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in _own_files()
        for number, line in enumerate(_text(path).splitlines(), start=1)
        if absolute.search(line)
    ]
    assert not found, "\n".join(found)


def test_constraints_are_exact_versions_without_a_host_or_local_build() -> None:
    odd = [line for line in _constraints() if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9]+(\.[0-9a-z]+)*", line)]
    assert not odd


def test_every_requirement_is_pinned() -> None:
    pinned = {_name(line) for line in _constraints()}
    project = _pyproject()["project"]
    required = {_name(line) for line in project["dependencies"]}
    for lines in project["optional-dependencies"].values():
        required |= {_name(line) for line in lines}
    assert not required - pinned - {"penstock"}


def test_no_python_file_is_longer_than_500_lines() -> None:
    long = {str(path.relative_to(ROOT)): len(_text(path).splitlines()) for path in _own_files() if path.suffix == ".py"}
    assert not {path: lines for path, lines in long.items() if lines > 500}


def _run(code: str, *arguments: str) -> object:
    """Returns what `code` prints as JSON in a fresh interpreter."""
    command = [sys.executable, "-c", code, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def _own_files() -> list[Path]:
    """Returns the files that git holds or would add; skips the test outside a git checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in files if path.is_file()]


def _text(path: Path) -> str:
    """Returns the text of a file, of a binary one what can be read as text."""
    return path.read_text(encoding="utf-8", errors="replace")


def _pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _name(requirement: str) -> str:
    """Returns the normalised name of the package in a line such as `pytest-xdist>=3.6`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()
