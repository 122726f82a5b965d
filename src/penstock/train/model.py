"""Which model a run trains: the byte-level GPT, or with `model.hf` a causal language model of Hugging Face's."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch

from penstock.errors import ConfigError
from penstock.models import cut
from penstock.models.hugging_face import Directory, meta_model
from penstock.models.hugging_face.directory import check_directory
from penstock.models.hugging_face.files import CONFIG_FILE, has_weights, read_config
from penstock.train.config import VOCABULARY, Config
from penstock.train.gpt import build_gpt
from penstock.train.tokens import read_tokenizer


def model_of(config: Config) -> Any:
    """Returns what Pipeline takes: the GPT, a directory with weights, or a model on the meta device to be drawn.

    Raises:
        ModelError: a configuration that makes no model.
    """
    dtype = getattr(torch, config.run.dtype)
    if not config.model.hf:
        return build_gpt(config.model, seed=config.run.seed, dtype=dtype)
    path = _path(config)
    return Directory(path, dtype) if has_weights(path) else meta_model(path, dtype=dtype)


def seed_of(config: Config) -> int | None:
    """Returns the key of dropout and of fresh parameters, None where nothing is drawn by key."""
    return config.run.seed if config.model.dropout or config.model.hf else None


def layer_names(config: Config) -> list[str]:
    """Returns the names of the layers that a partition lays out, in model order.

    Raises:
        ModelError: model.hf names no model, or one that cannot be cut.
    """
    if config.model.hf:
        return list(_units_of(_path(config)))
    return ["embed", *(f"block_{index}" for index in range(config.model.layers)), "head"]


def model_digest(config: Config) -> str:
    """Returns what tells one configuration of `model.hf` from another, empty for the GPT: its own sizes do."""
    if not config.model.hf:
        return ""
    path = _path(config)
    return hashlib.sha256((path / CONFIG_FILE if path.is_dir() else path).read_bytes()).hexdigest()[:16]


def tokenizer_of(config: Config) -> Any | None:
    """Returns the tokenizer that a run reads text with, None where text is read as bytes."""
    return read_tokenizer(_path(config)) if config.model.hf else None


def check_model(config: Config) -> None:
    """Refuses a model that does not fit the text, the window or the layout.

    Raises:
        ConfigError: too small a vocabulary, too long a window, a layer that is not there.
        ModelError: model.hf names no model, or one that cannot be cut.
        CheckpointError: its weights are torn, or of another model.
    """
    if not config.model.hf:
        return
    whole = read_config(_path(config))
    if getattr(whole, "is_encoder_decoder", False):
        raise ConfigError(
            f"model.hf={config.model.hf} is an encoder-decoder, and plain text has nothing for its encoder; use a "
            "decoder, or Pipeline.from_pretrained in a loop of your own"
        )
    found = whole.get_text_config()
    tokenizer = tokenizer_of(config)
    symbols = VOCABULARY if tokenizer is None else int(tokenizer.get_vocab_size())
    if found.vocab_size < symbols:
        what = "its tokenizer's" if tokenizer is not None else "those of bytes, as there is no tokenizer.json"
        raise ConfigError(
            f"model.hf={config.model.hf} has a vocabulary of {found.vocab_size} symbols and needs {symbols}, {what}; "
            f"set vocab_size in its config.json to {symbols} or more"
        )
    longest = getattr(found, "max_position_embeddings", None)
    if isinstance(longest, int) and longest < config.model.context:
        raise ConfigError(
            f"model.context={config.model.context} is longer than the {longest} positions of model.hf="
            f"{config.model.hf}; use at most --model.context {longest}"
        )
    names = layer_names(config)
    if has_weights(_path(config)):
        check_directory(Directory(_path(config)))
    foreign = [layer for layer in config.pipeline.recompute if not 0 <= layer < len(names)]
    if foreign:
        raise ConfigError(
            f"pipeline.recompute names layer {foreign[0]} of {len(names)}; use numbers from 0, {names[0]}, to "
            f"{len(names) - 1}, {names[-1]}"
        )


def _path(config: Config) -> Path:
    return Path(config.model.hf).expanduser()


@cache
def _units_of(path: Path) -> tuple[str, ...]:
    return tuple(cut(meta_model(path)).layers)
