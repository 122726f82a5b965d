"""Hugging Face encoders, cut between their layers, give the unsplit model's output and gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.errors import ModelError
from penstock.models import cut
from penstock.partition import Partition
from penstock.testing import check_against_reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        AlbertConfig,
        AlbertForMaskedLM,
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        ViTConfig,
        ViTForImageClassification,
    )

pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
PICTURE = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4, "num_labels": 3,
}  # fmt: skip


def ids() -> dict[str, Tensor]:
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {
        "input_ids": torch.randint(3, 30, (4, 7), generator=torch.Generator().manual_seed(1)),
        "attention_mask": mask,
    }


def pictures() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "tied to its embedding": (lambda: BertForMaskedLM(BertConfig(**TEXT)), ids),
    "pooled": (lambda: BertForSequenceClassification(BertConfig(**TEXT)), ids),
    "of pictures": (lambda: ViTForImageClassification(ViTConfig(**PICTURE)), pictures),
}


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return (output.flatten(1).mean(1) - target).square().mean()


@pytest.mark.parametrize("name", MODELS)
def test_an_encoder_is_the_unsplit_one(name: str):
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    model = build().double()
    target = torch.linspace(0, 1, 4, dtype=torch.float64)
    check = check_against_reference(model, loss_of, inputs(), target, num_ranks=3, num_microbatches=2, schedule="zb_h1")
    assert check.worst < 1e-12, str(check)
    assert len(check.errors) >= len(list(model.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_every_cut_gives_the_models_own_output(name: str):
    build, inputs = MODELS[name]
    layers = cut(build().double().eval())
    expected = layers.unsplit(inputs())
    for stages in range(1, layers.num_layers + 1):
        value = inputs()
        for stage in range(stages):
            module = layers.stage(Partition.uniform(layers.num_layers, stages), stage)
            value = module.eval()(value)
        assert torch.equal(value, expected), stages


def test_what_follows_the_layers_of_an_encoder_is_one_unit():
    """Symptom: another model's output. Cause: a picture's first token was taken of what was that token already."""
    layers = cut(ViTForImageClassification(ViTConfig(**PICTURE)))
    assert list(layers.layers) == ["vit.embeddings", *(f"vit.layers.{index}" for index in range(3)), "vit.layernorm"]
    last = layers.stage(Partition.uniform(5, 5), 4)
    assert {name.split(".")[0] for name, _ in last.named_parameters()} == {"vit", "classifier"}


def test_what_cannot_be_cut_is_refused_by_name():
    shared = AlbertForMaskedLM(AlbertConfig(**TEXT, embedding_size=16))
    with pytest.raises(ModelError, match=r"AlbertForMaskedLM cannot be cut .* does not run each of .* once, in order"):
        cut(shared)
