"""A Hugging Face model saved at p = 4, v = 2 goes on at any p, and as the directory that transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW, lr_scheduler

import penstock as ps
from penstock import checkpoint
from penstock.cli.main import main
from penstock.models.hugging_face import causal_lm_loss, meta_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 5}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}


class Ended(NamedTuple):
    """Losses of the steps, held-out loss, weights and moments at the end, over all ranks."""

    losses: list[float]
    held_out: float
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def ids(step: int) -> Tensor:
    return torch.randint(3, 61, (8, 10), generator=torch.Generator().manual_seed(step))


def config() -> Any:
    return transformers.LlamaConfig(**SIZES, attention_dropout=0.2, tie_word_embeddings=False)


def run(p: int, schedule: Any, steps: range, *, save: Path | None = None, load: Path | None = None) -> Ended:
    """Returns how a run ended that saved before the last two steps, or went on from there."""
    model = meta_model(config())

    def rank(transport: ps.LoopbackTransport) -> Ended:
        pipe = ps.Pipeline(model, causal_lm_loss, transport=transport, schedule=schedule, num_microbatches=4, seed=3)
        optimizer = AdamW(pipe.parameters(), lr=0.01)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 9)
        if load is not None:
            checkpoint.load(load, pipe, optimizer=optimizer, scheduler=scheduler)
            assert pipe.steps_done == steps.start
        losses = []
        for step in steps:
            if save is not None and step == steps.stop - 2:
                checkpoint.save(save, pipe, optimizer=optimizer, scheduler=scheduler)
            losses.append(pipe.step(ids(step), ids(step)).item())
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        names = {parameter: name for name, parameter in pipe.named_parameters()}
        moments = {
            f"{names[parameter]}/{key}": value.clone()
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
        held_out = pipe.evaluate(ids(99), ids(99)).item()
        return Ended(losses, held_out, {name: value.clone() for name, value in pipe.state_dict().items()}, moments)

    parts = ps.run_ranks(rank, p, timeout_seconds=60)
    weights, moments = {}, {}
    for part in parts:
        weights |= part.weights
        moments |= part.moments
    return Ended(parts[0].losses, parts[0].held_out, weights, moments)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_curve_goes_on_in_every_layout_and_as_a_hugging_face_directory(tmp_path: Path) -> None:
    """Dropout, moments, learning rates and steps too, bit for bit."""
    unbroken = run(4, ps.interleaved_1f1b(4, 4, num_chunks=2), range(4), save=tmp_path / "saved")
    path = checkpoint.latest(tmp_path / "saved")
    assert path is not None
    for p, schedule in ((2, "one_f_one_b"), (1, "naive")):
        found = run(p, schedule, range(2, 4), load=path)
        assert found.losses == unbroken.losses[2:]
        assert found.held_out == unbroken.held_out
        same(found.weights, unbroken.weights)
        same(found.moments, unbroken.moments)

    assert main(["convert", str(path), str(tmp_path / "hf"), "--hugging-face", "--file-gib", "0.00001"]) == 0
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    stored = checkpoint.read_tensors(path, [f"model/{name}" for name in opened.state_dict()])
    same({f"model/{name}": value for name, value in opened.state_dict().items()}, stored)

    def goes_on(transport: ps.LoopbackTransport) -> float:
        arguments = {"transport": transport, "schedule": "one_f_one_b", "num_microbatches": 4, "seed": 3}
        pipe = ps.Pipeline.from_pretrained(tmp_path / "hf", causal_lm_loss, **arguments)
        pipe.steps_done = 2
        return pipe.step(ids(2), ids(2)).item()

    assert ps.run_ranks(goes_on, 2, timeout_seconds=60) == [unbroken.losses[2]] * 2
