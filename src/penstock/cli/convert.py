"""`penstock convert`: a checkpoint into other files, and to or from a Hugging Face directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from penstock.cli.options import parse
from penstock.errors import CheckpointError

_GIB = 2**30
_Dtype = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True)
class Convert:
    """Turn a checkpoint into other files: another number of them, weights alone, a Hugging Face directory and back."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC", help_behavior_hint="")]
    """A checkpoint, a directory with some (the newest is taken), the output of train, or a Hugging Face directory."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST", help_behavior_hint="")]
    """Receives the new checkpoint as DST/step-…; NAME.safetensors receives the weights alone, in this one file."""
    hugging_face: Annotated[bool, tyro.conf.arg(aliases=["--hf"])] = False
    """Make DST a Hugging Face directory: weights by the names of its files, index, config.json."""
    files: int = 1
    """How many files the new checkpoint has."""
    file_gib: float = 5.0
    """Most GiB a file of a Hugging Face directory."""
    like: Annotated[Path | None, tyro.conf.arg(metavar="DIR", constructor=Path, help_behavior_hint="")] = None
    """A Hugging Face directory of this model, whose tokenizer files are copied, and config.json if SRC has none."""
    dtype: Annotated[_Dtype | None, tyro.conf.arg(help_behavior_hint="(default: as it is)")] = None
    """Type of the weights' numbers."""


def run(argv: list[str]) -> int:
    """Converts as `argv` says; returns the exit code."""
    options = parse(Convert, argv, command="convert")
    _check_together(options)
    written = _converted(options)
    Console(soft_wrap=True, highlight=False).print(f"wrote {written}")
    return 0


def _check_together(options: Convert) -> None:
    """Refuses options that would do nothing, or ask for two things at once."""
    if options.file_gib <= 0:
        raise CheckpointError(f"file-gib={options.file_gib} leaves no room for a tensor; use a number above 0, e.g. 5")
    one_file = options.target.suffix == ".safetensors"
    if one_file and options.hugging_face:
        raise CheckpointError(
            f"--hugging-face makes a directory, and {options.target} names one file; leave one of them out"
        )
    if options.files != 1 and (one_file or options.hugging_face):
        what = "weights in one file" if one_file else "a Hugging Face directory, which --file-gib splits"
        raise CheckpointError(f"files={options.files} is for a checkpoint, not for {what}; leave it out")
    if options.like is not None and not options.hugging_face:
        raise CheckpointError(f"like={options.like} is for a Hugging Face directory; add --hugging-face")


def _converted(options: Convert) -> Path:
    import torch

    from penstock.checkpoint.convert import is_checkpoint, opened, to_checkpoint, to_file

    dtype = getattr(torch, options.dtype) if options.dtype else None
    source, target = options.source, options.target
    if not is_checkpoint(source) and any(source.glob("*.safetensors")):
        if options.hugging_face or target.suffix == ".safetensors":
            raise CheckpointError(
                f"{source} is no checkpoint; a Hugging Face directory becomes a checkpoint, e.g. DST=out"
            )
        from penstock.checkpoint.hugging_face import from_hugging_face

        return from_hugging_face(source, target, num_files=options.files, dtype=dtype)
    found = opened(source)
    if options.hugging_face:
        from penstock.checkpoint.hugging_face import to_hugging_face

        to_hugging_face(found, target, file_bytes=int(options.file_gib * _GIB), dtype=dtype, like=options.like)
        return target
    if target.suffix == ".safetensors":
        to_file(found, target, dtype=dtype)
        return target
    if dtype is not None:
        raise CheckpointError(
            f"dtype={options.dtype} is for weights alone; add --hugging-face, or name DST weights.safetensors"
        )
    return to_checkpoint(found, target, num_files=options.files)
