"""Directories of Hugging Face's form: each rank reads its own tensors, and what is written transformers opens again."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import penstock as ps
from penstock.errors import CheckpointError, HandshakeError, ModelError
from penstock.models.hugging_face import causal_lm_loss, files, meta_model
from penstock.models.hugging_face.classes import CANNOT
from penstock.models.hugging_face.directory import read_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.models.tiny import LENGTH, VOCABULARY, WITHOUT_PLAN, model_types, tiny
    from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore")


def ids(rows: int = 2) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def saved(folder: Path, model_type: str) -> Any:
    """A tiny model as transformers opens it, and its directory as transformers writes it, in several files."""
    tiny(model_type, dtype=torch.float32).save_pretrained(folder, max_shard_size="20KB")
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def pipeline(folder: Path, transport: Any, **more: Any) -> ps.Pipeline:
    return ps.Pipeline.from_pretrained(folder, causal_lm_loss, transport=transport, num_microbatches=2, **more)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mixtral"])
def test_a_saved_model_gives_its_logits_in_any_layout(tmp_path: Path, model_type: str):
    """Plain, tied, tied without a plan, experts that are many tensors in the files and one in memory."""
    expected = saved(tmp_path, model_type)(input_ids=ids(), use_cache=False).logits
    for p in (1, 3):
        for out in ps.run_ranks(lambda t: pipeline(tmp_path, t).forward(ids(), broadcast=True), p):
            torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_transformers_opens_what_a_pipeline_has_trained(tmp_path: Path, model_type: str):
    saved(tmp_path / "before", model_type)
    (tmp_path / "before" / "tokenizer.json").write_text("{}")

    def rank(transport: Any) -> Tensor:
        pipe = pipeline(tmp_path / "before", transport)
        optimizer = torch.optim.SGD(pipe.parameters(), lr=1.0)
        pipe.step(ids(), ids())
        optimizer.step()
        pipe.save_pretrained(tmp_path / "after", tokenizer=tmp_path / "before")
        return pipe.forward(ids(), broadcast=True)

    out = ps.run_ranks(rank, 2)[0]
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "after").eval()
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "before").state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in opened.state_dict().items())
    torch.testing.assert_close(opened(input_ids=ids(), use_cache=False).logits, out, rtol=1e-6, atol=1e-7)
    index = json.loads((tmp_path / "after" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in opened.parameters())  # what is tied, once
    names = sorted(file.name for file in (tmp_path / "after").iterdir())
    assert names == [
        "config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip


@pytest.mark.models
@pytest.mark.parametrize("model_type", sorted({*WITHOUT_PLAN, *model_types(planned=True)} - {*CANNOT}))
def test_every_class_is_drawn_read_and_written_as_transformers_does_it(tmp_path: Path, model_type: str):
    """Fresh numbers alike in two layouts; a directory of transformers' read; one that is written opened again."""
    model = saved(tmp_path / "before", model_type)
    expected = model(input_ids=ids(), use_cache=False).logits

    def drawn(transport: Any) -> dict[str, Tensor]:
        meta = meta_model(model.config)
        return ps.Pipeline(meta, transport=transport, num_microbatches=2, seed=1).state_dict()

    (whole,) = ps.run_ranks(drawn, 1)
    assert whole.keys() == model.state_dict().keys()
    for own in ps.run_ranks(drawn, 3):
        for name, value in own.items():
            assert torch.equal(value, whole[name]), name

    def through(transport: Any) -> Tensor:
        pipe = pipeline(tmp_path / "before", transport)
        pipe.save_pretrained(tmp_path / "after")
        return pipe.forward(ids(), broadcast=True)

    torch.testing.assert_close(ps.run_ranks(through, 3)[0], expected, rtol=1e-5, atol=1e-6)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "after").state_dict()
    assert opened.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(opened[name], value), name


def test_what_is_written_in_one_layout_is_read_in_another_bit_for_bit(tmp_path: Path):
    model = saved(tmp_path / "first", "gemma2")

    def convert(transport: Any) -> None:
        pipeline(tmp_path / "first", transport, schedule="zb_v").save_pretrained(tmp_path / "second")

    ps.run_ranks(convert, 2)
    held: dict[str, Tensor] = {}
    for own in ps.run_ranks(lambda t: pipeline(tmp_path / "second", t).state_dict(), 3):
        held |= own
    assert held.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(held[name], value), name


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of all tensors that are read, in the order in which they are."""
    read: list[str] = []
    original = files.fetching

    @contextmanager
    def counting(found: dict[str, Path]) -> Iterator[Any]:
        with original(found) as fetch:
            yield lambda name: (read.append(name), fetch(name))[1]

    with monkeypatch.context() as patch:
        patch.setattr("penstock.models.hugging_face.directory.fetching", counting)
        yield read


def test_each_tensor_is_read_by_the_rank_that_needs_it_and_by_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path, "mixtral")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    with counted(monkeypatch) as read:
        ps.run_ranks(lambda t: pipeline(tmp_path, t).rank, 3)
    assert sorted(read) == sorted(index)


def test_a_tied_weight_is_read_where_it_is_used_and_has_one_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path, "gemma2")
    with counted(monkeypatch) as read:
        ps.run_ranks(lambda t: pipeline(tmp_path, t).rank, 2)
    assert read.count("model.embed_tokens.weight") == 2
    assert len(read) == len(set(read)) + 1


def test_another_type_is_what_the_numbers_are_rounded_to(tmp_path: Path):
    """Symptom: ranks that are threads disagreed on types. Cause: making a model sets the whole process's default."""
    model = saved(tmp_path, "llama")

    def rank(transport: Any) -> dict[str, Tensor]:
        return pipeline(tmp_path, transport, dtype=torch.bfloat16).state_dict()

    for own in ps.run_ranks(rank, 3):
        for name, value in own.items():
            assert torch.equal(value, model.state_dict()[name].to(torch.bfloat16)), name


def refused(folder: Path, error: type[Exception] = CheckpointError, p: int = 1) -> str:
    with pytest.raises(error) as caught:
        ps.run_ranks(lambda t: pipeline(folder, t), p)
    return str(caught.value)


def test_a_directory_that_cannot_serve_is_refused_in_one_sentence(tmp_path: Path):
    assert "does not exist" in refused(tmp_path / "nowhere", ModelError)
    assert "has no config.json" in refused(tmp_path, ModelError)
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    assert "no configuration that transformers can open" in refused(tmp_path, ModelError)
    tiny("llama").config.save_pretrained(tmp_path)
    assert "holds no weights" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "is a pickle" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    assert "cannot be opened as safetensors" in refused(tmp_path)


def test_without_transformers_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'penstock\[hf\]'"):
        meta_model(tmp_path)


def test_an_index_that_leads_out_of_the_directory_or_nowhere_is_refused(tmp_path: Path):
    saved(tmp_path, "llama")
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    for name, said in (
        ("../outside.safetensors", "only its own"),
        ("missing.safetensors", "lacks missing.safetensors, of the"),
    ):
        other = copy.deepcopy(whole)
        other["weight_map"]["model.norm.weight"] = name
        index.write_text(json.dumps(other))
        assert said in refused(tmp_path)
    other = copy.deepcopy(whole)
    del other["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(other))
    assert "has no model.norm.weight" in refused(tmp_path)
    index.write_text("[]")
    assert "is no index" in refused(tmp_path)


def changed(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A directory of a tiny Llama with its tensors changed, in one file."""
    tiny("llama", dtype=torch.float32).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_file_that_the_index_names_and_that_is_not_there_is_named_on_every_rank(tmp_path: Path):
    saved(tmp_path, "llama")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    parts[1].unlink()
    assert f"lacks {parts[1].name}, of the {len(parts)} files that model.safetensors.index.json" in refused(
        tmp_path, p=2
    )


def test_layers_that_the_configuration_does_not_have_are_not_left_out_unasked(tmp_path: Path):
    def one_more(tensors: dict[str, Tensor]) -> None:
        tensors |= {n.replace(".3.", ".4."): t.clone() for n, t in tensors.items() if n.startswith("model.layers.3.")}

    said = refused(changed(tmp_path, one_more))
    assert "holds model.layers.4." in said
    assert "has no model.layers.4; a part of a larger model is not loaded unasked" in said


def test_other_tensors_without_a_place_are_left_out_with_a_warning(tmp_path: Path):
    folder = changed(tmp_path, lambda tensors: tensors.update({"value_head.weight": torch.ones(1)}))
    files_of = files.weight_files(folder)
    model = meta_model(folder)
    norm = {"model.norm.weight": torch.empty(32)}
    with pytest.warns(
        UserWarning, match=r"holds 1 tensors that LlamaForCausalLM has no place for.*: value_head.weight"
    ):
        assert read_tensors(model, folder, files_of, norm) == {"model.norm.weight"}


def test_whole_numbers_are_not_taken_for_weights(tmp_path: Path):
    name = "model.layers.0.mlp.up_proj.weight"
    for number, kind in enumerate((torch.int8, torch.float8_e4m3fn)):
        folder = changed(
            tmp_path / str(number), lambda tensors, kind=kind: tensors.update({name: tensors[name].to(kind)})
        )
        assert f"has {name} as {str(kind)[6:]}, which is not rounded to the model's float" in refused(folder)


def test_weights_of_another_model_than_the_configuration_are_refused_on_every_rank(tmp_path: Path):
    saved(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 80}))
    assert "shape (64, 32)" in refused(tmp_path, (CheckpointError, HandshakeError), p=2)


def test_nothing_is_written_over_and_nothing_but_models_of_hugging_face(tmp_path: Path):
    saved(tmp_path, "llama")

    def rank(transport: Any) -> None:
        pipe = pipeline(tmp_path, transport)
        with pytest.raises(CheckpointError, match=r"rank 0: .* holds config.json already"):
            pipe.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"rank 0: tokenizer=.* is no directory"):
            pipe.save_pretrained(tmp_path / "new", tokenizer=tmp_path / "none")

    ps.run_ranks(rank, 2)

    def plain(transport: Any) -> None:
        pipe = ps.Pipeline([torch.nn.Linear(1, 1)], transport=transport, num_microbatches=1)
        with pytest.raises(ModelError, match="the model is none of Hugging Face's"):
            pipe.save_pretrained(tmp_path / "new")

    ps.run_ranks(plain, 1)
