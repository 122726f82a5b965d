"""What is saved by two ranks is taken up by one, bit for bit, on loopback; ranks fail together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from penstock.errors import CheckpointError
from penstock.runtime import Pipeline
from penstock.runtime.transport.loopback import LoopbackTransport, run_ranks
from penstock.train.config import Config, ModelConfig, PipelineConfig, RunConfig
from penstock.train.gpt import build_gpt, lm_loss
from penstock.train.optimizers import build_optimizer
from penstock.train.state import resume_state, save_state, saver_of

MODEL = ModelConfig(layers=2, width=8, heads=2, context=4)
INPUTS = torch.arange(16).reshape(4, 4)


def _config(output: Path) -> Config:
    return replace(Config(), model=MODEL, pipeline=PipelineConfig(), run=RunConfig(output=str(output), steps=4))


def _ready(transport: LoopbackTransport, schedule: str, seed: int) -> tuple[Pipeline, torch.optim.Optimizer]:
    model = build_gpt(MODEL, seed=seed)
    pipe = Pipeline(model, lm_loss, transport=transport, schedule=schedule, num_microbatches=2)
    return pipe, build_optimizer(Config().optimizer, pipe.parameters())


def _step(pipe: Pipeline, optimizer: torch.optim.Optimizer) -> float:
    loss = pipe.step(INPUTS, INPUTS)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_one_rank_goes_on_where_two_have_saved(tmp_path: Path) -> None:
    config = _config(tmp_path)

    def first(transport: LoopbackTransport) -> tuple[Path, list[float]]:
        pipe, optimizer = _ready(transport, "one_f_one_b", seed=1)
        _step(pipe, optimizer)
        with saver_of(pipe, config) as saver:
            path = save_state(saver, optimizer, config=config, step=1, data_digest="d")
        return path, [_step(pipe, optimizer), _step(pipe, optimizer)]

    (path, losses), _ = run_ranks(first, 2)
    assert path == tmp_path / "checkpoints" / "step-00000001"

    def second(transport: LoopbackTransport) -> list[float]:
        pipe, optimizer = _ready(transport, "naive", seed=2)
        assert resume_state(path, pipe, optimizer) == 1
        assert pipe.steps_done == 1
        return [_step(pipe, optimizer), _step(pipe, optimizer)]

    assert run_ranks(second, 1) == [losses]


def test_copies_of_two_directions_are_saved_once_and_resumed_everywhere(tmp_path: Path) -> None:
    """The optimizer of a copy has moments of its own, which are the owner's."""
    config = _config(tmp_path)

    def first(transport: LoopbackTransport) -> tuple[Path, list[float]]:
        pipe, optimizer = _ready(transport, "chimera", seed=1)
        _step(pipe, optimizer)
        with saver_of(pipe, config) as saver:
            path = save_state(saver, optimizer, config=config, step=1, data_digest="d")
        return path, [_step(pipe, optimizer) for _ in range(3)]

    (path, losses), (_, same) = run_ranks(first, 2)
    assert losses == same

    def second(transport: LoopbackTransport) -> tuple[list[float], dict[str, torch.Tensor]]:
        pipe, optimizer = _ready(transport, "chimera", seed=2)
        resume_state(path, pipe, optimizer)
        went_on = [_step(pipe, optimizer) for _ in range(3)]
        return went_on, {name: value.detach() for name, value in pipe.named_parameters()}

    (again, held), (other, copied) = run_ranks(second, 2)
    assert losses == again == other
    assert held.keys() == copied.keys()
    assert all(torch.equal(value, copied[name]) for name, value in held.items())

    def alone(transport: LoopbackTransport) -> list[float]:
        pipe, optimizer = _ready(transport, "naive", seed=3)
        resume_state(path, pipe, optimizer)
        return [_step(pipe, optimizer) for _ in range(3)]

    assert run_ranks(alone, 1)[0] == pytest.approx(losses, rel=1e-5)


def test_a_shard_that_one_rank_finds_damaged_stops_every_rank(tmp_path: Path) -> None:
    config = _config(tmp_path)

    def save(transport: LoopbackTransport) -> Path:
        pipe, optimizer = _ready(transport, "gpipe", seed=1)
        with saver_of(pipe, config) as saver:
            return save_state(saver, optimizer, config=config, step=3, data_digest="d")

    path = run_ranks(save, 2)[0]
    shard = path / "rank-1.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    def resume(transport: LoopbackTransport) -> str:
        with pytest.raises(CheckpointError) as caught:
            resume_state(path, *_ready(transport, "gpipe", seed=1))
        return str(caught.value)

    messages = run_ranks(resume, 2)
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{shard} has changed since it was saved")
