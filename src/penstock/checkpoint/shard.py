"""One rank's part of a checkpoint: named tensors to a synced safetensors file, and back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from penstock.checkpoint.manifest import ShardFile, TensorEntry
from penstock.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class Shard:
    """What one rank puts into a checkpoint."""

    tensors: Mapping[str, Tensor]
    """Tensors under the original model's names: `model/…`, `optimizer/…`; no name on two ranks."""
    plan: str = ""
    """Hash of the plan that this rank runs."""


def entry_of(tensor: Tensor) -> TensorEntry:
    """Returns the tensor's type and shape as the manifest writes them."""
    return TensorEntry(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> ShardFile:
    """Returns the manifest's row for the file it has written and synced."""
    try:
        save_file(_own_storage(tensors), path)
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    entries = {name: entry_of(tensor) for name, tensor in sorted(tensors.items())}
    return ShardFile(name=path.name, bytes=path.stat().st_size, sha256=digest, tensors=entries)


def read_shard(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Returns the named tensors of a file, on the CPU, in memory of their own.

    Raises:
        CheckpointError: The file is not safetensors or lacks a name.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Cloned, because the tensors may be views of the mapped file, which a later save may delete.
            return {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; use another checkpoint") from error


def verify_shard(path: Path, entry: ShardFile) -> None:
    """Raises CheckpointError, naming the file, unless its content is what was saved."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; use another checkpoint") from error
    if digest != entry.sha256:
        raise CheckpointError(
            f"{path} has changed since it was saved: SHA-256 {digest[:12]}… instead of {entry.sha256[:12]}…; "
            "use another checkpoint"
        )


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns contiguous CPU tensors that share no memory: safetensors refuses those that do."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = torch.clone(value, memory_format=torch.contiguous_format)
        seen.add(value.untyped_storage().data_ptr())
        plain[name] = value
    return plain
