"""The model is a chain of layers, each built alike wherever and whenever it is built."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from penstock.errors import BatchError
from penstock.train.config import ModelConfig
from penstock.train.gpt import Attention, build_gpt, gpt_layers, lm_loss, sample

SMALL = ModelConfig(layers=3, width=16, heads=2, context=12)


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(0))


def test_the_layers_are_embed_blocks_and_head() -> None:
    assert [name for name, _ in gpt_layers(SMALL, seed=0)] == [
        "embed",
        "block_0",
        "block_1",
        "block_2",
        "head",
    ]
    assert "block_1.mlp.up.weight" in build_gpt(SMALL, seed=0).state_dict()


def test_a_rank_that_builds_one_layer_gets_the_weights_of_the_whole_model() -> None:
    whole = build_gpt(SMALL, seed=7).state_dict()
    for name, build in reversed(gpt_layers(SMALL, seed=7)):
        for key, value in build().state_dict().items():
            assert torch.equal(value, whole[f"{name}.{key}"])


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_gpt(SMALL, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_depend_on_the_seed_and_on_the_layer() -> None:
    first, second = build_gpt(SMALL, seed=0).state_dict(), build_gpt(SMALL, seed=1).state_dict()
    assert not torch.equal(first["block_0.mlp.up.weight"], second["block_0.mlp.up.weight"])
    assert not torch.equal(first["block_0.mlp.up.weight"], first["block_1.mlp.up.weight"])


def test_types_start_from_the_same_values() -> None:
    narrow, wide = build_gpt(SMALL, seed=0), build_gpt(SMALL, seed=0, dtype=torch.float64)
    for name, value in wide.state_dict().items():
        assert torch.equal(value, narrow.state_dict()[name].double())
    assert wide(tokens(1, 4)).dtype == torch.float64


def test_no_position_sees_what_follows_it() -> None:
    model = build_gpt(SMALL, seed=0)
    text = tokens(2, 12)
    changed = text.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 256
    assert torch.equal(model(text)[:, :8], model(changed)[:, :8])
    assert not torch.equal(model(text)[:, 8:], model(changed)[:, 8:])


def test_a_shorter_sequence_gives_the_same_logits() -> None:
    model = build_gpt(SMALL, seed=0, dtype=torch.float64)
    text = tokens(2, 12)
    torch.testing.assert_close(model(text[:, :5]), model(text)[:, :5], rtol=1e-12, atol=1e-12)


def test_features_of_a_byte_tell_the_byte_before_it() -> None:
    embed = gpt_layers(SMALL, seed=0)[0][1]()
    features = embed(torch.tensor([[7, 9], [8, 9], [9, 9]]))
    assert not torch.equal(features[0, 1], features[1, 1])
    assert torch.equal(features[2, 0], embed(torch.tensor([[9]]))[0, 0])


def test_a_sequence_beyond_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(BatchError, match=r"13 bytes do not fit model\.context=12"):
        build_gpt(SMALL, seed=0)(tokens(1, 13))


def test_attention_depends_on_distance_not_on_place() -> None:
    attention = Attention(SMALL, torch.Generator()).double()
    query, key = torch.randn(2, 12, 8, dtype=torch.float64).unbind(0)
    same_query, same_key = query[:1].expand(12, 8), key[:1].expand(12, 8)
    scores = attention._rotate(same_query) @ attention._rotate(same_key).T
    torch.testing.assert_close(scores[2:, 2:], scores[:-2, :-2], rtol=1e-5, atol=1e-5)  # float32 tables


def test_a_new_model_spreads_its_guess_over_all_bytes() -> None:
    text = tokens(4, 13)
    loss = lm_loss(build_gpt(SMALL, seed=0)(text[:, :-1]), text[:, 1:])
    assert loss.item() == pytest.approx(math.log(256), rel=0.02)


def test_the_loss_is_the_mean_over_tokens_in_the_logits_own_precision() -> None:
    logits, targets = torch.randn(3, 5, 256, dtype=torch.float64), tokens(3, 5)
    loss = lm_loss(logits, targets)
    assert loss.dtype == torch.float64
    shares = functional.log_softmax(logits, dim=-1).gather(-1, targets[..., None])
    torch.testing.assert_close(loss, -shares.mean())
    assert lm_loss(logits.bfloat16(), targets).dtype == torch.float32


def test_dropout_acts_in_training_only() -> None:
    model = build_gpt(ModelConfig(layers=1, width=16, heads=2, context=12, dropout=0.5), seed=0)
    text = tokens(1, 12)
    assert not torch.equal(model(text), model(text))
    model.eval()
    assert torch.equal(model(text), model(text))


def test_a_sample_follows_the_logits() -> None:
    logits = torch.full((1, 256), -math.inf)
    logits[0, [65, 66]] = torch.tensor([0.0, math.log(3)])
    assert sample(logits, temperature=0).tolist() == [66]
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits.expand(4000, 256), temperature=1.0, generator=generator)
    assert (drawn == 66).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert set(drawn.tolist()) == {65, 66}
