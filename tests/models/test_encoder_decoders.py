"""Encoder-decoders, cut anywhere in their encoder and in their decoder, give the unsplit model's numbers."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import penstock as ps
from penstock.errors import BatchError, ModelError
from penstock.models import cut
from penstock.models.hugging_face import label_count, meta_model, seq2seq_loss
from penstock.models.hugging_face.classes import CANNOT
from penstock.partition import Partition
from penstock.testing import check_against_reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig, get_peft_model
    from tests.models.test_hugging_face import check
    from tests.models.tiny import PAIRS, VOCABULARY, tiny
    from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForSequenceClassification

pytestmark = pytest.mark.filterwarnings("ignore")

LOSS = (seq2seq_loss, label_count)


def batch(rows: int = 2, *, length: int = 9, target: int = 7, shifted: bool = False) -> dict[str, Tensor]:
    """Padded rows, and labels that are padded too: those of the second row are fewer."""
    numbers = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=numbers)
    labels = torch.randint(3, VOCABULARY, (rows, target), generator=numbers)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels[1, 4:] = -100
    read = {"decoder_input_ids": labels.roll(1, 1).clamp(min=0)} if shifted else {"labels": labels}
    return {"input_ids": ids, "attention_mask": mask, **read}


SUITED = {"fsmt": {"shifted": True}, "led": {"length": 8}}
"""Model type -> a batch that suits it: FSMT shifts no labels, LED gives NaN in fp64 where it pads to its window."""


def units_of(model: Any) -> list[str]:
    return list(cut(model).layers)


CASES = (
    ("t5", 4, "zb_h1"), ("t5", 2, "interleaved_1f1b"), ("t5", 2, "zb_v"), ("bart", 4, "one_f_one_b"),
    ("umt5", 2, "zb_v"),
)  # fmt: skip


@pytest.mark.parametrize(("model_type", "p", "schedule"), CASES)
def test_logits_loss_and_gradients_are_the_unsplit_models(model_type: str, p: int, schedule: str):
    """The unsplit model shifts its labels itself; a bias of the first block's, tied tables, another of each block."""
    inputs = batch()
    check(tiny(model_type), inputs, inputs["labels"], p=p, schedule=schedule, loss_of=LOSS)


def compare(model_type: str) -> None:
    """FSMT fills its mask by way of fp32, which has no number as low as the lowest of fp64: here it does so in fp64."""
    inputs, labels = batch(**SUITED.get(model_type, {})), batch()["labels"]
    model = tiny(model_type)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "transformers.models.fsmt.modeling_fsmt.fill_with_neg_inf",
            lambda mask: mask.fill_(torch.finfo(mask.dtype).min),
        )
        for p in (2, 4):
            check(model, inputs, labels, p=p, loss_of=LOSS)


@pytest.mark.models
@pytest.mark.parametrize("model_type", PAIRS)
def test_every_class_holds_or_is_refused_by_name(model_type: str):
    if model_type in CANNOT:
        with pytest.raises(ModelError, match="cannot be cut into stages"):
            cut(tiny(model_type))
        return
    compare(model_type)


def test_the_loss_is_the_models_own():
    model, inputs = tiny("t5"), batch()
    out = model(**inputs, use_cache=False)
    torch.testing.assert_close(seq2seq_loss(out.logits, inputs["labels"]), out.loss, rtol=1e-12, atol=0)
    assert label_count(inputs["labels"]) == 11


@pytest.mark.parametrize("model_type", ["t5", "mbart"])
def test_every_cut_gives_the_models_own_output_and_the_encoders_output_travels_once(model_type: str):
    model = tiny(model_type).eval()
    layers, inputs = cut(model), batch()
    expected = layers.unsplit(inputs)
    names = list(layers.layers)
    decoding = next(place for place, name in enumerate(names) if ".decoder" in f".{name}")
    for stages in (2, 3, len(names)):
        value: Any = inputs
        partition = Partition.uniform(len(names), stages)
        for stage in range(stages):
            value = layers.stage(partition, stage).eval()(value)
            if stage < stages - 1:
                encoded = [name for name, each in value.items() if name == "encoder_outputs"]
                assert len(encoded) == (partition.layers_of(stage).stop >= decoding)
                assert "labels" not in value
        assert torch.equal(value, expected), stages


def test_units_are_both_lists_in_order_and_names_are_the_models_own():
    model = tiny("t5")
    assert units_of(model) == [
        "encoder.embed_tokens",
        *(f"encoder.block.{index}" for index in range(4)),
        "encoder.final_layer_norm",
        "decoder.embed_tokens",
        *(f"decoder.block.{index}" for index in range(3)),
        "decoder.final_layer_norm",
        "lm_head",
    ]

    def rank(transport: ps.LoopbackTransport) -> list[str]:
        return list(ps.Pipeline(copy.deepcopy(model), transport=transport, num_microbatches=1).state_dict())

    assert {name for found in ps.run_ranks(rank, 3) for name in found} == set(model.state_dict())


def test_one_table_on_four_stages_stays_one_parameter():
    """T5's encoder, decoder and head read one table; after a step all copies are equal, and it counts once."""
    model, inputs = tiny("t5"), batch()
    assert model.config.tie_word_embeddings

    def rank(transport: ps.LoopbackTransport) -> tuple[float, list[Tensor]]:
        pipe = ps.Pipeline(model, seq2seq_loss, transport=transport, num_microbatches=2, weight_fn=label_count)
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
        pipe.step(inputs, inputs["labels"])
        norm = pipe.clip_grad_norm_(1e9)
        optimizer.step()
        tables = [p.detach() for p in pipe.parameters() if p.shape == (VOCABULARY, 32)]
        return float(norm), tables

    twin = copy.deepcopy(model)
    found = ps.run_ranks(rank, 4)
    tables = [table for _, own in found for table in own]
    assert len(tables) == 3
    assert all(torch.equal(table, tables[0]) for table in tables)
    rows = [{name: each[row : row + 1] for name, each in inputs.items()} for row in range(2)]
    counts = [label_count(row["labels"]) for row in rows]
    for row, count in zip(rows, counts, strict=True):
        (twin(**row, use_cache=False).loss * count / sum(counts)).backward()
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1e9)
    assert found[0][0] == pytest.approx(float(expected), rel=1e-12)


def test_dropout_is_the_same_in_every_layout():
    """The decoder's stages leave out the encoder, and what it draws between its blocks."""
    model, inputs = tiny("t5"), batch()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    found = check_against_reference(
        model,
        seq2seq_loss,
        inputs,
        inputs["labels"],
        num_ranks=2,
        num_microbatches=2,
        schedule="zb_v",
        weight_fn=label_count,
        seed=3,
    )
    assert found.worst < 1e-12, str(found)


def test_recomputed_blocks_are_given_the_bias_that_travelled():
    model, inputs = tiny("t5"), batch()
    check(model, inputs, inputs["labels"], p=4, loss_of=LOSS, recompute=[r"(en|de)coder\.block\.\d+"])


def test_a_head_that_looks_at_the_encoders_ids_is_cut_too():
    """BART's classifier takes the decoder's output where the ids end; its decoder reads the encoder's ids, shifted."""
    torch.manual_seed(0)
    small = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _SIDE.items()}
    model = BartForSequenceClassification(
        BartConfig(vocab_size=VOCABULARY, d_model=16, dropout=0.0, max_position_embeddings=16, num_labels=3, **small)
    ).double()
    ids = batch()["input_ids"].clamp(min=3)
    ids[:, -1] = model.config.eos_token_id
    target = torch.linspace(0, 1, 2, dtype=torch.float64)
    found = check_against_reference(
        model,
        lambda output, wanted: (output.mean(1) - wanted).square().mean(),
        {"input_ids": ids},
        target,
        num_ranks=3,
        num_microbatches=2,
    )
    assert found.worst < 1e-12, str(found)


_SIDE = {"layers": 2, "ffn_dim": 24, "attention_heads": 2, "layerdrop": 0.0}


def test_a_directory_is_read_and_written(tmp_path: Path):
    """Each rank reads its own; the table that three stages use is in the files once."""
    tiny("t5", dtype=torch.float32).save_pretrained(tmp_path / "before")
    inputs = batch()
    before = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "before").eval()
    expected = before(**inputs, use_cache=False).logits

    def rank(transport: Any) -> Tensor:
        pipe = ps.Pipeline.from_pretrained(tmp_path / "before", seq2seq_loss, transport=transport, num_microbatches=2)
        pipe.save_pretrained(tmp_path / "after")
        return pipe.forward(inputs, broadcast=True)

    torch.testing.assert_close(ps.run_ranks(rank, 3)[0], expected, rtol=1e-5, atol=1e-6)
    after = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "after").state_dict()
    for name, value in before.state_dict().items():
        assert torch.equal(after[name], value), name


def test_one_seed_gives_every_layout_the_same_bits():
    model = meta_model(tiny("t5", dtype=torch.float32).config)

    def rank(transport: Any) -> dict[str, Tensor]:
        return ps.Pipeline(model, transport=transport, num_microbatches=2, seed=5).state_dict()

    (whole,) = ps.run_ranks(rank, 1)
    for own in ps.run_ranks(rank, 4):
        for name, value in own.items():
            assert torch.equal(value, whole[name]), name


def test_what_cannot_be_cut_is_refused_with_what_helps():
    dropping = tiny("m2m_100")
    dropping.model.encoder.layerdrop = 0.05
    with pytest.raises(ModelError, match=r"leaves out layers at random \(model.encoder.layerdrop=0.05\).*= 0.0"):
        cut(dropping)
    routed = tiny("switch_transformers")
    routed.config.output_router_logits = True
    with pytest.raises(ModelError, match=r"config.output_router_logits is set.*; set it to False"):
        cut(routed)


def test_a_decoder_without_ids_is_told_what_to_read():
    model = tiny("t5")
    stage = cut(model).stage(Partition((0, len(units_of(model)))), 0)
    with pytest.raises(BatchError, match=r"inputs hold input_ids, and the decoder of .* has nothing to read; add deco"):
        stage(batch()["input_ids"])
    with pytest.raises(BatchError, match="inputs hold encoder_outputs"):
        stage({**batch(), "encoder_outputs": torch.ones(2)})


def test_adapters_on_a_frozen_model_have_the_unsplit_gradients():
    """The bias of positions needs no gradient there, and is handed on all the same."""
    model, inputs = tiny("t5"), batch()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False)).double()
    check(adapted, inputs, inputs["labels"], p=4, loss_of=LOSS)
