"""Saves a checkpoint over all ranks: all of it or none, and the same outcome on every rank.

    1  rank 0    clears left-overs, makes the directory, picks unused file names
    2  each      writes and syncs its shard
    3  rank 0    writes the manifest by renaming, then deletes what is superseded

After each of the three all ranks exchange how it went, failures included, so that none waits for one that
has failed. Until the renaming in 3 the earlier checkpoints are all there is, and they are not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from penstock.checkpoint.directory import (
    next_generation,
    prune,
    remove_shards,
    shard_name,
    step_directory,
    sweep,
)
from penstock.checkpoint.manifest import (
    Manifest,
    ShardFile,
    check_sizes,
    model_signature,
    sync_directory,
    write_manifest,
)
from penstock.checkpoint.shard import Shard, write_shard
from penstock.errors import CheckpointError

Exchange = Callable[[bytes], list[bytes]]
"""An all-gather: takes this rank's bytes, returns every rank's, by rank."""


class _Report(msgspec.Struct, frozen=True):
    """How one phase went on one rank."""

    error: str = ""
    generation: int = 0
    plan: str = ""
    file: ShardFile | None = None


def save(
    root: Path, shard: Shard, *, step: int, rank: int, exchange: Exchange, keep: int, extra: dict[str, Any]
) -> Path:
    """Returns the directory of the checkpoint that all ranks have saved together.

    Args:
        root: Directory that holds the run's checkpoints, on a file system that all ranks share.
        shard: This rank's tensors; a name may occur on one rank only.
        keep: Newest checkpoints that stay, this one included; older ones are deleted.
        extra: Plain JSON values to keep in the manifest; rank 0's are written.

    Raises:
        CheckpointError: Any rank failed; the same message on every rank. Nothing was saved or deleted.
    """
    if keep < 1:
        raise CheckpointError(f"keep={keep} would delete every checkpoint; keep at least 1")
    directory = step_directory(root, step)
    agree = partial(_agree, exchange, step)
    prepared = agree(_attempt(rank, partial(_prepare, root, directory)) if rank == 0 else _Report())
    own_file = directory / shard_name(rank, prepared[0].generation)
    try:
        written = agree(_attempt(rank, partial(_write, own_file, shard)))
    except CheckpointError:
        with contextlib.suppress(OSError):
            own_file.unlink(missing_ok=True)
        raise
    commit = partial(_commit, directory, written, step=step, extra=extra)
    agree(_attempt(rank, commit) if rank == 0 else _Report())
    if rank == 0:
        # The checkpoint is safe by now: what cannot be deleted is left to the next save.
        with contextlib.suppress(OSError):
            remove_shards(directory, keep=[report.file.name for report in written if report.file])
            prune(root, keep=keep, saved=directory)
    return directory


def _prepare(root: Path, directory: Path) -> _Report:
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    directory.mkdir(exist_ok=True)
    sync_directory(root)
    return _Report(generation=next_generation(directory))


def _write(path: Path, shard: Shard) -> _Report:
    if not path.parent.is_dir():
        raise CheckpointError(f"does not see {path.parent}, which rank 0 made; use a file system that all hosts share")
    return _Report(file=write_shard(path, shard.tensors), plan=shard.plan)


def _commit(directory: Path, reports: list[_Report], *, step: int, extra: dict[str, Any]) -> _Report:
    files = tuple(report.file for report in reports if report.file)
    _check_once(files)
    check_sizes(directory, files)
    manifest = Manifest(step=step, model="", plan=reports[0].plan, files=files, extra=extra)
    write_manifest(directory, msgspec.structs.replace(manifest, model=model_signature(manifest.tensors())))
    return _Report()


def _check_once(files: tuple[ShardFile, ...]) -> None:
    holders: dict[str, str] = {}
    for file in files:
        for name in file.tensors:
            if name in holders:
                raise CheckpointError(f'"{name}" is in {holders[name]} and in {file.name}; save it on one rank only')
            holders[name] = file.name


def _attempt(rank: int, work: Callable[[], _Report]) -> _Report:
    """Returns the report of the work or of its failure: no exception may keep a rank from the exchange."""
    try:
        return work()
    except CheckpointError as error:
        return _Report(error=f"rank {rank}: {error}")
    except OSError as error:
        return _Report(error=f"rank {rank}: cannot write {error.filename}: {error.strerror}")
    except Exception as error:
        return _Report(error=f"rank {rank}: {type(error).__name__}: {error}")


def _agree(exchange: Exchange, step: int, report: _Report) -> list[_Report]:
    """Returns every rank's report, by rank; raises the same error on all of them where one failed."""
    reports = [msgspec.json.decode(content, type=_Report) for content in exchange(msgspec.json.encode(report))]
    errors = [report.error for report in reports if report.error]
    if errors:
        raise CheckpointError(
            f"the checkpoint of step {step} was not saved: {'; '.join(errors)}. "
            "Earlier checkpoints are intact; make room or choose another output directory, then save again"
        )
    return reports
