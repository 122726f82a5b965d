"""The manifest: the small file whose appearance makes a checkpoint exist.

    step-00000300/
        rank-0.safetensors    tensors by name
        rank-1.safetensors
        manifest.json         step, every file with its size, its tensors and their SHA-256, at the end its own SHA-256;
                              written last, by renaming

Nothing is ever unpickled: tensors are safetensors, everything else is JSON of a checked shape. Each tensor has a
checksum of its own, so that a rank of another layout reads and checks what it needs and no more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import CheckpointError

FORMAT = "penstock-checkpoint"
VERSION = 2
MANIFEST = "manifest.json"
_LAST_FIELD = b'"checksum"'


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Type, shape and checksum of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str = ""
    """Of its bytes; empty in version 1, where the file has one for all."""

    def fits(self, other: TensorEntry) -> bool:
        """Returns whether both have the same type and shape."""
        return (self.dtype, self.shape) == (other.dtype, other.shape)


class ShardFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rank's file."""

    name: str
    bytes: int
    sha256: str
    """Of the first `header_bytes`; of the whole file in version 1."""
    tensors: dict[str, TensorEntry]
    header_bytes: int = 0
    """How many bytes come before the first tensor's; 0 in version 1."""


class GroupRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter group of an optimizer, by the names of its parameters."""

    parameters: tuple[str, ...]
    settings: dict[str, Any]
    """Learning rate, betas, …"""
    scheduler: dict[str, Any] = {}
    """What the learning rate scheduler keeps for each group: its base learning rate, …"""


class OptimizerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an optimizer on one rank has beside the tensors of its parameters."""

    kind: str
    """Name of its class."""
    groups: tuple[GroupRecord, ...]
    scheduler: dict[str, Any] | None = None
    """State of its learning rate scheduler, None where it has none."""


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Over how many ranks the checkpoint was saved."""

    num_ranks: int
    num_replicas: int = 1


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a committed checkpoint consists of."""

    format: str = FORMAT
    version: int = VERSION
    step: int
    model: str
    """Digest of the model's tensor names, types and shapes: the same in every layout."""
    plan: str
    """Hash of the plan it was saved under."""
    files: tuple[ShardFile, ...]
    extra: dict[str, Any]
    """The caller's own values, as `plain.encoded` writes them: configuration, digest of the data."""
    layout: Layout | None = None
    """None in version 1."""
    steps_done: int | None = None
    """Training steps of the pipeline, which key its random numbers; None in version 1, where it is `step`."""
    aliases: dict[str, str] = {}
    """Other name of a tied parameter -> the name that it is stored under."""
    optimizers: tuple[OptimizerRecord, ...] = ()
    """Of every rank; each parameter is in one of them at most."""
    config: dict[str, Any] | None = None
    """What config.json says of a Hugging Face model; None for other models."""
    checksum: str = ""
    """SHA-256 of the file up to this field, which is its last; empty in version 1."""

    def tensors(self) -> dict[str, TensorEntry]:
        """Returns every stored tensor by name, over all files."""
        return {name: entry for file in self.files for name, entry in file.tensors.items()}


class _Header(msgspec.Struct, frozen=True):
    """What every version of the format keeps."""

    format: str
    version: int


_HEADERS, _MANIFESTS = msgspec.json.Decoder(_Header), msgspec.json.Decoder(Manifest)
"""Made once, because threads that first decode a type at the same time crash in msgspec 0.22."""


def model_signature(tensors: Mapping[str, TensorEntry]) -> str:
    """Returns the SHA-256 of the names, types and shapes of the tensors under `model/`."""
    rows = sorted(f"{name} {entry.dtype} {entry.shape}" for name, entry in tensors.items() if name.startswith("model/"))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """Returns the manifest of the checkpoint directory `path`, its files present and of the right size.

    Raises:
        CheckpointError: No checkpoint, another program's, a newer version's, or damaged; names the file.
    """
    path = Path(path)
    file = path / MANIFEST
    content = _read(file, checkpoint=path)
    try:
        header = _HEADERS.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is damaged or not penstock's ({error}); use another") from error
    if header.format != FORMAT:
        raise CheckpointError(f'{file} has format "{header.format}", not "{FORMAT}"; name a penstock checkpoint')
    if header.version > VERSION:
        raise CheckpointError(
            f"{file} has format version {header.version}, this penstock reads up to {VERSION}; upgrade"
        )
    try:
        manifest = _MANIFESTS.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); use another checkpoint") from error
    if manifest.checksum and manifest.checksum != _checksum(content):
        raise CheckpointError(f"{file} has changed since it was saved; use another checkpoint")
    check_sizes(path, manifest.files)
    return manifest


def check_sizes(path: Path, files: Iterable[ShardFile]) -> None:
    """Raises CheckpointError, naming the file, unless every file lies in `path` with its size."""
    for entry in files:
        file = path / entry.name
        if Path(entry.name).name != entry.name:
            raise CheckpointError(
                f'{path / MANIFEST} names a file outside its directory, "{entry.name}"; do not use it'
            )
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; restore it or use another checkpoint")
        if file.stat().st_size != entry.bytes:
            raise CheckpointError(
                f"{file} has {file.stat().st_size} bytes instead of {entry.bytes}: cut short or replaced; "
                "use another checkpoint"
            )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Commits the checkpoint directory `path`: after the renaming it exists, before it does not."""
    bare = msgspec.json.encode(msgspec.structs.replace(manifest, checksum=""))
    content = msgspec.json.format(bare, indent=1)
    content = content[: content.rindex(_LAST_FIELD)] + b'%s: "%s"\n}' % (_LAST_FIELD, _checksum(content).encode())
    temporary = path / f"{MANIFEST}.tmp"
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path / MANIFEST)
    sync_directory(path)


def sync_directory(path: Path) -> None:
    """Makes the names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(content: bytes) -> str:
    """Returns the SHA-256 of what stands before the last field."""
    return hashlib.sha256(content[: content.rfind(_LAST_FIELD)]).hexdigest()


def _read(file: Path, *, checkpoint: Path) -> bytes:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not checkpoint.exists():
            raise CheckpointError(f"checkpoint {checkpoint} does not exist; check the path") from error
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint: it has no {MANIFEST}; name a directory that has one"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; check its permissions") from error
