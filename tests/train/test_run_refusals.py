"""What cannot work is refused with one message that has the value and a remedy, before any rank is started."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.train.conftest import Finished
from tests.train.runs import Run, options

from penstock.checkpoint import Label, Shard, write_checkpoint
from penstock.cli.main import main
from penstock.train import config
from penstock.train.config import Config
from penstock.train.config_file import resolve, to_toml
from penstock.train.data import read_corpus

Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """`penstock train` in this process: returns exit code and stderr; fails where ranks would be started."""
    monkeypatch.setattr("penstock.train.command.launch", lambda *_, **__: pytest.fail("ranks were started"))
    monkeypatch.setenv("COLUMNS", "400")  # the option parser's frames would break its messages

    def run(*words: str) -> tuple[int, str]:
        code = main(["train", *words])
        return code, capsys.readouterr().err

    return run


def _assert_refused(result: tuple[int, str], *words: str) -> None:
    code, err = result
    assert code in (1, 2)
    assert "Traceback" not in err
    for word in words:
        assert word in err
    if err.startswith("penstock: "):
        assert err.count("\n") == 1


LAYOUTS = {
    "--pipeline.schedule one_f_on_b": ('"one_f_on_b"', 'Did you mean "one_f_one_b"?'),
    "--pipeline.ranks 0": ("pipeline.ranks=0", "at least 1"),
    "--pipeline.microbatches 3": ("run.batch_size=8", "pipeline.microbatches=3", "use e.g. run.batch_size=9"),
    "--pipeline.ranks 7": ("4", "7"),
    "--pipeline.partition 1 2": ("pipeline.partition=[1, 2]", "sum to 4"),
    "--pipeline.partition 1 1 2": ("3", "2"),
    "--run.dtype float16": ("'float16'", "'bfloat16'"),
    "--run.steps many": ("--run.steps", "'many'"),
    "--run.step 5": ("--run.step", "--run.steps INT"),
    "--run.port 70000": ("run.port=70000", "at most 65535"),
}


@pytest.mark.parametrize(("given", "words"), LAYOUTS.items(), ids=list(LAYOUTS))
def test_an_option_that_cannot_be(given: str, words: tuple[str, ...], train: Train, text: Path, tmp_path: Path) -> None:
    _assert_refused(train(*options(data__paths=text, run__output=tmp_path / "run"), *given.split()), *words)
    assert not (tmp_path / "run").exists()


FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (lambda path: None, ("does not exist", "give a text file")),
    "empty": (lambda path: path.touch(), ("is empty", "with text in it")),
    "binary": (lambda path: path.write_bytes(b"PNG\0\1"), ("is binary (byte 3 is NUL)", "give UTF-8 text")),
    "directory": (lambda path: path.mkdir(), ("holds no text file", "name a directory with UTF-8 text")),
    "short": (lambda path: path.write_text("too short\n" * 5), ("45 bytes", "give at least 288 bytes")),
}


@pytest.mark.parametrize(("make", "words"), FILES.values(), ids=list(FILES))
def test_a_text_that_cannot_serve(
    make: Callable[[Path], object], words: tuple[str, ...], train: Train, tmp_path: Path
) -> None:
    path = tmp_path / "text"
    make(path)
    named = () if path.name == "text" and "45 bytes" in words else (str(path),)
    _assert_refused(train(*options(data__paths=path, run__output=tmp_path / "run")), *named, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("below", ["", "/run"])
def test_an_output_that_is_or_lies_below_a_file(below: str, train: Train, text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = f"{tmp_path}/file{below}"
    result = train(*options(data__paths=text, run__output=output))
    _assert_refused(result, f"run.output={output} cannot be written (", "choose another directory")


CONFIGS = {
    "[run]\nstep = 5\n": ('unknown key "run.step"', 'Did you mean "steps"?'),
    "[runs]\nsteps = 5\n": ('unknown section "runs"', 'Did you mean "run"?'),
    '[run]\nsteps = "5"\n': ('run.steps="5" is a string; it must be an integer',),
    "run = 5\n": ("run is a section, not a value (5)",),
    "[run\n": ("not valid TOML",),
}


@pytest.mark.parametrize(("content", "words"), CONFIGS.items(), ids=lambda value: str(value)[:12])
def test_a_configuration_file_that_cannot_be(
    content: str, words: tuple[str, ...], train: Train, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)
    _assert_refused(train(str(path)), str(path), *words)


def test_a_configuration_file_that_is_missing(train: Train, tmp_path: Path) -> None:
    _assert_refused(train(f"{tmp_path}/none.toml"), f"{tmp_path}/none.toml does not exist", "check the path")


def test_cuda_where_there_is_none(train: Train, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = train(*options(data__paths=text, run__output=tmp_path / "run", run__device="cuda"))
    _assert_refused(result, 'run.device="cuda" and this host has no CUDA device', "--run.device cpu")


def test_tensorboard_where_it_is_not_installed(
    train: Train, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = train(*options(data__paths=text, run__output=tmp_path / "run", log__tensorboard=True))
    _assert_refused(result, "pip install 'penstock[tensorboard]'")


def test_a_port_in_use_leaves_no_run_behind(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = main(["train", *options(data__paths=text, run__output=tmp_path / "run", run__port=port)])
    _assert_refused((code, capsys.readouterr().err), f"port {port} is in use", "or 0 for any free port")
    assert not (tmp_path / "run").exists()


def _saved(text: Path, output: Path, **changes: object) -> Path:
    """A checkpoint of step 6 as a run of one rank with these options saves it; its weights do not matter here."""
    asked = resolve(options(data__paths=text, run__output=output, **changes))
    digest = read_corpus(asked.data.paths, held_out=asked.data.held_out).digest
    return write_checkpoint(
        output / "checkpoints",
        Shard({"model/embed.byte.weight": torch.zeros(256, 32)}),
        Label(6, {"config": to_toml(asked), "data_digest": digest}),
        rank=0,
        exchange=lambda payload: [payload],
    )


FOREIGN = {
    "model.width": ("64", "32"),
    "model.layers": ("3", "2"),
    "model.heads": ("4", "2"),  # the shapes of the tensors do not show it
    "run.dtype": ("float64", "float32"),
    "optimizer.name": ("sgd", "adamw"),  # would go on without any momentum
}


@pytest.mark.parametrize("key", FOREIGN)
def test_a_checkpoint_of_another_model_or_optimizer(key: str, train: Train, text: Path, tmp_path: Path) -> None:
    saved, now = FOREIGN[key]
    _saved(text, tmp_path, **{key.replace(".", "__"): saved})
    result = train(*options(data__paths=text, run__output=tmp_path, run__resume="latest"))
    _assert_refused(result, f"was saved with {key}={saved} and this run has {now}", f"--{key} {saved}")


def test_a_checkpoint_of_other_text(train: Train, text: Path, tmp_path: Path) -> None:
    _saved(text, tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().upper())
    result = train(*options(data__paths=other, run__output=tmp_path, run__resume="latest"))
    _assert_refused(result, "was trained on other text", "resume with the same text")


def test_a_checkpoint_beyond_the_last_step(train: Train, text: Path, tmp_path: Path) -> None:
    _saved(text, tmp_path)
    result = train(*options(data__paths=text, run__output=tmp_path, run__resume="latest", run__steps=5))
    _assert_refused(result, "is of step 6 and run.steps=5", "ask for more steps")


def test_a_checkpoint_cut_short_or_missing(train: Train, text: Path, tmp_path: Path) -> None:
    words = options(data__paths=text, run__output=tmp_path, run__resume="latest")
    _assert_refused(train(*words), "holds no checkpoint to resume", "start without --run.resume")
    path = _saved(text, tmp_path)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text()[:200])
    _assert_refused(train(*words), f"{manifest} is damaged", "use another")


def test_a_directory_that_is_no_checkpoint_of_ours(train: Train, text: Path, tmp_path: Path) -> None:
    words = options(data__paths=text, run__output=tmp_path / "run", run__resume=tmp_path)
    _assert_refused(train(*words), f"{tmp_path} is not a complete checkpoint", "manifest.json")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "other", "version": 1}))
    _assert_refused(train(*words), 'has format "other"', "name a penstock checkpoint")


@pytest.mark.slow
def test_a_flipped_bit_is_found_by_the_rank_that_reads_it(whole_run: Finished, text: Path, tmp_path: Path) -> None:
    """The one refusal that needs ranks: each of them verifies what it loads."""
    output = tmp_path / "run"
    shutil.copytree(whole_run.output, output)
    shard = output / "checkpoints" / "step-00000040" / "rank-1.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    run = Run(tmp_path, *options(data__paths=text, run__output=output, run__resume=shard.parent))
    assert run.finish() == 2
    _assert_refused((2, run.err), f"{shard} has changed since it was saved", "use another checkpoint")
    assert run.err.count("\n") == 1


def test_a_refusal_is_quick_and_one_line_in_a_shell(tmp_path: Path) -> None:
    run = Run(tmp_path, *options(data__paths=tmp_path / "none", run__output=tmp_path / "run"))
    assert run.finish() == 1
    assert (
        run.err
        == f"penstock: data path {tmp_path}/none does not exist; give a text file or a directory of text files\n"
    )
    assert run.out == ""


def test_every_option_is_explained_by_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that no text is wrapped
    assert main(["train", "--help"]) == 0
    help_text = capsys.readouterr().out
    sections = {type(getattr(Config(), section.name)).__name__: section.name for section in fields(Config)}
    explained = set()
    for section in ast.parse(inspect.getsource(config)).body:
        if isinstance(section, ast.ClassDef) and section.name in sections:
            for item, text in pairwise(section.body):
                if isinstance(item, ast.AnnAssign) and isinstance(text, ast.Expr):
                    assert ast.literal_eval(text.value) in help_text
                    explained.add(f"{sections[section.name]}.{ast.unparse(item.target)}")
    assert explained == {
        f"{section.name}.{item.name}" for section in fields(Config) for item in fields(getattr(Config(), section.name))
    }


@pytest.mark.parametrize(
    ("damage", "said"), [("torn", "cannot be opened as safetensors"), ("other", "weights are of different models")]
)
def test_weights_that_do_not_open_are_refused_before_any_rank(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, said: str
) -> None:
    """Symptom: the ranks started, failed, and left a run's directory. Cause: only they opened the files."""
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 256, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    directory, output = tmp_path / "llama", tmp_path / "run"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads)).save_pretrained(directory)
    if damage == "torn":
        weights = directory / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        transformers.LlamaConfig(**shape | {"intermediate_size": 32}, **heads).save_pretrained(directory)
    capsys.readouterr()  # how far the writing had come
    code, err = train("--model.hf", str(directory), "--model.context", "16", "--run.output", str(output))
    assert (code, err.count("\n")) == (1, 1)
    assert said in err
    assert not output.exists()
