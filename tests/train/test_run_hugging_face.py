"""`penstock train --model.hf` on a tiny Llama with a tokenizer: it trains, saves, samples, and can be gone on from."""

from __future__ import annotations

import io
import json
import re
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from tests.train.runs import TEXT, held_out_losses, losses, options

from penstock.errors import CheckpointError, ConfigError, UserError
from penstock.runtime import Pipeline
from penstock.runtime.transport.loopback import LoopbackTransport, run_ranks
from penstock.train.config import Config, DataConfig, ModelConfig, PipelineConfig, RunConfig
from penstock.train.config_file import load_toml, resolve, to_toml
from penstock.train.data import batch, read_corpus, unigram_entropy
from penstock.train.gpt import lm_loss
from penstock.train.loop import train
from penstock.train.model import check_model, layer_names, model_of, seed_of, tokenizer_of
from penstock.train.optimizers import build_optimizer, learning_rate, set_learning_rate
from penstock.train.preflight import check_layout
from penstock.train.resume import check_same_run
from penstock.train.state import resume_state
from penstock.train.tokens import read_tokenizer, tokenized

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig

pytestmark = pytest.mark.filterwarnings("ignore")

OWN_SIZES = ("model.layers", "model.width", "model.heads", "model.dropout")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a configuration and a tokenizer, whose embedding is the head too; no weights."""
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=288, num_hidden_layers=3, max_position_embeddings=64, tie_word_embeddings=True, **sizes
    )
    config.attention_dropout = 0.1
    config.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=288, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


class Alone:
    """As much of a Worker as the loop needs of a run of one rank."""

    rank = local_rank = 0
    local_world_size = 1

    def report_position(self, source: Any) -> None:
        self.source = source


class Trained(NamedTuple):
    """A run that has ended: its directory and what it printed."""

    output: Path
    out: str


@pytest.fixture(scope="module")
def trained(llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of six steps in this process, with a checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("run")
    lengths = {"run__steps": 6, "checkpoint__every": 3, "evaluate__every": 0, "optimizer__warmup_steps": 2}
    words = options(data__paths=text, run__output=folder / "out", log__predict_after=0, **lengths)
    for size in OWN_SIZES:
        at = words.index(f"--{size}")
        del words[at : at + 2]
    config = resolve(["--model.hf", str(llama), "--pipeline.ranks", "1", *words])
    printed = io.StringIO()
    store = dist.FileStore(str(folder / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with redirect_stdout(printed):
            train(config, Alone())  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()
    (folder / "out" / "config.toml").write_text(to_toml(config))
    return Trained(folder / "out", printed.getvalue())


def test_it_trains_evaluates_and_samples_in_tokens(trained: Trained):
    found = losses(trained.output)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert found[6] < found[1] - 0.3
    assert list(held_out_losses(trained.output)) == [6]
    assert "nats per token" in trained.out
    sample = trained.out.split("sample:\n")[1]
    assert re.match(r"the quick brown fox|\w+ ", sample)


def test_what_it_leaves_opens_in_transformers(trained: Trained, llama: Path):
    model = AutoModelForCausalLM.from_pretrained(trained.output / "model-00000006")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (trained.output / "model-00000006" / "tokenizer.json").read_text() == (llama / "tokenizer.json").read_text()


def test_its_checkpoint_goes_on_in_another_layout_as_the_run_itself_did(trained: Trained, llama: Path):
    config = load_toml(trained.output / "config.toml")
    assert config.model.hf == str(llama)
    corpus = tokenized(read_corpus(config.data.paths, held_out=config.data.held_out), tokenizer_of(config))
    path = trained.output / "checkpoints" / "step-00000003"
    check_same_run(config, path, data_digest=corpus.digest)

    def rank(transport: LoopbackTransport) -> dict[str, torch.Tensor]:
        pipe = Pipeline(
            model_of(config), lm_loss, transport=transport, schedule="zb_v", num_microbatches=4, seed=seed_of(config)
        )
        optimizer = build_optimizer(config.optimizer, pipe.parameters())
        for step in range(resume_state(path, pipe, optimizer), 6):
            sizes = {"batch_size": config.run.batch_size, "context": config.model.context, "seed": config.run.seed}
            pipe.step(*batch(corpus, step=step, **sizes))
            pipe.clip_grad_norm_(config.optimizer.clip_norm)
            set_learning_rate(optimizer, learning_rate(config.optimizer, step=step, steps=6))
            optimizer.step()
            optimizer.zero_grad()
        return pipe.state_dict()

    final = AutoModelForCausalLM.from_pretrained(trained.output / "model-00000006").state_dict()
    for own in run_ranks(rank, 2):
        for name, value in own.items():
            torch.testing.assert_close(value, final[name], rtol=1e-4, atol=1e-5)
    other = replace(config, model=replace(config.model, hf="elsewhere"))
    with pytest.raises(CheckpointError, match=r"was saved with model\.hf="):
        check_same_run(other, path, data_digest=corpus.digest)


def test_without_a_tokenizer_text_is_read_as_bytes(llama: Path, tmp_path: Path):
    config = replace(Config(), model=ModelConfig(hf=str(llama / "config.json"), context=32))
    check_model(config)
    assert tokenizer_of(config) is None
    assert layer_names(config)[0] == "model.embed_tokens"
    assert len(layer_names(config)) == 6


def test_tokens_are_the_whole_text_and_no_more(llama: Path, text: Path):
    corpus = read_corpus([str(text)], held_out=0.1)
    tokens = tokenized(corpus, read_tokenizer(llama))
    assert read_tokenizer(llama).decode(tokens.train.tolist()) == corpus.train.tobytes().decode()
    assert len(tokens.train) < 0.6 * len(corpus.train)
    assert tokens.digest == corpus.digest
    assert 1 < unigram_entropy(tokens) < 5


def refused(llama: Path, **changes: Any) -> str:
    config = replace(Config(), model=ModelConfig(hf=str(llama), context=changes.pop("context", 32)), **changes)
    with pytest.raises(UserError) as caught:
        check_model(config)
        check_layout(config)
    return str(caught.value)


def test_a_model_that_does_not_fit_is_refused_before_anything_starts(llama: Path, tmp_path: Path):
    assert "use at most --model.context 64" in refused(llama, context=65)
    assert "names layer 6 of 6" in refused(llama, pipeline=PipelineConfig(recompute=(6,)))
    assert "sizes must add up to 6" in str(refused(llama, pipeline=PipelineConfig(partition=(1, 1))))
    assert "does not exist" in refused(tmp_path / "nowhere")
    facts = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts | {"vocab_size": 200}))
    assert "has a vocabulary of 200 symbols and needs 256" in refused(tmp_path)
    for name, said in (("vocab.json", "has vocab.json and no tokenizer.json"), ("tokenizer.json", "is no tokenizer")):
        other = tmp_path / name.removesuffix(".json")
        other.mkdir()
        (other / "config.json").write_text(json.dumps(facts))
        (other / name).write_text("{}")
        assert said in refused(other)


def test_an_encoder_decoder_is_refused_with_what_takes_it(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    said = refused(tmp_path)
    assert f"model.hf={tmp_path} is an encoder-decoder, and plain text has nothing for its encoder" in said
    assert "use a decoder, or Pipeline.from_pretrained in a loop of your own" in said


def test_sizes_of_the_gpt_are_refused_beside_another_model(tmp_path: Path):
    (tmp_path / "run.toml").write_text('[model]\nhf = "x"\nlayers = 7\n')
    with pytest.raises(ConfigError, match=r"model\.layers=7 is the byte-level GPT's"):
        resolve([str(tmp_path / "run.toml")])


def test_a_fresh_model_is_drawn_from_the_run_s_seed(llama: Path):
    def weights(seed: int, p: int) -> dict[str, torch.Tensor]:
        config = replace(
            Config(), model=ModelConfig(hf=str(llama)), run=RunConfig(seed=seed), data=DataConfig(held_out=0.1)
        )

        def rank(transport: LoopbackTransport) -> dict[str, torch.Tensor]:
            return Pipeline(
                model_of(config), lm_loss, transport=transport, num_microbatches=1, seed=seed_of(config)
            ).state_dict()

        return {name: value for own in run_ranks(rank, p) for name, value in own.items()}

    whole = weights(0, 1)
    for name, value in weights(0, 3).items():
        assert torch.equal(value, whole[name]), name
    assert not torch.equal(weights(1, 1)["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])
