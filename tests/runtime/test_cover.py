"""Every layer is on exactly one stage, however the model came about and however its cut is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.models.traced_models import made
from torch import nn

import penstock as ps
from penstock.errors import UserError
from penstock.models import cut
from penstock.partition import Partition


def layers() -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(5)]


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 17, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
        return transformers.LlamaForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    "list": layers,
    "sequential": lambda: nn.Sequential(*layers()),
    "not built": lambda: [ps.LayerSpec(nn.Linear, 2, 2) for _ in range(5)],
    "followed": lambda: made("UNet"),
    "hugging face": llama,
}

Names = list[str]
WRONG: dict[str, tuple[Callable[[int, Names], Any], str]] = {
    "sizes, one short": (lambda n, names: [1, n - 2], r"leaves out layers \[{last}\] of {n}"),
    "sizes, one more": (lambda n, names: [2, n - 1], r"takes {more} layers; the model has {n}"),
    "sizes, none in a stage": (lambda n, names: [n, 0], "leaves stage 1 without layers"),
    "sizes, less than none": (lambda n, names: [n + 1, -1], "leaves stage 1 without layers"),
    "sizes of three stages": (lambda n, names: [1, 1, n - 2], "has 3 stages; the schedule has 2"),
    "halves": (lambda n, names: [n / 2, n / 2], "give layers per stage"),
    "a partition, one short": (lambda n, names: Partition((0, 1, n - 1)), r"leaves out layers \[{last}\] of {n}"),
    "a partition, one more": (lambda n, names: Partition((0, 1, n + 1)), r"takes {more} layers; the model has {n}"),
    "one point": (lambda n, names: [names[1], names[2]], "has 3 stages; the schedule has 2"),
    "a point twice": (lambda n, names: [names[1], names[1]], "twice"),
    "an expression that meets a point": (lambda n, names: [names[1], f"({names[1]})"], "twice"),
    "the first layer": (lambda n, names: [names[0]], "is the first layer, where stage 0 begins anyway"),
    "no layer": (lambda n, names: ["nowhere"], "nowhere"),
}
RIGHT: dict[str, Callable[[int, Names], Any]] = {
    "none": lambda n, names: None,
    "auto": lambda n, names: "auto",
    "sizes": lambda n, names: [1, n - 1],
    "a partition": lambda n, names: Partition((0, n - 1, n)),
    "one name": lambda n, names: names[2],
    "names": lambda n, names: [names[-1]],
}

ELSEWHERE, ELSEWHERE_TOO = ("sizes, one short", "a partition, one more", "a point twice"), ("none", "one name")
"""What is tried with the other kinds of model: a cut is said by numbers and names, whatever has them."""


def outcome(model: Any, partition: Any) -> list[Any]:
    """Returns what each of two ranks holds, or what it was told."""

    def rank(transport: ps.LoopbackTransport) -> Any:
        try:
            pipe = ps.Pipeline(model, transport=transport, num_microbatches=2, partition=partition, seed=1)
        except UserError as error:
            return str(error)
        return list(pipe.state_dict())

    return ps.run_ranks(rank, 2, timeout_seconds=20)


@pytest.mark.parametrize("kind", MODELS)
def test_a_cut_that_leaves_layers_out_or_takes_them_twice_is_refused_on_every_rank(kind: str):
    model = MODELS[kind]()
    names = list(cut(model).layers)
    n = len(names)
    for way in WRONG if kind == "list" else ELSEWHERE:
        partition, message = WRONG[way]
        expected = message.format(n=n, last=n - 1, more=n + 1)
        for told in outcome(model, partition(n, names)):
            assert isinstance(told, str), f"{way}: not refused"
            with pytest.raises(ValueError, match=expected):
                raise ValueError(told)


@pytest.mark.parametrize("kind", MODELS)
def test_every_other_cut_has_each_tensor_of_the_model_on_one_rank(kind: str):
    model = MODELS[kind]()
    whole = cut(model).stage(Partition((0, cut(model).num_layers)), 0)
    expected = sorted(whole.state_dict())
    assert expected
    names = list(cut(model).layers)
    for way in RIGHT if kind == "list" else ELSEWHERE_TOO:
        partition = RIGHT[way]
        first, second = outcome(model, partition(len(names), names))
        assert sorted([*first, *second]) == expected, way
        assert first and second


def test_a_plan_for_another_number_of_layers_is_refused(tmp_path: Path):
    """A schedule from a file says nothing of layers; its stages do."""
    file = tmp_path / "three.json"
    file.write_text(ps.schedule_to_json(ps.interleaved_1f1b(2, 2, num_chunks=4)))

    def rank(transport: ps.LoopbackTransport) -> None:
        with pytest.raises(UserError, match="5 layers cannot fill 8 stages; use at most 5 stages"):
            ps.Pipeline(layers(), transport=transport, schedule=file)

    ps.run_ranks(rank, 2, timeout_seconds=20)
