"""Names under a checkpoint root: which checkpoints exist, which files are left-overs.

Only names that `save` itself writes are ever deleted; a stranger's file in the same place stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from penstock.checkpoint.manifest import MANIFEST

_STEP = re.compile(r"step-(\d{8,})")
_SHARD = re.compile(r"rank-\d+(?:\.g(\d+))?\.(?:safetensors|report\.json(?:\.tmp)?)")


def step_directory(root: Path, step: int) -> Path:
    """Returns where the checkpoint of `step` lies."""
    return root / f"step-{step:08d}"


def shard_name(rank: int, generation: int) -> str:
    """Returns the name of a rank's file; a step that is saved again writes new names beside the old."""
    return f"rank-{rank}.safetensors" if generation == 0 else f"rank-{rank}.g{generation}.safetensors"


def report_name(shard: str) -> str:
    """Returns the name of the file in which a rank that saves in the background tells how it went."""
    return shard.removesuffix("safetensors") + "report.json"


def committed(root: Path) -> list[Path]:
    """Returns the directories that hold a manifest, by ascending step."""
    return [path for path in _step_directories(root) if (path / MANIFEST).is_file()]


def latest(root: str | Path) -> Path | None:
    """Returns the committed checkpoint with the highest step, or None."""
    return max(committed(Path(root)), key=_step_of, default=None)


def next_generation(directory: Path) -> int:
    """Returns a generation of shard names that `directory` does not hold yet."""
    generations = [int(match[1] or 0) for path in directory.iterdir() if (match := _SHARD.fullmatch(path.name))]
    return max(generations, default=-1) + 1


def sweep(root: Path) -> None:
    """Deletes what saves that never committed have left behind."""
    for path in _step_directories(root):
        if not (path / MANIFEST).is_file():
            remove(path)


def remove(directory: Path) -> None:
    """Deletes a checkpoint, its manifest first: half deleted, it is no checkpoint any more."""
    (directory / MANIFEST).unlink(missing_ok=True)
    remove_shards(directory, keep=())
    if not any(directory.iterdir()):
        directory.rmdir()


def remove_shards(directory: Path, *, keep: Collection[str]) -> None:
    """Deletes shards and reports in `directory` not named in `keep`, and a manifest that was never renamed."""
    (directory / f"{MANIFEST}.tmp").unlink(missing_ok=True)
    for path in list(directory.iterdir()):
        if _SHARD.fullmatch(path.name) and path.name not in keep:
            path.unlink(missing_ok=True)


def prune(root: Path, *, keep: int, saved: Path) -> None:
    """Deletes all but `saved` and the `keep` - 1 others with the highest steps."""
    others = [path for path in committed(root) if path != saved]
    for path in others[: max(0, len(others) - (keep - 1))]:
        remove(path)


def _step_directories(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
