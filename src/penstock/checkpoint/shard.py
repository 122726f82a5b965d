"""One rank's part of a checkpoint: named tensors to a synced safetensors file, and back.

    file     | length | header: names, types, shapes, offsets | tensor | tensor | …
    checked  |---------- ShardFile.sha256 -----------|--- sha256 of each ---|

A tensor is read through a mapping of the file: it takes memory where it is copied to, and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from penstock.checkpoint.manifest import OptimizerRecord, ShardFile, TensorEntry
from penstock.errors import CheckpointError

_LENGTH_BYTES = 8
_HASHING_THREADS = 4
"""A processor without instructions for SHA-256 hashes 0.2 GB a second, one with them 2 GB; both read faster."""
_METADATA = {"format": "pt"}
"""Readers of Hugging Face directories ask for it."""


@dataclass(frozen=True, eq=False)
class Shard:
    """What one rank puts into a checkpoint."""

    tensors: Mapping[str, Tensor]
    """Tensors under the original model's names: `model/…`, `optimizer/…`; no name on two ranks."""
    plan: str = ""
    """Hash of the plan that this rank runs."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other name of a tied parameter -> the name that it is stored under, by whichever rank."""
    optimizers: tuple[OptimizerRecord, ...] = ()
    """Settings of this rank's optimizers."""


def entry_of(tensor: Tensor) -> TensorEntry:
    """Returns the tensor's type and shape as the manifest writes them."""
    return TensorEntry(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> ShardFile:
    """Returns the manifest's row for the file it has written and synced."""
    plain = _own_storage(tensors)
    path.touch()
    mode = path.stat().st_mode  # what the user's umask leaves, where safetensors makes files for the owner alone
    try:
        save_file(plain, path, metadata=_METADATA)
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    entries = {
        name: TensorEntry(entry.dtype, entry.shape, digest(tensor))
        for name, tensor in sorted(plain.items())
        for entry in [entry_of(tensor)]
    }
    path.chmod(mode)
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        header = _header(path)
    return ShardFile(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(header).hexdigest(),
        tensors=entries,
        header_bytes=len(header),
    )


@contextmanager
def open_shard(path: Path, entry: ShardFile) -> Iterator[ShardReader]:
    """Yields a reader of a file whose header is what was saved.

    Raises:
        CheckpointError: It is not, or the file cannot be read; names the file.
    """
    try:
        _check_header(path, entry)
        with safe_open(path, framework="pt") as file:
            yield ShardReader(path, entry, file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; use another checkpoint") from error


class ShardReader:
    """An open file of a checkpoint."""

    def __init__(self, path: Path, entry: ShardFile, file: safe_open) -> None:
        self._path, self._entry, self._file = path, entry, file

    def mapped(self, name: str) -> Tensor:
        """Returns a tensor as it lies in the file: to be copied at once, for a later save may delete the file."""
        tensor: Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def check(self, names: Sequence[str]) -> None:
        """Raises CheckpointError, naming file and tensor, unless all of them are what was saved."""
        own = {name: self._entry.tensors[name].sha256 for name in names}
        tensors = [self.mapped(name) for name, saved in own.items() if saved]
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            digests = pool.map(digest, tensors)
            for (name, saved), found in zip(((n, s) for n, s in own.items() if s), digests, strict=True):
                if found != saved:
                    raise CheckpointError(
                        f'{self._path} has changed since it was saved: "{name}" has SHA-256 {found[:12]}… instead of '
                        f"{saved[:12]}…; use another checkpoint"
                    )


def digest(tensor: Tensor) -> str:
    """Returns the SHA-256 of the bytes of a CPU tensor."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _check_header(path: Path, entry: ShardFile) -> None:
    if entry.header_bytes:
        found = hashlib.sha256(_header(path)).hexdigest()
    else:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        what = "its header" if entry.header_bytes else "it"
        raise CheckpointError(
            f"{path} has changed since it was saved: {what} has SHA-256 {found[:12]}… instead of "
            f"{entry.sha256[:12]}…; use another checkpoint"
        )


def _header(path: Path) -> bytes:
    """Returns the bytes before the first tensor; no more than there are, whatever a damaged length says."""
    with path.open("rb") as file:
        length = file.read(_LENGTH_BYTES)
        claimed = int.from_bytes(length, "little")
        return length + file.read(min(claimed, path.stat().st_size))


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
