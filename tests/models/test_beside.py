"""Values that layers hand on beside the hidden states travel with them, from where they are made to who reads them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import penstock as ps
from penstock.models import cut
from penstock.partition import Partition

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.models.test_hugging_face import check, ids
    from tests.models.tiny import VOCABULARY, tiny
    from transformers import MPNetConfig, MPNetForMaskedLM

from penstock.testing import check_against_reference

pytestmark = pytest.mark.filterwarnings("ignore")

HANDED = ("glm_moe_dsa", "gemma3n_text")
"""Chosen keys; inputs of each layer's own with keys and values of earlier layers. The mark `models` has the others."""


@pytest.mark.parametrize("model_type", HANDED)
def test_logits_loss_and_gradients_are_the_unsplit_models(model_type: str):
    model = tiny(model_type)
    check(model, {"input_ids": ids()}, ids(), p=2, schedule="zb_v")
    check(model, {"input_ids": ids()}, ids(), p=4)


def boundaries(model: Any, sizes: list[int]) -> list[dict[str, Any]]:
    layers, value, found = cut(model), ids(), []
    for stage in range(len(sizes)):
        value = layers.stage(Partition.of_sizes(sizes), stage)(value)
        found.append(value)
    return found[:-1]


def test_what_is_read_later_travels_and_nothing_else():
    """Of four layers the second and the fourth read the keys that the one before them chose."""
    before_second, before_third, before_norm = boundaries(tiny("glm_moe_dsa"), [2, 1, 2, 2])
    (chosen,) = before_second["beside"].values()
    assert chosen.dtype == torch.int32
    assert before_third.keys() >= {"hidden_states", "input_ids"}
    assert "beside" not in before_norm
    assert "beside" not in boundaries(tiny("llama"), [3, 4])[0]


def test_keys_and_values_that_layers_share_travel_from_the_layer_that_makes_them():
    first, second, third = boundaries(tiny("gemma4_text"), [2, 1, 1, 3])
    assert set(first["beside"]["shared_kv_states"]) == {"sliding_attention"}
    assert set(second["beside"]["shared_kv_states"]) == {"sliding_attention", "full_attention"}
    for name, values in second["beside"]["shared_kv_states"].items():
        for mine, theirs in zip(values, third["beside"]["shared_kv_states"][name], strict=True):
            assert torch.equal(mine, theirs)


def test_a_bias_that_the_model_gives_every_layer_is_put_in_all_of_them():
    """Symptom: a table of positions without a gradient from later stages. Cause: it was worked out from a stand-in."""
    torch.manual_seed(0)
    model = MPNetForMaskedLM(
        MPNetConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).double()
    target = torch.linspace(0, 1, 2, dtype=torch.float64)

    def loss(output: Tensor, wanted: Tensor) -> Tensor:
        return (output.flatten(1).mean(1) - wanted).square().mean()

    found = check_against_reference(model, loss, ids(), target, num_ranks=4, num_microbatches=2)
    assert found.worst < 1e-12, str(found)
    expected = model(ids()).logits

    def rank(transport: ps.LoopbackTransport) -> Tensor:  # without gradients to tell
        return ps.Pipeline(model, transport=transport, num_microbatches=2).forward(ids(), broadcast=True)

    assert torch.equal(ps.run_ranks(rank, 3)[0], expected)


def test_towers_that_text_does_not_use_live_with_the_embedding():
    model = tiny("phi4_multimodal")
    layers = cut(model)
    first = dict(layers.stage(Partition.of_sizes([2, 5]), 0).named_parameters())
    assert any("image_embed" in name for name in first)
    check(model, {"input_ids": ids()}, ids(), p=2)


def test_an_embedding_of_several_tables_is_one_unit():
    """Symptom: another model's output. Cause: a cut between GPT-2's two tables lost the first."""
    assert list(cut(tiny("gpt2")).layers)[:2] == ["transformer.wte", "transformer.h.0"]
    check(tiny("gpt2"), {"input_ids": ids()}, ids(), p=4, partition=[1, 2, 2, 2])
