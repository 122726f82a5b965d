"""A value out of range, or two that do not fit each other, are refused with one that works."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

import pytest

from penstock.errors import ConfigError
from penstock.train.config import Config
from penstock.train.config_check import RANGES, check
from penstock.train.config_file import resolve


def test_the_defaults_are_valid() -> None:
    assert check(Config()) == Config()


def test_every_number_has_a_range() -> None:
    numbers = {
        f"{section.name}.{name}"
        for section in fields(Config)
        for name, kind in get_type_hints(type(getattr(Config(), section.name))).items()
        if kind in (int, float)
    }
    assert numbers == set(RANGES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--model.layers 0", "model.layers=0 is out of range; it must be at least 1"),
        ("--data.held-out 0", "data.held_out=0.0 is out of range; it must be above 0 and at most 0.9"),
        ("--data.held-out nan", "data.held_out=nan"),
        ("--optimizer.learning-rate inf", "optimizer.learning_rate=inf"),
        ("--run.seed -1", "run.seed=-1"),
        ("--optimizer.betas 0.9 1.0", "optimizer.betas=[0.9, 1.0]"),
        ("--model.width 100 --model.heads 3", "use e.g. model.width=102"),
        ("--model.width 2 --model.heads 8", "use e.g. model.width=16"),
        ("--run.batch-size 10 --pipeline.microbatches 4", "use e.g. run.batch_size=8"),
        ("--run.batch-size 1 --pipeline.microbatches 4", "use e.g. run.batch_size=4"),
        ("--model.layers 4 --pipeline.partition 2 2", "sum to 6"),
        ("--model.layers 4 --pipeline.partition 6 0", "positive numbers"),
        ("--run.device tpu", 'use "cpu" or "cuda"'),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(argv: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(argv.split())
    assert message in str(caught.value)


def test_the_proposed_values_are_accepted() -> None:
    assert resolve(["--model.width", "102", "--model.heads", "3"]).model.width == 102
    assert resolve(["--run.batch-size", "8", "--pipeline.microbatches", "4"]).run.batch_size == 8
