"""Checkpoints into other files: another number of them, or the weights alone in one.

Tensors are read through a mapping of their files and written from there: they are never all in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from penstock.checkpoint.directory import latest, shard_name, step_directory
from penstock.checkpoint.manifest import MANIFEST, Manifest, TensorEntry, read_manifest
from penstock.checkpoint.read import MODEL, mapped_tensors, verify_tensors
from penstock.checkpoint.shard import write_shard
from penstock.checkpoint.write import Label, Report, clear, commit
from penstock.errors import CheckpointError


@dataclass(frozen=True)
class Opened:
    """A checkpoint to convert; every byte that is asked of it is checked on the way.

    Attributes:
        path: its directory.
        manifest: what it holds.
    """

    path: Path
    manifest: Manifest

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns verified tensors as they lie in the files.

        Raises:
            CheckpointError: one is damaged.
        """
        verify_tensors(self.path, self.manifest, names)
        return mapped_tensors(self.path, self.manifest, names)

    def weights(self) -> dict[str, TensorEntry]:
        """Returns the parameters and buffers by their names in the model."""
        stored = self.manifest.tensors()
        return {name.removeprefix(MODEL): entry for name, entry in stored.items() if name.startswith(MODEL)}


def is_checkpoint(path: Path) -> bool:
    """Returns whether `path` is a checkpoint, or a directory with some."""
    return (path / MANIFEST).is_file() or _newest(path) is not None


def opened(path: Path) -> Opened:
    """Returns the checkpoint at `path`, or the newest of those in it, or in the `checkpoints` of a run of training.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    own = path if (path / MANIFEST).is_file() else _newest(path) or path
    return Opened(own, read_manifest(own))


def _newest(path: Path) -> Path | None:
    return latest(path) or latest(path / "checkpoints")


def to_checkpoint(source: Opened, root: Path, *, num_files: int) -> Path:
    """Returns a checkpoint with everything that `source` holds, in `num_files` files, under `root`.

    Raises:
        CheckpointError: a file of `source` is damaged, or `root` holds this step already.
    """
    manifest = source.manifest
    parts = [[*part] for part in split_names(manifest.tensors(), num_files=num_files)]
    directory = new_step(root, manifest.step)
    reports = []
    for number, names in enumerate(parts):
        file = directory / shard_name(number, 0)
        reports.append(Report(file=write_shard(file, source.tensors(names)), plan=manifest.plan))
    reports[0] = Report(
        file=reports[0].file, plan=manifest.plan, aliases=manifest.aliases, optimizers=manifest.optimizers
    )
    label = Label(manifest.step, manifest.extra, manifest.layout, manifest.steps_done, manifest.config)
    commit(directory, reports, label)
    clear(root, directory, keep=None)
    return directory


def to_file(source: Opened, file: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes all parameters and buffers into one safetensors file, under the model's own names.

    Args:
        source: what to write of.
        file: must not exist.
        dtype: of numbers with a fraction; None keeps theirs.

    Raises:
        CheckpointError: damage in `source`, or `file` exists.
    """
    if file.exists():
        raise CheckpointError(f"{file} exists, and nothing is written over; choose another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    names = list(source.weights())
    found = source.tensors([f"{MODEL}{name}" for name in names])
    part = file.with_name(f"{file.name}.part")
    write_shard(part, {name: cast(found[f"{MODEL}{name}"], dtype) for name in names})
    os.replace(part, file)


def new_step(root: Path, step: int) -> Path:
    """Returns the directory for a checkpoint of `step`, made.

    Raises:
        CheckpointError: it holds one.
    """
    directory = step_directory(root, step)
    if (directory / MANIFEST).exists():
        raise CheckpointError(
            f"{directory} is a checkpoint already, and nothing is written over; choose another directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns a tensor of floating-point numbers in `dtype`, any other as it is."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def split_names(tensors: Mapping[str, TensorEntry], *, num_files: int) -> list[list[str]]:
    """Returns the names in as many lists, in the model's order, each with its share of the bytes as nearly as may be.

    Raises:
        CheckpointError: fewer tensors than files.
    """
    if not 1 <= num_files <= len(tensors):
        raise CheckpointError(
            f"{len(tensors)} tensors do not fill {num_files} files; use a number from 1 to {len(tensors)}"
        )
    names = sorted(tensors, key=natural)
    total = sum(bytes_of(tensors[name]) for name in names) or 1
    parts: list[list[str]] = [[]]
    written = 0
    for at, name in enumerate(names):
        left = len(names) - at
        full = written >= total * len(parts) / num_files
        if parts[-1] and len(parts) < num_files and (full or left == num_files - len(parts)):
            parts.append([])
        parts[-1].append(name)
        written += bytes_of(tensors[name])
    return parts


def natural(name: str) -> tuple[list[int | str], str]:
    """Returns a key that sorts a stored name by its parameter, `layers.2` before `layers.10`, then by kind of state."""
    own = name.rsplit("/", maxsplit=1)[-1]
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", own)], name


def bytes_of(entry: TensorEntry) -> int:
    """Returns how many bytes a tensor has."""
    dtype: torch.dtype = getattr(torch, entry.dtype)
    return prod(entry.shape) * dtype.itemsize
