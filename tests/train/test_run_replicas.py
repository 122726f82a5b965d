"""A plan with copies trains unchanged: each takes its share of the batch, and the losses are those of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.train.runs import TEXT, Run, held_out_losses, losses, options
from tests.train.test_planned import PLAN

import penstock as ps
from penstock.errors import ConfigError
from penstock.planner import plan_to_json
from penstock.runtime import Transport
from penstock.train import loop
from penstock.train.command import _check_processes
from penstock.train.config import Config
from penstock.train.config_file import load_toml, resolve
from penstock.train.data import batch, read_corpus
from penstock.train.gpt import lm_loss
from penstock.train.model import model_of
from penstock.train.optimizers import build_optimizer, learning_rate, set_learning_rate
from penstock.train.planned import with_plan
from penstock.train.preflight import check_layout

COPIES = replace(
    PLAN,
    data=2,
    pipeline=1,
    schedule="one_f_one_b",
    chunks=1,
    microbatches=2,
    sequence=32,
    partition=(4,),
    recompute=(),
    forecast=replace(PLAN.forecast, memory_bytes=(1.0,), memory_limits=(2.0,)),
)
STEPS = 3


def one_process(config: Config) -> list[float]:
    """Returns the losses of a run of `config` on one rank, all of each batch in one pipeline."""
    corpus, lost = read_corpus(config.data.paths, held_out=config.data.held_out), []

    def rank(transport: Transport) -> None:
        copies = config.pipeline.replicas
        pipe = ps.Pipeline(
            model_of(config), lm_loss, transport=transport, num_microbatches=copies * config.pipeline.microbatches
        )
        optimizer = build_optimizer(config.optimizer, pipe.parameters())
        sizes = {"batch_size": config.run.batch_size, "context": config.model.context, "seed": config.run.seed}
        for step in range(STEPS):
            lost.append(pipe.step(*batch(corpus, step=step, **sizes)).item())
            pipe.clip_grad_norm_(config.optimizer.clip_norm)
            set_learning_rate(optimizer, learning_rate(config.optimizer, step=step, steps=config.run.steps))
            optimizer.step()
            optimizer.zero_grad()

    ps.run_ranks(rank, 1)
    return lost


@pytest.mark.matrix
def test_two_copies_lose_what_one_process_does_with_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "plan.json").write_text(plan_to_json(COPIES))
    output = tmp_path / "run"
    words = options(
        data__paths=tmp_path / "text.txt",
        run__output=output,
        run__steps=STEPS,
        run__dtype="float64",
        model__dropout=0,
        model__context=32,
    )
    run = Run(tmp_path, "--plan", str(tmp_path / "plan.json"), *words)
    assert (run.finish(), run.err) == (0, "")
    config = load_toml(output / "config.toml")
    assert (config.pipeline.replicas, config.pipeline.ranks, config.run.batch_size) == (2, 1, 8)
    assert list(losses(output).values()) == pytest.approx(one_process(config), rel=1e-12)
    assert list(held_out_losses(output)) == [STEPS]
    assert run.out.count("held-out loss") == 2, "said once, and once more at the end"


def test_a_plan_brings_its_copies_its_sequence_and_what_is_outermost() -> None:
    config = with_plan(Config(), replace(COPIES, outermost="pipeline"))
    assert (config.pipeline.replicas, config.pipeline.outermost, config.model.context) == (2, "pipeline", 32)
    assert with_plan(Config(), replace(PLAN, outermost="pipeline")).pipeline.outermost == "data"


def test_each_copy_takes_its_part_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.arange(12).reshape(6, 2), torch.arange(6)
    for index, rows in enumerate(([0, 1], [2, 3], [4, 5])):
        monkeypatch.setattr(loop, "replicas_of", lambda _, index=index: SimpleNamespace(size=3, index=index))
        inputs, targets = loop._share(None, whole)  # type: ignore[arg-type]
        assert targets.tolist() == rows
        assert inputs[:, 0].tolist() == [2 * row for row in rows]
    monkeypatch.setattr(loop, "replicas_of", lambda _: None)
    assert loop._share(None, whole) is whole  # type: ignore[arg-type]


def test_as_many_processes_are_needed_as_all_copies_have_ranks() -> None:
    config = resolve(["--pipeline.replicas", "2", "--run.batch-size", "16"])
    _check_processes(config, 4)
    with pytest.raises(ConfigError, match=r"6 processes .* pipeline.ranks=2 with pipeline.replicas=2; start 4, or add"):
        _check_processes(config, 6)
    with pytest.raises(ConfigError, match=r"3 processes .* pipeline.ranks=2; start as many, or add --pipeline.ranks 3"):
        _check_processes(Config(), 3)


def test_a_batch_that_copies_cannot_share_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"into pipeline.microbatches=4 on each of pipeline.replicas=3; use e.g. run.batch_size=12",
    ):
        resolve(["--pipeline.replicas", "3"])


def test_copies_of_an_asynchronous_schedule_may_train() -> None:
    check_layout(resolve(["--pipeline.replicas", "2", "--pipeline.schedule", "pipedream"]))
