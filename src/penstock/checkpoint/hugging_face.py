"""Checkpoints to Hugging Face directories and back: safetensors with an index, config.json, tokenizer files.

Files of a Hugging Face model may have other names and forms than the model in memory (all experts of a layer in one
tensor): where there is a config.json, `transformers` itself leads from the one to the other. Where there is none,
tensors are taken as they are.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from penstock.checkpoint.convert import Opened, bytes_of, cast, natural, new_step, split_names
from penstock.checkpoint.directory import shard_name
from penstock.checkpoint.manifest import TensorEntry
from penstock.checkpoint.read import MODEL
from penstock.checkpoint.shard import entry_of, write_shard
from penstock.checkpoint.write import Label, Report, commit
from penstock.errors import CheckpointError
from penstock.models.hugging_face.directory import read_tensors
from penstock.models.hugging_face.export import (
    file_names,
    in_file_form,
    make_directory,
    sizes_of,
    write_rest,
    write_tensors,
)
from penstock.models.hugging_face.files import CONFIG_FILE, INDEX_FILE, fetching, meta_model, weight_files
from penstock.models.hugging_face.origin import Origin


def to_hugging_face(
    source: Opened,
    directory: Path,
    *,
    file_bytes: int,
    dtype: torch.dtype | None = None,
    like: Path | None = None,
) -> None:
    """Writes the weights of a checkpoint as a directory that `from_pretrained` opens.

    Args:
        source: the checkpoint.
        directory: empty, or not there yet.
        file_bytes: most bytes a file, but for a layer that is larger.
        dtype: of numbers with a fraction; None keeps theirs.
        like: a directory of this model, for its tokenizer files, and its config.json where the checkpoint has none.

    Raises:
        CheckpointError: damage in `source`, or a directory that holds something.
    """
    if like is not None and not like.is_dir():
        raise CheckpointError(f"like={like} is no directory; name one of this model, with its tokenizer files")
    make_directory(directory, like)
    origin = _origin(source.manifest.config, like)
    entries = source.weights()
    parts = _files(entries, file_bytes)
    sizes = [{name: bytes_of(entries[name]) for layer in part for name in layer} for part in parts]
    names = file_names(sizes)
    for at, part in enumerate(parts):
        tensors: dict[str, Tensor] = {}
        for layer in part:
            found = source.tensors([f"{MODEL}{name}" for name in layer])
            own = {name: cast(found[f"{MODEL}{name}"], dtype) for name in layer}
            tensors |= own if origin is None else in_file_form(origin, own)
        sizes[at] = sizes_of(tensors)
        write_tensors(directory / names[at], tensors)
    kinds = {entry.dtype for entry in entries.values() if getattr(torch, entry.dtype).is_floating_point}
    kind = str(dtype).removeprefix("torch.") if dtype is not None else min(kinds, default="float32")
    if origin is not None:
        write_rest(directory, origin, sizes, dtype=kind, beside=like)
    elif len(names) > 1:
        places = {name: file for own, file in zip(sizes, names, strict=True) for name in own}
        total = sum(sum(own.values()) for own in sizes)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def from_hugging_face(directory: Path, root: Path, *, num_files: int = 1, dtype: torch.dtype | None = None) -> Path:
    """Returns a checkpoint of step 0 under `root`, of the weights in a Hugging Face directory.

    Args:
        directory: with safetensors; pickles are not opened.
        root: receives the checkpoint.
        num_files: into how many files.
        dtype: as for `to_hugging_face`.

    Raises:
        CheckpointError: no weights, damaged ones, or those of another model than config.json says.
    """
    files = weight_files(directory)
    model = meta_model(directory) if (directory / CONFIG_FILE).is_file() else None
    aliases: dict[str, str] = {}
    if model is None:
        entries = _entries(files)
    else:
        tensors, aliases = _once(model)
        entries = {name: entry_of(tensor) for name, tensor in tensors.items()}
    parts = split_names(entries, num_files=num_files)
    step = new_step(root, 0)
    reports = []
    for number, names in enumerate(parts):
        read = _read(model, directory, files, {name: entries[name] for name in names})
        own = {f"{MODEL}{name}": cast(tensor, dtype) for name, tensor in read.items()}
        reports.append(Report(file=write_shard(step / shard_name(number, 0), own)))
    reports[0] = Report(file=reports[0].file, aliases=aliases)
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")) if model is not None else None
    commit(step, reports, Label(0, config=config))
    return step


def _origin(config: Mapping[str, Any] | None, like: Path | None) -> Origin | None:
    if config is None and like is not None and (like / CONFIG_FILE).is_file():
        config = json.loads((like / CONFIG_FILE).read_text(encoding="utf-8"))
    if config is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        model = meta_model(Path(folder))
    return Origin(type(model), model.config)


def _files(entries: Mapping[str, TensorEntry], file_bytes: int) -> list[list[list[str]]]:
    """Returns for each file its layers, for each layer the names of its tensors."""
    layers: dict[str, list[str]] = {}
    for name in sorted(entries, key=natural):
        match = re.match(r"(.*?\.\d+)\.", name)
        layers.setdefault(match[1] if match else "", []).append(name)
    parts: list[list[list[str]]] = []
    room = 0
    for names in layers.values():
        size = sum(bytes_of(entries[name]) for name in names)
        if not parts or size > room:
            parts.append([])
            room = file_bytes
        parts[-1].append(names)
        room -= size
    return parts


def _once(model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors that a model saves, tied ones once, and other name -> name of the tied ones."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        stored = first.setdefault(id(parameter), name)
        if stored != name:
            aliases[name] = stored
    return {name: tensor for name, tensor in model.state_dict().items() if name not in aliases}, aliases


def _entries(files: Mapping[str, Path]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for file in sorted(set(files.values())):
        with safe_open(file, framework="pt") as handle:
            own = [name for name, place in files.items() if place == file]
            entries |= {name: entry_of(handle.get_tensor(name)) for name in own}
    return entries


def _read(model: Any, directory: Path, files: dict[str, Path], entries: Mapping[str, TensorEntry]) -> dict[str, Tensor]:
    if model is None:
        with fetching(files) as fetch:
            return {name: fetch(name) for name in entries}
    tensors = {name: torch.empty(entry.shape, dtype=getattr(torch, entry.dtype)) for name, entry in entries.items()}
    read_tensors(model, directory, files, tensors)
    return tensors
