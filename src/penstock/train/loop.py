"""The training loop, as any user of a Pipeline would write it."""

from __future__ import annotations

import math
import time
from collections import deque
from functools import partial
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from penstock.ir.steps import SYNCHRONOUS
from penstock.runtime import Pipeline
from penstock.runtime.shared_weights.replicas import replicas_of
from penstock.train.agreement import check_alike
from penstock.train.config import VOCABULARY, Config
from penstock.train.data import Batch, Corpus, batch, held_out_batches, unigram_entropy
from penstock.train.generate import generate_symbols, readable
from penstock.train.gpt import lm_loss
from penstock.train.inside import follow_curve, notes, run_batches, stage_optimizer
from penstock.train.journal import LOSSES_FILE, Journal, StepFigures
from penstock.train.model import model_digest, model_of, seed_of, tokenizer_of
from penstock.train.optimizers import build_optimizer, learning_rate, set_learning_rate
from penstock.train.places import place_noted, position
from penstock.train.planned import asynchronous_schedule, recompute_of, schedule_of
from penstock.train.prediction import prediction_text
from penstock.train.preflight import check_everything
from penstock.train.processes import Worker
from penstock.train.report import write_report
from penstock.train.resume import changes_of_curve, resume_path
from penstock.train.state import resume_state, save_state, saver_of

_TRACED_STEPS = 20
_PREDICTED_STEPS = 10
_PROMPT_BYTES = 16


def train(config: Config, me: Worker) -> None:
    """Trains on this rank what `config` says; every rank runs the same lines.

    Raises:
        UserError: something that does not fit, told alike on every rank.
    """
    corpus = check_everything(config, local_ranks=me.local_world_size)
    resume = resume_path(config)
    pipe = _pipeline(config, me)
    me.report_position(lambda: position(pipe))
    check_alike(pipe, config, data_digest=corpus.digest, model_digest=model_digest(config))
    asynchronous = pipe.schedule.weight_rule not in SYNCHRONOUS
    optimizer = None if asynchronous else build_optimizer(config.optimizer, pipe.parameters())
    first_step = resume_state(resume, pipe, optimizer) if resume else 0
    begin = time.perf_counter()
    with Journal(config, first_step=first_step, active=me.rank == 0, unit=corpus.unit) as journal:
        journal.say(pipe.summary())
        if config.pipeline.replicas > 1:
            journal.say(f"{config.pipeline.replicas} copies of it share each batch of {config.run.batch_size}")
        if resume:
            journal.say(f"resumed {resume} at step {first_step}")
            for change in changes_of_curve(config, resume):
                journal.say(f"note: {change}; the curve does not go on as it would have")
        for note in notes(config, pipe.schedule) if asynchronous else ():
            journal.say(f"note: {note}")
        try:
            if optimizer is None:
                follow_curve(config, pipe)
                measured = partial(evaluate, config, corpus, pipe)
                share = partial(_share, pipe)
                checkpoint, loss = run_batches(config, corpus, pipe, journal=journal, evaluate=measured, share=share)
            else:
                checkpoint, loss = _steps(config, corpus, pipe, optimizer, journal=journal)
        except Exception as error:
            place = place_noted(error, pipe) or position(pipe)
            me.report_position(lambda: place)
            raise
    seconds = time.perf_counter() - begin
    _report(config, pipe, journal, checkpoint=checkpoint)
    _export(config, pipe, journal)
    journal.say(
        f"held-out loss {loss:.3f} nats per {corpus.unit} ({loss / math.log(2):.2f} bits); "
        f"{corpus.unit} unigram entropy {unigram_entropy(corpus):.3f}; trained in {seconds:.0f} s"
    )
    _show_sample(config, corpus, pipe, journal)
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
    return Pipeline(
        model_of(config),
        lm_loss,
        mesh=_mesh(config),
        schedule=schedule_of(config.pipeline),
        num_microbatches=config.pipeline.microbatches,
        recompute=recompute_of(config),
        partition=config.pipeline.partition or None,
        device=device,
        seed=seed_of(config),
        optimizer=None if asynchronous_schedule(config) is None else stage_optimizer(config),
        discrepancy_decay=config.optimizer.discrepancy_decay or None,
    )


def _mesh(config: Config) -> DeviceMesh | None:
    """Returns the processes by copy of the pipeline and rank in it; None where there is one copy."""
    layout = config.pipeline
    if layout.replicas == 1:
        return None
    axes = {"dp_replicate": layout.replicas, "pp": layout.ranks}
    names = tuple(axes) if layout.outermost == "data" else tuple(reversed(axes))
    return init_device_mesh(config.run.device, tuple(axes[name] for name in names), mesh_dim_names=names)


def _share(pipe: Pipeline, whole: Batch) -> Batch:
    """Returns the part of a batch that this copy of the pipeline takes."""
    replicas = replicas_of(pipe)
    if replicas is None:
        return whole
    inputs, targets = (part.chunk(replicas.size)[replicas.index] for part in whole)
    return inputs, targets


def _steps(
    config: Config, corpus: Corpus, pipe: Pipeline, optimizer: torch.optim.Optimizer, *, journal: Journal
) -> tuple[Path | None, float]:
    """Runs the steps that are left, at least one; returns the last checkpoint and the last held-out loss."""
    checkpoint, held_out = None, float("nan")
    tokens = config.run.batch_size * config.model.context
    taken: deque[float] = deque(maxlen=_PREDICTED_STEPS)
    saver = saver_of(pipe, config)
    first = pipe.steps_done
    for step in range(first, config.run.steps):
        begin = time.perf_counter()
        whole = batch(
            corpus,
            step=step,
            batch_size=config.run.batch_size,
            context=config.model.context,
            seed=config.run.seed,
        )
        inputs, targets = _share(pipe, whole)
        called = time.perf_counter()
        loss = pipe.step(inputs, targets)
        taken.append(time.perf_counter() - called)
        norm = pipe.clip_grad_norm_(config.optimizer.clip_norm or float("inf"))
        rate = learning_rate(config.optimizer, step=step, steps=config.run.steps)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - begin
        done = step + 1
        journal.step(StepFigures(done, loss.item(), norm.item(), rate, tokens / seconds))
        if done - first == config.log.predict_after and not config.model.hf:
            journal.say(prediction_text(config, pipe, taken))
        if _due(done, config.evaluate.every, config.run.steps):
            held_out = evaluate(config, corpus, pipe)
            journal.held_out(done, held_out)
        if _due(done, config.checkpoint.every, config.run.steps):
            checkpoint = save_state(saver, optimizer, config=config, step=done, data_digest=corpus.digest)
    saver.wait()
    return checkpoint, held_out


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _report(config: Config, pipe: Pipeline, journal: Journal, *, checkpoint: Path | None) -> None:
    """Prints where the time went and what was written. Every rank calls it."""
    timelines = pipe.trace(_TRACED_STEPS)
    if not journal.active:
        return
    output = Path(config.run.output)
    places = {"checkpoint": checkpoint}
    if timelines:
        table, written = write_report(pipe.plan.proof.program, timelines, output)
        journal.say(table)
        places |= {"trace for Perfetto": written.trace, "picture": written.picture, "timelines": written.timelines}
    else:
        journal.say("no timeline: too few batches followed one another for all ranks to be at work at once")
    places |= {"losses": output / LOSSES_FILE}
    journal.say("\n".join(f"{name + ':':20}{path}" for name, path in places.items()))


def _export(config: Config, pipe: Pipeline, journal: Journal) -> None:
    """Writes a Hugging Face model as a directory of that form. Every rank calls it."""
    if not config.model.hf:
        return
    directory = Path(config.run.output) / f"model-{config.run.steps:08d}"
    origin = Path(config.model.hf).expanduser()
    pipe.save_pretrained(directory, tokenizer=origin if origin.is_dir() else None)
    journal.say(f"{'Hugging Face model:':20}{directory}")


def _show_sample(config: Config, corpus: Corpus, pipe: Pipeline, journal: Journal) -> None:
    """Prints how the model goes on from the first bytes of the held-out text. Every rank calls it."""
    if not config.log.sample_bytes:
        return
    tokenizer = tokenizer_of(config)
    sample = generate_symbols(
        pipe,
        corpus.held_out[:_PROMPT_BYTES].tolist(),
        count=config.log.sample_bytes,
        context=config.model.context,
        seed=config.run.seed,
        vocabulary=VOCABULARY if tokenizer is None else None,
    )
    text = bytes(sample) if tokenizer is None else tokenizer.decode(sample).encode()
    journal.say("sample:\n" + readable(text))
