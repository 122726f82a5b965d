"""Ranges of single fields and relations between fields, as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from penstock.errors import ConfigError
from penstock.train.config import Config, ModelConfig


class _Range(NamedTuple):
    """Bounds of a number; `low` itself is allowed unless it is `open`."""

    low: float
    high: float = float("inf")
    open: bool = False


RANGES: dict[str, _Range] = {
    "pipeline.ranks": _Range(1),
    "pipeline.microbatches": _Range(1),
    "pipeline.chunks": _Range(0),
    "pipeline.replicas": _Range(1),
    "model.layers": _Range(1),
    "model.width": _Range(2),
    "model.heads": _Range(1),
    "model.context": _Range(1),
    "model.dropout": _Range(0, 0.99),
    "data.held_out": _Range(0, 0.9, open=True),
    "optimizer.learning_rate": _Range(0, open=True),
    "optimizer.warmup_steps": _Range(0),
    "optimizer.floor": _Range(0, 1),
    "optimizer.weight_decay": _Range(0),
    "optimizer.clip_norm": _Range(0),
    "optimizer.anneal_steps": _Range(0),
    "optimizer.discrepancy_decay": _Range(0, 0.999),
    "run.steps": _Range(1),
    "run.batch_size": _Range(1),
    "run.port": _Range(0, 65535),
    "run.seed": _Range(0, 2**63 - 1),
    "checkpoint.every": _Range(0),
    "checkpoint.keep": _Range(1),
    "evaluate.every": _Range(0),
    "evaluate.batches": _Range(1),
    "log.every": _Range(1),
    "log.predict_after": _Range(0),
    "log.sample_bytes": _Range(0),
}
"""Every number's range by the field's path; a test holds it complete."""


def check(config: Config) -> Config:
    """Returns `config` unchanged.

    Raises:
        ConfigError: A value is out of range or does not fit another; the message gives one that does.
    """
    for path, bounds in RANGES.items():
        _check_range(path, bounds, value=_at(config, path))
    for relation in _RELATIONS:
        relation(config)
    return config


def _at(config: Config, path: str) -> float:
    section, key = path.split(".")
    value: float = getattr(getattr(config, section), key)
    return value


def _check_range(path: str, bounds: _Range, *, value: float) -> None:
    above = value > bounds.low if bounds.open else value >= bounds.low
    # Written so that NaN, which compares with nothing, is refused too.
    if above and value <= bounds.high and value != float("inf"):
        return
    low = f"above {bounds.low}" if bounds.open else f"at least {bounds.low}"
    high = f" and at most {bounds.high}" if bounds.high != float("inf") else ""
    raise ConfigError(f"{path}={value} is out of range; it must be {low}{high}")


def _width_divides(config: Config) -> None:
    width, unit = config.model.width, 2 * config.model.heads
    if width % unit:
        raise ConfigError(
            f"model.width={width} is not a multiple of {unit}, twice model.heads={config.model.heads} "
            f"(rotary positions turn pairs of features); use e.g. model.width={_round(width, unit)}"
        )


def _batch_divides(config: Config) -> None:
    layout, size = config.pipeline, config.run.batch_size
    parts = layout.microbatches * layout.replicas
    if size % parts:
        copies = f" on each of pipeline.replicas={layout.replicas}" if layout.replicas > 1 else ""
        raise ConfigError(
            f"run.batch_size={size} does not divide into pipeline.microbatches={layout.microbatches}{copies}; "
            f"use e.g. run.batch_size={_round(size, parts)}"
        )


def _partition_covers(config: Config) -> None:
    partition, total = config.pipeline.partition, config.model.layers + 2
    if isinstance(partition, str) or config.model.hf:  # its layers are not known yet
        return
    if partition and (min(partition) < 1 or sum(partition) != total):
        raise ConfigError(
            f"pipeline.partition={list(partition)} does not lay out the model's {total} layers "
            f"(embed, model.layers={config.model.layers} blocks, head); "
            f"use positive numbers that sum to {total}, or leave it empty"
        )


def _recompute_names_layers(config: Config) -> None:
    if config.model.hf:
        return
    total = config.model.layers + 2
    foreign = [layer for layer in config.pipeline.recompute if not 0 <= layer < total]
    if foreign:
        raise ConfigError(
            f"pipeline.recompute names layer {foreign[0]} of {total}; use numbers from 0, the embedding, to {total - 1}"
        )


def _hf_has_sizes_of_its_own(config: Config) -> None:
    usual = ModelConfig()
    for key in ("layers", "width", "heads", "dropout") if config.model.hf else ():
        if getattr(config.model, key) != getattr(usual, key):
            raise ConfigError(
                f"model.{key}={getattr(config.model, key)} is the byte-level GPT's, and model.hf={config.model.hf} has "
                f"sizes of its own in config.json; leave model.{key} out"
            )


def _betas_in_range(config: Config) -> None:
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        raise ConfigError(f"optimizer.betas={list(config.optimizer.betas)} is out of range; each must be in [0, 1)")


def _device_known(config: Config) -> None:
    if config.run.device not in ("cpu", "cuda"):
        raise ConfigError(f'run.device="{config.run.device}" is not known; use "cpu" or "cuda"')


def _round(value: int, unit: int) -> int:
    """Returns the multiple of `unit` nearest to `value`, at least one of it."""
    return max(1, round(value / unit)) * unit


_RELATIONS: tuple[Callable[[Config], None], ...] = (
    _width_divides,
    _batch_divides,
    _partition_covers,
    _recompute_names_layers,
    _hf_has_sizes_of_its_own,
    _betas_in_range,
    _device_known,
)
