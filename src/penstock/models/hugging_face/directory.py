"""A model out of a Hugging Face directory: each rank reads the tensors of its own stages, and no others.

The names and forms in the files are those of `transformers`, which may keep another form in memory (all experts of a
layer in one tensor). Its own conversion rules lead from the one to the other.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penstock.errors import CheckpointError
from penstock.models.cut import CutModel
from penstock.models.filling import fill
from penstock.models.hugging_face.files import CONFIG_FILE, Fetch, fetching, meta_model, shapes_in, weight_files
from penstock.models.hugging_face.front_end import units_of
from penstock.models.hugging_face.plan import parts_of


@dataclass(frozen=True)
class Directory:
    """A Hugging Face directory, which Pipeline takes as a model.

    Attributes:
        path: with config.json and safetensors.
        dtype: of the parameters; None for what the configuration says.
    """

    path: str | Path
    dtype: torch.dtype | None = None


def from_directory(directory: Directory) -> CutModel:
    """Returns the causal language model of a Hugging Face directory, cut into units, its tensors still in the files.

    Raises:
        ModelError: a configuration that makes no such model, or one that cannot be cut.
        CheckpointError: no safetensors in it.
    """
    root = Path(directory.path)
    model = meta_model(root, dtype=directory.dtype)
    return replace(units_of(model, parts_of(model)), fill=partial(_fill, model, root, weight_files(root)))


def check_directory(directory: Directory) -> None:
    """Refuses a directory that could not be read, from the headings of its files alone: before any rank starts.

    Raises:
        ModelError: a configuration that makes no such model.
        CheckpointError: files that are missing, torn, or of another model than the configuration.
    """
    root = Path(directory.path)
    model = meta_model(root, dtype=directory.dtype)
    files, tensors = weight_files(root), model.state_dict()
    plain, _, _ = _sources(model, files, tensors)
    for file in sorted({*files.values()}):
        shapes = shapes_in(file)
        for source, name in plain.items():
            if files[source] == file and source in shapes:
                _check_shape(shapes[source], tuple(tensors[name].shape), name, root)


def _fill(model: Any, directory: Path, files: dict[str, Path], stages: Sequence[nn.Module], seed: int | None) -> None:
    fill({"": model}, stages, seed=None, read=partial(read_tensors, model, directory, files))


def read_tensors(model: Any, directory: Path, files: Mapping[str, Path], tensors: Mapping[str, Tensor]) -> set[str]:
    """Fills `tensors`, by their names in `model`, from `files`; returns the names that were there.

    Raises:
        CheckpointError: one is missing, damaged or of another shape.
    """
    plain, converted, left = _sources(model, files, tensors)
    _check_left(model, left, directory)
    known: set[str] = set()
    with fetching(dict(files)) as fetch:
        for source, name in plain.items():
            _put(fetch(source), tensors[name], name, directory)
            known.add(name)
        for name, (converter, sources) in converted.items():
            found = _converted(model, name, converter, sources, fetch, directory)
            for target, value in found.items():
                if target in tensors:
                    _put(value, tensors[target], target, directory)
                    known.add(target)
    _check_complete(model, tensors, known, directory)
    return known


_Source = tuple[str, str]
"""A tensor's name in the files, and the pattern of the converter that takes it."""


def _sources(
    model: Any, files: Mapping[str, Path], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, tuple[Any, list[_Source]]], list[str]]:
    """Returns what to read, and names in the model's form of what it has no place for.

    What to read: name in the files -> name in the model, and name in the model -> converter and what it takes.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [each for each in rules if isinstance(each, WeightRenaming)]
    converters = [each for each in rules if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    known = model.state_dict()
    plain: dict[str, str] = {}
    left: list[str] = []
    converted: dict[str, tuple[Any, list[_Source]]] = {}
    for source in sorted(files, key=dot_natural_key):
        name, pattern = rename_source_key(source, renamings, converters, model.base_model_prefix, known)
        if name not in known and source in known:
            name, pattern = source, None
        if name not in known:
            left.append(name)
        if name not in tensors:
            continue
        if pattern is None:
            plain[source] = name
        else:
            converted.setdefault(name, (by_pattern[pattern], []))[1].append((source, pattern))
    return plain, converted, left


def _check_left(model: Any, left: Sequence[str], directory: Path) -> None:
    """Refuses files with layers that the configuration does not have, and warns of other tensors without a place.

    What the class itself says to leave out, such as layers that predict further tokens, is left out.
    """
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    foreign = [name for name in left if not any(re.search(each, name) for each in ignored)]
    known = model.state_dict().keys()
    lists = {match[1] for name in known if (match := _IN_LIST.match(name))}
    for name in foreign:
        match = _IN_LIST.match(name)
        if match and match[1] in lists and not any(each.startswith(f"{match[1]}.{match[2]}.") for each in known):
            raise CheckpointError(
                f"{directory} holds {name}, and the model of its {CONFIG_FILE} has no {match[1]}.{match[2]}; a part of "
                f"a larger model is not loaded unasked: give the {CONFIG_FILE} that belongs to the weights"
            )
    if foreign:
        warnings.warn(
            f"{directory} holds {len(foreign)} tensors that {type(model).__name__} has no place for, and which are "
            f"left out: {', '.join(foreign[:3])}{' …' if len(foreign) > 3 else ''}",
            stacklevel=2,
        )


_IN_LIST = re.compile(r"(.*?[a-z_])\.(\d+)\.")
"""Name of a list, and the place in it, of a tensor in one of its items."""


def _converted(
    model: Any, name: str, converter: Any, sources: Sequence[_Source], fetch: Fetch, directory: Path
) -> dict[str, Tensor]:
    """Returns the tensors that a converter makes of its sources, by their names in the model."""
    own = copy.deepcopy(converter)
    for source, pattern in sources:
        own.add_tensor(name, source, pattern, partial(fetch, source))
    try:
        made = own.convert(name, model=model, config=model.config)
    except CheckpointError:
        raise
    except Exception as error:
        names = ", ".join(source for source, _ in sources[:3])
        raise CheckpointError(
            f"{directory}: {names} … do not make {name} ({type(error).__name__}: {error}); the files are of another "
            "model than the configuration"
        ) from error
    return {target: value[0] if isinstance(value, list) else value for target, value in made.items()}


def _put(value: Tensor, tensor: Tensor, name: str, directory: Path) -> None:
    _check_shape(tuple(value.shape), tuple(tensor.shape), name, directory)
    if value.is_floating_point() != tensor.is_floating_point() or (tensor.is_floating_point() and value.itemsize == 1):
        raise CheckpointError(
            f"{directory} has {name} as {str(value.dtype).removeprefix('torch.')}, which is not rounded to the model's "
            f"{str(tensor.dtype).removeprefix('torch.')}; quantized weights cannot be trained, give the original ones"
        )
    tensor.detach().copy_(value)


def _check_shape(found: tuple[int, ...], needed: tuple[int, ...], name: str, directory: Path) -> None:
    if found != needed:
        raise CheckpointError(
            f"{directory} has {name} with shape {found} and its configuration makes {needed}; config.json and weights "
            "are of different models"
        )


def _check_complete(model: Any, tensors: Mapping[str, Tensor], known: set[str], directory: Path) -> None:
    """Refuses a directory without a tensor that is needed: one that is saved, under none of its names."""
    filled = {id(tensors[name]) for name in known}
    saved = model.state_dict().keys()
    computed = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    missing = [
        name
        for name, tensor in tensors.items()
        if id(tensor) not in filled and name in saved and not any(re.search(each, name) for each in computed)
    ]
    if missing:
        raise CheckpointError(
            f"{directory} has no {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}; the files are incomplete "
            "or of another model than the configuration"
        )
