"""The checkpoint of a Pipeline in a loop of one's own: save, load, and a Saver that writes while training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
from torch.optim import Optimizer

from penstock.checkpoint.background import Writing
from penstock.checkpoint.directory import latest
from penstock.checkpoint.held import Stateful, held
from penstock.checkpoint.host_copy import HostCopy
from penstock.checkpoint.manifest import Layout, read_manifest
from penstock.checkpoint.names import buffers_elsewhere, config_of
from penstock.checkpoint.pipeline_state import Restoration, shard_of, whole_shard
from penstock.checkpoint.plain import decoded, encoded
from penstock.checkpoint.ranks import Ranks, ranks_of
from penstock.checkpoint.read import check_all_taken
from penstock.checkpoint.shard import Shard
from penstock.checkpoint.write import Label, Report, attempt, check_keep, clear, finish, prepare, write_own
from penstock.errors import CheckpointError, check_type
from penstock.runtime import Pipeline

Optimizers = Optimizer | Sequence[Optimizer] | None
Schedulers = Any | Sequence[Any] | None
"""Learning rate schedulers: objects with `state_dict`, `load_state_dict` and, where there are several, `optimizer`."""


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint says beside its tensors.

    Attributes:
        step: its number.
        extra: what was given to `save`.
    """

    step: int
    extra: dict[str, Any]


def save(  # noqa: PLR0913  # each argument is one thing that a checkpoint holds
    root: str | Path,
    pipe: Pipeline,
    *,
    optimizer: Optimizers = None,
    scheduler: Schedulers = None,
    state: Mapping[str, Stateful] | None = None,
    step: int | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> Path:
    """Returns the directory of a checkpoint that all ranks have written, under `root`. Every rank calls it.

    Args:
        root: directory that holds the run's checkpoints, on a file system that all ranks share.
        pipe: its parameters and buffers are saved, and the optimizers inside an asynchronous schedule.
        optimizer: of the loop, one or several; any whose state is tensors and numbers.
        scheduler: its learning rate scheduler; with several optimizers at most one each.
        state: other objects with `state_dict` and `load_state_dict`, by name: a data loader, a `LossScaler`.
        step: number of the checkpoint, from 0 on; None takes `pipe.steps_done`.
        extra: plain values to keep: numbers, text, tuples, lists, dicts, small tensors and arrays; rank 0's are taken.
        keep: newest checkpoints that stay, this one included; older ones are deleted. None keeps all.

    Raises:
        CheckpointError: any rank failed; the same message on every rank. Earlier checkpoints are intact.
    """
    job = _Job(root, pipe, keep)
    ranks = job.ranks()
    shard, label, problem = job.collected(_Given(optimizer, scheduler, state, step, extra))
    file = prepare(job.root, label.step, rank=ranks.rank, exchange=ranks.exchange, error=problem)
    shard = whole_shard(shard, ranks)
    written = attempt(ranks.rank, partial(write_own, file, shard))
    finish(file, written, label, rank=ranks.rank, exchange=ranks.exchange)
    if ranks.rank == 0:
        clear(job.root, file.parent, keep=keep)
    return file.parent


def load(
    path: str | Path | None,
    pipe: Pipeline,
    *,
    optimizer: Optimizers = None,
    scheduler: Schedulers = None,
    state: Mapping[str, Stateful] | None = None,
) -> Loaded:
    """Returns step and `extra` of a checkpoint, having put everything asked for in place. Every rank calls it.

    It may have been saved by another number of ranks, replicas or chunks, or under another schedule. What is not given
    is not loaded. Random generators are set where the layout is the same. `pipe.steps_done` goes on from where it was.

    Args:
        path: one checkpoint; `latest(root)` finds the newest.
        pipe: as for `save`.
        optimizer: likewise; state and the settings of parameter groups are replaced, by the parameters' names.
        scheduler: likewise.
        state: likewise.

    Raises:
        CheckpointError: it is damaged, lacks something, or is of another model, a larger one too; the same message on
            every rank, before anything is changed.
    """
    check_type("pipe", pipe, Pipeline, example="the Pipeline that is trained")
    ranks = ranks_of(pipe)
    problem, manifest, restoration = "", None, None
    try:
        own = held(pipe, optimizer=optimizer, scheduler=scheduler, state=state)
        manifest = read_manifest(_one(path))
        restoration = Restoration(_one(path), manifest, own, ranks)
    except CheckpointError as error:
        problem = str(error)
    except Exception as error:  # the other ranks must hear of it, whatever it is
        problem = f"rank {ranks.rank} cannot load {path}: {type(error).__name__}: {error}"
    reply = _Reply(problem, restoration.taken if restoration else [])
    replies = [_REPLIES.decode(each) for each in ranks.exchange(msgspec.json.encode(reply))]
    problem = next((each.problem for each in replies if each.problem), "")
    if manifest is None or restoration is None or problem:
        raise CheckpointError(problem)
    check_all_taken(_one(path), manifest, {name for each in replies for name in each.taken})
    restoration.apply()
    return Loaded(manifest.step, decoded(manifest.extra))


class _Reply(msgspec.Struct, frozen=True):
    """What a rank tells the others before anything is loaded: why it cannot, or what it takes."""

    problem: str
    taken: list[str]


_REPLIES = msgspec.json.Decoder(_Reply)  # made once, for threads: see write.py


def _one(path: str | Path | None) -> Path:
    """Returns the path of one checkpoint; refuses none, and a directory with several."""
    if path is None:
        raise CheckpointError(
            "there is no checkpoint to load, path is None; latest(root) gives None where root has none"
        )
    newest = latest(path)
    if newest is not None:
        raise CheckpointError(f"{path} holds checkpoints and is none itself; load one of them, e.g. {newest}")
    return Path(path)


class Saver:
    """Saves checkpoints of one pipeline while training goes on.

        with checkpoint.Saver("runs/mine", pipe, keep=2) as saver:
            for step, (inputs, targets) in enumerate(batches, start=1):
                pipe.step(inputs, targets)
                optimizer.step()
                optimizer.zero_grad()
                if step % 100 == 0:
                    saver.save(optimizer=optimizer)

    `save` copies the state to host memory, which it keeps for the next time, and returns; a thread writes. What goes
    wrong there is raised by the next `save` or `wait`, on every rank. Leaving the `with` block waits.

    Args:
        root: as for `save`; nothing else saves there meanwhile.
        pipe: likewise.
        keep: likewise.
        timeout_seconds: deadline of the waits for a thread that writes.
    """

    def __init__(
        self, root: str | Path, pipe: Pipeline, *, keep: int | None = None, timeout_seconds: float = 600.0
    ) -> None:
        self._job = _Job(root, pipe, keep)
        self._timeout_seconds = timeout_seconds
        self._copy = HostCopy()
        self._writing: Writing | None = None

    def save(
        self,
        *,
        optimizer: Optimizers = None,
        scheduler: Schedulers = None,
        state: Mapping[str, Stateful] | None = None,
        step: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Returns the directory where the checkpoint will be. Every rank calls it.

        Waits for the one before, if it is still being written. Arguments as for the function `save`.

        Raises:
            CheckpointError: the one before was not saved, or this one cannot be; the same message on every rank.
        """
        self.wait()
        job = self._job
        ranks = job.ranks()
        shard, label, problem = job.collected(_Given(optimizer, scheduler, state, step, extra))
        file = prepare(job.root, label.step, rank=ranks.rank, exchange=ranks.exchange, error=problem)
        shard = whole_shard(shard, ranks)
        copies, ready = self._copy.take(shard.tensors)
        self._writing = Writing(
            file,
            replace(shard, tensors=copies),
            label,
            ranks=ranks,
            keep=job.keep,
            ready=ready,
            timeout_seconds=self._timeout_seconds,
        )
        return file.parent

    def wait(self) -> None:
        """Waits until the last checkpoint is complete. Every rank calls it.

        Raises:
            CheckpointError: it was not saved; the same message on every rank.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.finish()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # else the other ranks may not come; the thread ends by itself
            self.wait()


class _Given(NamedTuple):
    """What is to be saved beside the pipeline."""

    optimizer: Optimizers
    scheduler: Schedulers
    state: Mapping[str, Stateful] | None
    step: int | None
    extra: Mapping[str, Any] | None


class _Job:
    """A pipeline and where its checkpoints go."""

    def __init__(self, root: str | Path, pipe: Pipeline, keep: int | None) -> None:
        check_type("root", root, str, Path, example='a directory, e.g. "runs/mine"')
        check_type("pipe", pipe, Pipeline, example="the Pipeline that is trained")
        check_keep(keep)
        self.root, self.keep = Path(root), keep
        self._pipe = pipe
        self._ranks: Ranks | None = None
        self._elsewhere: frozenset[str] | None = None

    def ranks(self) -> Ranks:
        """Returns all ranks that hold the pipeline, found out the first time. Every rank calls it."""
        if self._ranks is None:
            self._ranks = ranks_of(self._pipe)
        return self._ranks

    def collected(self, given: _Given) -> tuple[Shard, Label, str]:
        """Returns what this rank saves with its label, and why it cannot, where it cannot. Every rank calls it."""
        if self._elsewhere is None:
            self._elsewhere = buffers_elsewhere(self._pipe)
        elsewhere, ranks = self._elsewhere, self.ranks()
        found: list[tuple[Shard, Label]] = []

        def collect() -> Report:
            label = self._label(given.step, given.extra, layout=ranks.layout)
            own = held(self._pipe, optimizer=given.optimizer, scheduler=given.scheduler, state=given.state)
            found.append((shard_of(own, ranks, elsewhere=elsewhere), label))
            return Report()

        problem = attempt(ranks.rank, collect).error
        if found:
            return *found[0], problem
        return Shard({}), Label(given.step if isinstance(given.step, int) else self._pipe.steps_done), problem

    def _label(self, step: int | None, extra: Mapping[str, Any] | None, *, layout: Layout) -> Label:
        done = self._pipe.steps_done
        number = done if step is None else step
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise CheckpointError(f"step={number!r} is no number of a step; use a whole one from 0 on, e.g. {done}")
        kept = encoded(dict(extra or {}), where="extra")
        return Label(number, kept, layout, done, config_of(self._pipe))
