"""`penstock train` under schedules that step inside: resumed runs, learning rates, clipping, what is told."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.checkpoint import latest
from penstock.errors import ConfigError
from penstock.runtime import Pipeline
from penstock.runtime.transport.loopback import LoopbackTransport, run_ranks
from penstock.schedules import pipedream, pipemare
from penstock.train.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    RunConfig,
)
from penstock.train.data import Corpus, read_corpus
from penstock.train.gpt import build_gpt, lm_loss
from penstock.train.inside import StageRate, follow_curve, next_stop, notes, run_batches, stage_optimizer
from penstock.train.journal import StepFigures
from penstock.train.loop import evaluate
from penstock.train.optimizers import learning_rate
from penstock.train.planned import asynchronous_schedule
from penstock.train.preflight import check_layout
from penstock.train.resume import changes_of_curve
from penstock.train.state import resume_state

MODEL = ModelConfig(layers=2, width=8, heads=2, context=4, dropout=0.1)


def config_of(output: Path, schedule: str = "pipedream", **optimizer: Any) -> Config:
    return Config(
        pipeline=PipelineConfig(schedule=schedule),
        model=MODEL,
        data=DataConfig(held_out=0.2),
        optimizer=OptimizerConfig(warmup_steps=3, **optimizer),
        run=RunConfig(output=str(output), steps=9, dtype="float64"),
        checkpoint=CheckpointConfig(every=4, keep=9),
        evaluate=EvaluateConfig(every=3, batches=2),
    )


class Noting:
    """A journal that keeps what it is told, and may end the run after a step."""

    def __init__(self, last: int = 99) -> None:
        self.losses: dict[int, float] = {}
        self.held: dict[int, float] = {}
        self.norms: set[float | None] = set()
        self._last = last

    def step(self, figures: StepFigures) -> None:
        self.losses[figures.step] = figures.loss
        self.norms.add(figures.grad_norm)
        if figures.step == self._last:
            raise InterruptedError

    def held_out(self, step: int, loss: float) -> None:
        self.held[step] = loss


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return read_corpus([str(path)], held_out=0.2)


def trained(config: Config, corpus: Corpus, journal: Noting, transport: LoopbackTransport) -> dict[str, Tensor]:
    """One rank of a run; it goes on from the last checkpoint if there is one."""
    pipe = Pipeline(
        build_gpt(MODEL, seed=0, dtype=torch.float64),
        lm_loss,
        transport=transport,
        schedule=asynchronous_schedule(config),
        seed=0,
        optimizer=stage_optimizer(config),
        discrepancy_decay=config.optimizer.discrepancy_decay or None,
    )
    path = latest(Path(config.run.output) / "checkpoints")
    if path is not None:
        resume_state(path, pipe, None)
    follow_curve(config, pipe)
    measure = partial(evaluate, config, corpus, pipe)
    with suppress(InterruptedError):
        run_batches(config, corpus, pipe, journal=journal, evaluate=measure, share=lambda whole: whole)  # type: ignore[arg-type]
    return pipe.state_dict()


def run(config: Config, corpus: Corpus, last: int = 99) -> tuple[dict[str, Tensor], Noting]:
    journals = [Noting(last) for _ in range(2)]

    def rank(transport: LoopbackTransport) -> dict[str, Tensor]:
        return trained(config, corpus, journals[transport.rank], transport)

    parts = run_ranks(rank, 2, timeout_seconds=30)
    assert journals[0].losses == journals[1].losses
    assert journals[0].norms == {None}, "no rank knows the norm of the whole model"
    return {name: value for own in parts for name, value in own.items()}, journals[0]


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [
        ("pipedream", {}),
        ("pipedream_2bw", {"name": "nadamw", "betas": (0.99, 0.999)}),
        ("pipemare", {"anneal_steps": 5, "discrepancy_decay": 0.135, "name": "sgd", "learning_rate": 0.05}),
    ],
)
def test_an_interrupted_run_that_goes_on_is_the_unbroken_one(
    schedule: str, optimizer: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    """What is in flight is drained before a checkpoint and an evaluation, in the unbroken run as in the other."""
    whole, told = run(config_of(tmp_path / "whole", schedule, **optimizer), corpus)
    broken = config_of(tmp_path / "broken", schedule, **optimizer)
    _, first = run(broken, corpus, last=6)
    assert latest(tmp_path / "broken" / "checkpoints") == tmp_path / "broken" / "checkpoints" / "step-00000004"
    found, second = run(broken, corpus)
    assert {**first.losses, **second.losses} == told.losses
    assert list(told.losses) == list(range(1, 10))
    assert {**first.held, **second.held} == told.held
    assert list(told.held) == [3, 6, 9]
    assert list(second.losses) == [5, 6, 7, 8, 9]
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_the_rate_is_that_of_the_batch_for_each_of_its_steps_and_goes_on_after_a_resume() -> None:
    config = config_of(Path("unused"), learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=9.0)
    rate = StageRate(config, a_batch=2, taken=4, share=lambda step: 0.5 if step < 6 else 1.0)
    seen = []
    for _ in range(4):
        rate(optimizer)
        seen.append(optimizer.param_groups[0]["lr"])
    curve = [learning_rate(config.optimizer, step=step, steps=9) for step in (2, 3)]
    assert seen == [curve[0] / 2, curve[0] / 2, curve[1], curve[1]]


def test_clipping_bounds_each_stage_by_itself_and_none_where_it_is_off() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    for clip_norm, expected in ((1.0, 1.0), (0.0, 5.0)):
        optimizer = stage_optimizer(config_of(Path("unused"), name="sgd", betas=(0.0, 0.9), clip_norm=clip_norm))(
            [parameter]
        )
        optimizer.param_groups[0].update(lr=1.0, weight_decay=0.0)
        parameter.data.zero_()
        parameter.grad = torch.tensor([3.0, 4.0])
        optimizer.step()
        assert float(parameter.detach().norm()) == pytest.approx(expected, rel=1e-5)


def test_the_next_stop_is_the_next_evaluation_or_checkpoint() -> None:
    config = config_of(Path("unused"))
    assert [next_stop(config, done) for done in range(9)] == [3, 3, 3, 4, 6, 6, 8, 8, 9]
    never = replace(config, evaluate=EvaluateConfig(every=0), checkpoint=CheckpointConfig(every=0))
    assert next_stop(never, 2) == 9


def test_a_reader_is_told_which_loss_it_is_and_what_is_clipped() -> None:
    told = list(notes(config_of(Path("unused")), pipedream(2, 4)))
    assert told[0].startswith("pipedream steps the weights inside, 4 times a batch: a loss is the mean")
    assert told[1] == "optimizer.clip_norm=1.0 bounds the gradient of each stage by itself"
    assert len(list(notes(config_of(Path("unused"), clip_norm=0.0), pipemare(2, 4)))) == 1


def test_rules_of_pipemare_are_refused_elsewhere_and_a_change_of_drains_is_noted(
    corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"anneal_steps=5 is a rule of pipemare, and pipeline.schedule is pipedream"):
        check_layout(config_of(tmp_path, anneal_steps=5))
    check_layout(config_of(tmp_path, "pipemare", anneal_steps=5, discrepancy_decay=0.1))
    config = config_of(tmp_path)
    run(replace(config, run=replace(config.run, steps=1)), corpus)
    other = replace(config, checkpoint=CheckpointConfig(every=5), run=replace(config.run, steps=1))
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert changes_of_curve(other, path) == ["checkpoint.every is 5, it was 4"]
