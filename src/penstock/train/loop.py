"""The training loop, as any user of a Pipeline would write it."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from penstock.runtime import Pipeline
from penstock.train.config import Config
from penstock.train.data import Corpus, batch, held_out_batches, read_corpus, unigram_entropy
from penstock.train.failures import Position
from penstock.train.generate import generate
from penstock.train.gpt import build_gpt, lm_loss
from penstock.train.journal import LOSSES_FILE, Journal, StepFigures
from penstock.train.optimizers import build_optimizer, learning_rate, set_learning_rate
from penstock.train.preflight import check_corpus, check_device, check_layout, check_output, resume_path
from penstock.train.processes import Worker
from penstock.train.report import write_report
from penstock.train.state import resume_state, save_state

_TRACED_STEPS = 20


def train(config: Config, me: Worker) -> None:
    """Trains on this rank what `config` says; every rank runs the same lines.

    Raises:
        UserError: something that does not fit, told alike on every rank.
    """
    check_layout(config)
    check_device(config)
    check_output(Path(config.run.output))
    resume = resume_path(config)
    corpus = read_corpus(config.data.paths, held_out=config.data.held_out)
    check_corpus(config, corpus)
    pipe = _pipeline(config, me)
    me.report_position(lambda: _position(pipe))
    optimizer = build_optimizer(config.optimizer, pipe.parameters())
    first_step = resume_state(resume, pipe, optimizer, data_digest=corpus.digest) if resume else 0
    begin = time.perf_counter()
    with Journal(config, first_step=first_step, active=pipe.rank == 0) as journal:
        if first_step == 0:
            journal.say(pipe.summary())
        else:
            journal.say(f"resumed {resume} at step {first_step}")
        checkpoint = _steps(config, corpus, pipe, optimizer, journal=journal)
    seconds = time.perf_counter() - begin
    _finish(config, corpus, pipe, journal, checkpoint=checkpoint, seconds=seconds)
    pipe.close()


def evaluate(config: Config, corpus: Corpus, pipe: Pipeline) -> float:
    """Returns the held-out loss in nats per byte, the same on every rank. Every rank calls it."""
    total = samples = 0.0
    batches = held_out_batches(
        corpus,
        batches=config.evaluate.batches,
        batch_size=config.run.batch_size,
        context=config.model.context,
    )
    for inputs, targets in batches:
        total += pipe.evaluate(inputs, targets).item() * len(inputs)
        samples += len(inputs)
    return total / samples


def _pipeline(config: Config, me: Worker) -> Pipeline:
    device = config.run.device if config.run.device == "cpu" else f"{config.run.device}:{me.local_rank}"
    dtype = getattr(torch, config.run.dtype)
    return Pipeline(
        build_gpt(config.model, seed=config.run.seed, dtype=dtype),
        lm_loss,
        schedule=config.pipeline.schedule,
        num_microbatches=config.pipeline.microbatches,
        partition=config.pipeline.partition or None,
        device=device,
        seed=config.run.seed if config.model.dropout else None,
    )


def _steps(
    config: Config, corpus: Corpus, pipe: Pipeline, optimizer: torch.optim.Optimizer, *, journal: Journal
) -> Path | None:
    """Runs the steps that are left; returns the last checkpoint written."""
    checkpoint = None
    tokens = config.run.batch_size * config.model.context
    for step in range(pipe.steps_done, config.run.steps):
        begin = time.perf_counter()
        inputs, targets = batch(
            corpus,
            step=step,
            batch_size=config.run.batch_size,
            context=config.model.context,
            seed=config.run.seed,
        )
        loss = pipe.step(inputs, targets)
        norm = pipe.clip_grad_norm_(config.optimizer.clip_norm or float("inf"))
        rate = learning_rate(config.optimizer, step=step, steps=config.run.steps)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - begin
        done = step + 1
        journal.step(StepFigures(done, loss.item(), norm.item(), rate, tokens / seconds))
        if _due(done, config.evaluate.every, config.run.steps):
            journal.held_out(done, evaluate(config, corpus, pipe))
        if _due(done, config.checkpoint.every, config.run.steps):
            checkpoint = save_state(pipe, optimizer, config=config, step=done, data_digest=corpus.digest)
    return checkpoint


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _finish(
    config: Config, corpus: Corpus, pipe: Pipeline, journal: Journal, *, checkpoint: Path | None, seconds: float
) -> None:
    """Prints how well it went, where the time went, what was written, and a sample. Every rank calls it."""
    loss = evaluate(config, corpus, pipe)
    timelines = pipe.trace(_TRACED_STEPS)
    sample = generate(
        pipe,
        b"def ",
        num_bytes=config.log.sample_bytes,
        context=config.model.context,
        seed=config.run.seed,
    )
    if pipe.rank != 0:
        return
    output = Path(config.run.output)
    if timelines:
        table, written = write_report(pipe.plan.proof.program, timelines, output)
        journal.say(table)
        places = {"checkpoint": checkpoint, "trace for Perfetto": written.trace, "picture": written.picture}
        places |= {"timelines": written.timelines, "losses": output / LOSSES_FILE}
        journal.say("\n".join(f"{name + ':':20}{path}" for name, path in places.items() if path))
    if config.log.sample_bytes:
        journal.say("sample:\n" + sample.decode("utf-8", errors="replace"))
    journal.say(
        f"held-out loss {loss:.3f} nats per byte ({_bits(loss):.2f} bits); byte unigram entropy "
        f"{unigram_entropy(corpus):.3f}; trained in {seconds:.0f} s"
    )


def _bits(nats: float) -> float:
    return nats / 0.6931471805599453


def _position(pipe: Pipeline) -> Position | None:
    cursor = pipe.cursor
    if not cursor.call:
        return Position(op="between steps", step=pipe.steps_done)
    waiting = f"rank {cursor.waiting_for}" if cursor.waiting_for >= 0 else None
    return Position(op=cursor.where, step=pipe.steps_done + 1, waiting_for=waiting)
