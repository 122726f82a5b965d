"""A checkpoint keeps every bit in other files, and becomes a Hugging Face directory and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.runs import Setup, assert_same, over_ranks, resumed, saved_then_unbroken
from torch import Tensor, nn
from torch.optim import AdamW

import penstock as ps
from penstock import checkpoint
from penstock.checkpoint import latest, read_manifest, read_tensors
from penstock.checkpoint.convert import split_names
from penstock.checkpoint.manifest import TensorEntry
from penstock.cli.main import main

SETUP = Setup(2, "gpipe", make=lambda parameters: [AdamW(parameters.values(), lr=0.01)])


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["convert", *map(str, words)]) == 0
    return capsys.readouterr().out.strip().removeprefix("wrote ")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["convert", *map(str, words)]) == 1
    return capsys.readouterr().err


def weights(path: Path) -> dict[str, Tensor]:
    names = [name for name in read_manifest(path).tensors() if name.startswith("model/")]
    return {name.removeprefix("model/"): tensor for name, tensor in read_tensors(path, names).items()}


@pytest.mark.parametrize("files", [1, 3])
def test_another_number_of_files_goes_on_as_the_checkpoint_itself(
    files: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, expected = saved_then_unbroken(tmp_path / "saved", SETUP)
    made = Path(told(capsys, tmp_path / "saved", tmp_path / "made", "--files", files))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "saved")
    again = Path(told(capsys, tmp_path / "run", tmp_path / "again", "--files", files))
    assert read_manifest(again) == read_manifest(made), "a run of training is known by its checkpoints"
    assert made == latest(tmp_path / "made")
    old, new = read_manifest(path), read_manifest(made)
    assert len(new.files) == files
    assert new.tensors() == old.tensors()
    assert (new.model, new.step, new.optimizers, new.steps_done) == (
        old.model,
        old.step,
        old.optimizers,
        old.steps_done,
    )
    assert_same(resumed(made, SETUP._replace(num_ranks=4)), expected)


def test_files_are_of_about_the_same_size() -> None:
    entries = {f"model/layers.{i}.weight": TensorEntry("float32", (100 + i,)) for i in range(40)}
    for count in (1, 2, 3, 7, 39, 40):
        parts = split_names(entries, num_files=count)
        assert [name for part in parts for name in part] == list(entries), "layers.2 comes before layers.10"
        sizes = [sum(entries[name].shape[0] for name in part) for part in parts]
        assert len(sizes) == count
        assert max(sizes) - min(sizes) <= 2 * 140


def test_one_file_of_weights_has_the_names_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = over_ranks(SETUP, lambda rank: rank.save(tmp_path))[0]
    file = Path(told(capsys, path, tmp_path / "made" / "all.safetensors"))
    found = load_file(file)
    assert found.keys() == weights(path).keys()
    assert all(torch.equal(found[name], value) for name, value in weights(path).items())
    half = load_file(Path(told(capsys, path, tmp_path / "half.safetensors", "--dtype", "bfloat16")))
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in found.items())
    assert sorted(each.name for each in file.parent.iterdir()) == ["all.safetensors"]


def test_what_cannot_be_converted_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = over_ranks(SETUP, lambda rank: rank.save(tmp_path / "saved"))[0]
    assert "does not exist; check the path" in refused(capsys, tmp_path / "no", tmp_path / "out")
    assert "is not a complete checkpoint" in refused(capsys, tmp_path, tmp_path / "out")
    assert "is a checkpoint already, and nothing is written over" in refused(capsys, path, tmp_path / "saved")
    assert "use a number from 1 to" in refused(capsys, path, tmp_path / "out", "--files", 0)
    assert "dtype=float16 is for weights alone" in refused(capsys, path, tmp_path / "out", "--dtype", "float16")
    hf, one = tmp_path / "hf", tmp_path / "all.safetensors"
    assert "files=3 is for a checkpoint, not for a Hugging Face" in refused(capsys, path, hf, "--hf", "--files", 3)
    assert "files=2 is for a checkpoint, not for weights in one" in refused(capsys, path, one, "--files", 2)
    assert f"and {one} names one file" in refused(capsys, path, one, "--hf")
    assert f"like={path} is for a Hugging Face directory; add" in refused(capsys, path, hf, "--like", path)
    told = refused(capsys, path, hf, "--hf", "--like", tmp_path / "no")
    assert f"like={tmp_path / 'no'} is no directory; name one of this model" in told
    assert not hf.exists() and not one.exists()
    file = path / "rank-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    assert f"{file} has changed since it was saved" in refused(capsys, path, tmp_path / "out")
    assert not is_there(tmp_path / "out")


def is_there(root: Path) -> bool:
    return latest(root) is not None


def test_weights_of_any_model_go_to_files_with_an_index_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = over_ranks(SETUP, lambda rank: rank.save(tmp_path / "saved"))[0]
    told(capsys, path, tmp_path / "hf", "--hugging-face", "--file-gib", 1e-6)
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) == 3
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    back = Path(told(capsys, tmp_path / "hf", tmp_path / "back", "--files", 2))
    assert read_manifest(back).model == read_manifest(path).model
    assert all(torch.equal(value, weights(path)[name]) for name, value in weights(back).items())
    assert "holds model-00001-of-00003.safetensors already" in refused(capsys, path, tmp_path / "hf", "--hf")


def test_a_pickle_is_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hf").mkdir()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "hf" / "pytorch_model.bin")
    assert "is not a complete checkpoint" in refused(capsys, tmp_path / "hf", tmp_path / "out")
    save_file({"weight": torch.zeros(1)}, tmp_path / "hf" / "other.safetensors")
    (tmp_path / "hf" / "other.safetensors").write_bytes(b"\x80\x04N.")
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "out")]) == 1


def tiny(kind: str) -> Any:
    """A decoder with tied embeddings, or one whose experts lie in memory in another form than in the files."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 17, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(4)
    if kind == "tied":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True))
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=2))


@pytest.mark.parametrize("kind", ["tied", "experts"])
def test_a_hugging_face_model_goes_to_its_own_files_and_back(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(kind)
    expected = {name: value.clone() for name, value in model.state_dict().items()}

    def save(transport: ps.LoopbackTransport) -> Path:
        pipe = ps.Pipeline(model, nn.functional.mse_loss, transport=transport, num_microbatches=2)
        return checkpoint.save(tmp_path / "saved", pipe)

    path = ps.run_ranks(save, 2, timeout_seconds=20)[0]
    assert read_manifest(path).config["architectures"] == [type(model).__name__]
    told(capsys, path, tmp_path / "hf", "--hf", "--file-gib", 1e-6)
    opened = type(model).from_pretrained(tmp_path / "hf", dtype=torch.float32)
    for name, value in opened.state_dict().items():
        assert torch.equal(value, expected[name]), name
    back = Path(told(capsys, tmp_path / "hf", tmp_path / "back", "--files", 3))
    assert read_manifest(back).model == read_manifest(path).model

    def load(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        fresh = type(model)(model.config)
        pipe = ps.Pipeline(fresh, nn.functional.mse_loss, transport=transport, num_microbatches=2)
        assert checkpoint.load(back, pipe).step == 0
        return pipe.state_dict()

    for part in ps.run_ranks(load, 2, timeout_seconds=20):
        assert part
        for name, value in part.items():
            assert torch.equal(value, expected[name]), name
