"""A model as a Hugging Face directory: every rank writes a file of its own tensors, one of them what belongs to all.

    rank 0   model-00001-of-00002.safetensors   then, when all have written:
    rank 1   model-00002-of-00002.safetensors   model.safetensors.index.json, tokenizer files, and config.json at last

Without config.json a directory is not opened as a model: an export that was interrupted is none.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from penstock.errors import CheckpointError
from penstock.models.hugging_face.files import BESIDE_WEIGHTS, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, default_type
from penstock.models.hugging_face.origin import Origin

Sizes = dict[str, int]
"""Name of a tensor in the files -> its bytes."""


def in_file_form(origin: Origin, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors under the names and in the form that files of this kind of model have.

    Args:
        origin: of the model.
        state: tensors by their names in the model: those of whole layers, a tied one once.
    """
    from transformers.core_model_loading import revert_weight_conversion

    with default_type, torch.device("meta"):
        twin = origin.kind._from_config(copy.deepcopy(origin.config))
    made: dict[str, Tensor] = revert_weight_conversion(twin, {name: value.detach() for name, value in state.items()})
    return {name: value.cpu().contiguous() for name, value in made.items()}


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes:
    """Returns the bytes of each tensor."""
    return {name: value.numel() * value.element_size() for name, value in tensors.items()}


def file_names(sizes: Sequence[Sizes]) -> list[str]:
    """Returns the name of each rank's file, empty for one that has nothing to write."""
    total = sum(map(bool, sizes))
    if total == 1:
        return [WEIGHTS_FILE if each else "" for each in sizes]
    numbers = iter(range(1, total + 1))
    return [f"model-{next(numbers):05d}-of-{total:05d}.safetensors" if each else "" for each in sizes]


def make_directory(directory: Path, beside: Path | None) -> None:
    """Makes a directory to export into.

    Raises:
        CheckpointError: it holds a model already or cannot be made, or `beside` is no directory.
    """
    if beside is not None and not beside.is_dir():
        raise CheckpointError(f"tokenizer={beside} is no directory; give one with tokenizer files, or leave it out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = next((each for each in sorted(directory.iterdir()) if each.suffix in (".safetensors", ".json")), None)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be made ({error.strerror}); choose another directory") from error
    if held is not None:
        raise CheckpointError(
            f"{directory} holds {held.name} already, and nothing is written over; choose an empty one"
        )


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes one rank's file.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be written ({error}); make room or choose another directory") from error


def write_rest(directory: Path, origin: Origin, sizes: Sequence[Sizes], *, dtype: str, beside: Path | None) -> None:
    """Writes the index, the tokenizer's files and the configuration, once all tensors are there.

    Raises:
        CheckpointError: one cannot be written.
    """
    config = copy.deepcopy(origin.config)
    config.architectures, config.dtype = [origin.kind.__name__], dtype
    names = file_names(sizes)
    places = {name: file for own, file in zip(sizes, names, strict=True) for name in own}
    total = sum(sum(own.values()) for own in sizes)
    try:
        if len(set(places.values())) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for name in BESIDE_WEIGHTS if beside is not None else ():
            if (Path(beside or "") / name).is_file():
                shutil.copyfile(Path(beside or "") / name, directory / name)
        (directory / CONFIG_FILE).write_text(config.to_json_string(use_diff=True), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be written ({error.strerror}); make room or choose another"
        ) from error
