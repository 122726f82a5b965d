"""Saves a checkpoint over all ranks: all of it or none, and the same outcome on every rank.

    1  rank 0    clears left-overs, makes the directory, picks unused file names
    2  each      writes and syncs its shard
    3  rank 0    writes the manifest by renaming, then deletes what is superseded

After each of the three all ranks exchange how it went, failures included, so that none waits for one that
has failed. Until the renaming in 3 the earlier checkpoints are all there is, and they are not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from penstock.checkpoint.directory import (
    next_generation,
    prune,
    remove_shards,
    report_name,
    shard_name,
    step_directory,
    sweep,
)
from penstock.checkpoint.manifest import (
    Layout,
    Manifest,
    OptimizerRecord,
    ShardFile,
    check_sizes,
    model_signature,
    read_manifest,
    sync_directory,
    write_manifest,
)
from penstock.checkpoint.shard import Shard, write_shard
from penstock.errors import CheckpointError
from penstock.runtime.transport.protocol import Exchange


class Label(msgspec.Struct, frozen=True):
    """What a checkpoint says beside its tensors.

    Attributes:
        step: its number; it names the directory.
        extra: plain JSON values of the caller.
        layout: of the pipeline that saves.
        steps_done: by that pipeline.
        config: of a Hugging Face model, as config.json has it.
    """

    step: int
    extra: dict[str, Any] = {}
    layout: Layout | None = None
    steps_done: int | None = None
    config: dict[str, Any] | None = None


class Report(msgspec.Struct, frozen=True):
    """How one phase went on one rank."""

    error: str = ""
    generation: int = 0
    plan: str = ""
    file: ShardFile | None = None
    aliases: dict[str, str] = {}
    optimizers: tuple[OptimizerRecord, ...] = ()


REPORTS = msgspec.json.Decoder(Report)
"""Made once: two threads that are the first to decode a type, as ranks over loopback may be, crash in msgspec 0.22."""


def write_checkpoint(
    root: Path, shard: Shard, label: Label, *, rank: int, exchange: Exchange, keep: int | None = None
) -> Path:
    """Returns the directory of the checkpoint that all ranks have saved together.

    Args:
        root: Directory that holds the run's checkpoints, on a file system that all ranks share.
        shard: This rank's tensors; a name may occur on one rank only.
        label: Rank 0's is written.
        rank: This rank.
        exchange: All ranks' bytes.
        keep: Newest checkpoints that stay, this one included; older ones are deleted. None keeps all.

    Raises:
        CheckpointError: Any rank failed; the same message on every rank. Nothing was saved or deleted.
    """
    check_keep(keep)
    file = prepare(root, label.step, rank=rank, exchange=exchange)
    written = attempt(rank, partial(write_own, file, shard))
    finish(file, written, label, rank=rank, exchange=exchange)
    if rank == 0:
        clear(root, file.parent, keep=keep)
    return file.parent


def check_keep(keep: int | None) -> None:
    """Raises CheckpointError for a number of checkpoints that would be none."""
    if keep is not None and keep < 1:
        raise CheckpointError(f"keep={keep} would delete every checkpoint; keep at least 1")


def prepare(root: Path, step: int, *, rank: int, exchange: Exchange, error: str = "") -> Path:
    """Returns where this rank writes, the directory made by rank 0. Every rank calls it.

    Args:
        root: as for `write_checkpoint`.
        step: likewise.
        rank: likewise.
        exchange: likewise.
        error: why this rank has nothing to write; all ranks raise it.
    """
    directory = step_directory(root, step)
    own = Report(error=error)
    if rank == 0 and not error:
        own = attempt(rank, partial(_prepare, root, directory))
    return directory / shard_name(rank, agree(exchange, step, own)[0].generation)


def write_own(file: Path, shard: Shard) -> Report:
    """Returns the report of a shard that lies in `file`, synced."""
    if not file.parent.is_dir():
        raise CheckpointError(f"does not see {file.parent}, which rank 0 made; use a file system that all hosts share")
    return Report(
        file=write_shard(file, shard.tensors),
        plan=shard.plan,
        aliases=dict(shard.aliases),
        optimizers=shard.optimizers,
    )


def finish(
    file: Path,
    written: Report,
    label: Label,
    *,
    rank: int,
    exchange: Exchange,
    committed: Report | None = None,
) -> None:
    """Commits what all ranks have written to `file` and its like. Every rank calls it.

    Args:
        file: of this rank.
        written: how it went here.
        label: as for `write_checkpoint`.
        rank: likewise.
        exchange: likewise.
        committed: how rank 0 has fared with the manifest, where it has written it already.

    Raises:
        CheckpointError: Any rank failed; the same message on every rank.
    """
    try:
        reports = agree(exchange, label.step, written)
    except CheckpointError:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            (file.parent / report_name(file.name)).unlink(missing_ok=True)
        raise
    own = committed or Report()
    if rank == 0 and committed is None:
        own = attempt(rank, partial(commit, file.parent, reports, label))
    agree(exchange, label.step, own)


def commit(directory: Path, reports: Sequence[Report], label: Label) -> Report:
    """Writes the manifest: from here on the checkpoint exists."""
    files = tuple(report.file for report in reports if report.file)
    _check_once(files)
    check_sizes(directory, files)
    manifest = Manifest(
        step=label.step,
        model="",
        plan=reports[0].plan,
        files=files,
        extra=label.extra,
        layout=label.layout,
        steps_done=label.steps_done,
        config=label.config,
        aliases={name: stored for report in reports for name, stored in report.aliases.items()},
        optimizers=tuple(record for report in reports for record in report.optimizers),
    )
    write_manifest(directory, msgspec.structs.replace(manifest, model=model_signature(manifest.tensors())))
    return Report()


def clear(root: Path, directory: Path, *, keep: int | None) -> None:
    """Deletes what a committed checkpoint supersedes; what cannot be deleted is left to the next save."""
    with contextlib.suppress(OSError, CheckpointError):
        remove_shards(directory, keep=[file.name for file in read_manifest(directory).files])
        if keep is not None:
            prune(root, keep=keep, saved=directory)


def attempt(rank: int, work: Callable[[], Report]) -> Report:
    """Returns the report of the work or of its failure: no exception may keep a rank from the exchange."""
    try:
        return work()
    except CheckpointError as error:
        return Report(error=f"rank {rank}: {error}")
    except OSError as error:
        return Report(error=f"rank {rank}: cannot write {error.filename}: {error.strerror}")
    except Exception as error:
        return Report(error=f"rank {rank}: {type(error).__name__}: {error}")


def agree(exchange: Exchange, step: int, report: Report) -> list[Report]:
    """Returns every rank's report, by rank; raises the same error on all of them where one failed."""
    reports = [REPORTS.decode(content) for content in exchange(msgspec.json.encode(report))]
    errors = [report.error for report in reports if report.error]
    if errors:
        raise CheckpointError(
            f"the checkpoint of step {step} was not saved: {'; '.join(errors)}. "
            "Earlier checkpoints are intact; make room or choose another output directory, then save again"
        )
    return reports


def _prepare(root: Path, directory: Path) -> Report:
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    directory.mkdir(exist_ok=True)
    sync_directory(root)
    return Report(generation=next_generation(directory))


def _check_once(files: tuple[ShardFile, ...]) -> None:
    holders: dict[str, str] = {}
    for file in files:
        for name in file.tensors:
            if name in holders:
                raise CheckpointError(f'"{name}" is in {holders[name]} and in {file.name}; save it on one rank only')
            holders[name] = file.name
