"""Reads tensors of a checkpoint by name, from whichever rank's file holds them.

The number of ranks that saved does not matter: a rank asks for the names it needs, and only these are read and
verified.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from penstock.checkpoint.manifest import Manifest, read_manifest
from penstock.checkpoint.shard import entry_of, open_shard
from penstock.errors import CheckpointError, nearest

MODEL = "model/"
"""What the names of parameters and buffers begin with; optimizer states: `optimizer/STATE/NAME`."""
_SHOWN = 5
"""Names in a message."""


def read_tensors(path: str | Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Returns the named tensors of the checkpoint directory `path`, on the CPU, in memory of their own.

    Raises:
        CheckpointError: A name is not in the checkpoint, or a tensor is damaged.
    """
    path, wanted = Path(path), list(names)
    manifest = read_manifest(path)
    verify_tensors(path, manifest, wanted)
    return {name: tensor.clone() for name, tensor in mapped_tensors(path, manifest, wanted).items()}


def verify_tensors(path: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Raises CheckpointError, naming what is missing or damaged, unless all are what was saved."""
    wanted = list(names)
    _check_present(path, manifest, wanted)
    for file in manifest.files:
        here = [name for name in wanted if name in file.tensors]
        if here:
            with open_shard(path / file.name, file) as shard:
                shard.check(here)


def mapped_tensors(path: Path, manifest: Manifest, names: Iterable[str]) -> dict[str, Tensor]:
    """Returns tensors that have been verified, as they lie in the files: they take no memory until they are read.

    Copy them soon: a later save may delete the files.
    """
    wanted = list(names)
    tensors: dict[str, Tensor] = {}
    for file in manifest.files:
        here = [name for name in wanted if name in file.tensors]
        if here:
            with open_shard(path / file.name, file) as shard:
                tensors.update({name: shard.mapped(name) for name in here})
    return {name: tensors[name] for name in wanted}


def names_for(manifest: Manifest, model_names: Iterable[str]) -> list[str]:
    """Returns the stored names that belong to these parameters and buffers: values and optimizer states.

    A stored name is `model/NAME`, or `optimizer/STATE/NAME` and `optimizer_number/STATE/NAME`.
    """
    known = set(model_names)
    return [name for name in manifest.tensors() if name.split("/", 1 if name.startswith(MODEL) else 2)[-1] in known]


def check_fits(path: Path, manifest: Manifest, *, expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless the checkpoint holds every expected tensor with its shape and type."""
    _check_present(path, manifest, list(expected))
    stored = manifest.tensors()
    for name, tensor in expected.items():
        wanted, found = entry_of(tensor), stored[name]
        if not wanted.fits(found):
            raise CheckpointError(
                f'"{name}" is {found.dtype} {list(found.shape)} in {path} '
                f"and {wanted.dtype} {list(wanted.shape)} in this model; "
                "resume with the model that was saved, or start anew"
            )


def check_all_taken(path: Path, manifest: Manifest, taken: Collection[str]) -> None:
    """Raises CheckpointError unless all parameters and buffers of the checkpoint are taken, by whichever rank.

    A part of a larger model would be loaded without a word.
    """
    stored = [name.removeprefix(MODEL) for name in manifest.tensors() if name.startswith(MODEL)]
    left = [name for name in stored if name not in taken]
    if left:
        raise CheckpointError(
            f"{path} holds {len(stored)} tensors, and this model has no place for {len(left)} of them: {_listed(left)}."
            " Load it into the model that was saved, or take what you need with penstock.checkpoint.read_tensors"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _check_present(path: Path, manifest: Manifest, names: list[str]) -> None:
    stored = manifest.tensors()
    missing = [name for name in names if name not in stored]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {len(names)} tensors: {_listed(missing)}.{nearest(missing[0], stored)} "
            "It is of another model or optimizer; use the checkpoint of this one"
        )
