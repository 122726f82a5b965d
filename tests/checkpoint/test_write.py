"""A checkpoint is saved by all ranks or by none, and replaces nothing before it is complete."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.ranks import alone, run_ranks, save
from torch import Tensor

from penstock.checkpoint import Exchange, Shard, latest, read_manifest
from penstock.checkpoint import read_tensors as load
from penstock.errors import CheckpointError


def tensors_of(rank: int, step: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {
        f"model/block_{rank}.weight": torch.randn(7, 5, generator=generator),
        f"optimizer/exp_avg/block_{rank}.weight": torch.randn(7, 5, generator=generator),
    }


def save_alone(root: Path, tensors: dict[str, Tensor], *, step: int = 1, keep: int = 2, **extra: Any) -> Path:
    return save(root, Shard(tensors), step=step, rank=0, exchange=alone, keep=keep, extra=extra)


def save_over(count: int, root: Path, *, step: int = 1, keep: int = 2) -> list[Path | Exception]:
    def work(rank: int, exchange: Exchange) -> Path:
        shard = Shard(tensors_of(rank, step), plan="plan-hash")
        return save(root, shard, step=step, rank=rank, exchange=exchange, keep=keep, extra={"rank": rank})

    return run_ranks(count, work)


def bits(tensor: Tensor) -> list[int]:
    flat = tensor.contiguous().flatten()
    return flat.view(torch.uint8).tolist()


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "model/float": torch.tensor([0.1, -0.0, float("nan"), float("inf"), 1e-45]),
        "model/double": torch.randn(3, 4, dtype=torch.float64),
        "model/bfloat": torch.randn(9).bfloat16(),
        "model/flags": torch.tensor([True, False]),
        "model/count": torch.tensor(2**40),
        "model/empty": torch.empty(0, 3),
        "model/strided": torch.arange(12.0).view(3, 4).T,
    }
    path = save_alone(tmp_path, tensors)
    loaded = load(path, tensors)
    assert list(loaded) == list(tensors)
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].shape == value.shape
        assert bits(loaded[name]) == bits(value)


def test_tensors_that_share_memory_are_saved_each_for_itself(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    path = save_alone(tmp_path, {"model/head": base[:4], "model/tail": base[4:], "model/all": base})
    loaded = load(path, ["model/head", "model/all"])
    assert loaded["model/head"].tolist() == [0, 1, 2, 3]
    assert torch.equal(loaded["model/all"], base)


def test_every_rank_returns_the_same_directory_and_the_manifest_tells_all(tmp_path: Path) -> None:
    paths = save_over(3, tmp_path, step=300)
    assert paths == [tmp_path / "step-00000300"] * 3
    manifest = read_manifest(tmp_path / "step-00000300")
    assert (manifest.step, manifest.plan, manifest.extra) == (300, "plan-hash", {"rank": 0})
    assert [file.name for file in manifest.files] == [f"rank-{rank}.safetensors" for rank in range(3)]
    assert manifest.tensors()["model/block_2.weight"].shape == (7, 5)


@pytest.mark.parametrize(("saved_by", "opened_by"), [(1, 2), (2, 1), (4, 2), (2, 4)])
def test_a_checkpoint_opens_with_another_number_of_ranks(tmp_path: Path, saved_by: int, opened_by: int) -> None:
    everything = {name: value for rank in range(4) for name, value in tensors_of(rank).items()}
    names = sorted(everything)

    def write(rank: int, exchange: Exchange) -> Path:
        mine = {name: everything[name] for name in names[rank::saved_by]}
        return save(tmp_path, Shard(mine), step=1, rank=rank, exchange=exchange, keep=1, extra={})

    path = run_ranks(saved_by, write)[0]
    assert isinstance(path, Path)
    for parts in run_ranks(opened_by, lambda rank, _: load(path, names[rank::opened_by])):
        assert isinstance(parts, dict)
        assert all(torch.equal(value, everything[name]) for name, value in parts.items())


def test_the_model_signature_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    whole = {name: value for rank in range(2) for name, value in tensors_of(rank).items()}
    alone_path = save_alone(tmp_path / "alone", whole)
    together = save_over(2, tmp_path / "together")[0]
    assert isinstance(together, Path)
    assert read_manifest(alone_path).model == read_manifest(together).model
    other = save_alone(tmp_path / "other", {"model/block_0.weight": torch.zeros(1)})
    assert read_manifest(other).model != read_manifest(alone_path).model


def test_the_last_k_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save_over(2, tmp_path, step=step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    assert latest(tmp_path) == tmp_path / "step-00000010"


def test_a_save_never_deletes_itself_however_many_later_steps_exist(tmp_path: Path) -> None:
    for step in (5, 6, 7, 2):
        save_over(1, tmp_path, step=step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000007"]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep=0"):
        save_alone(tmp_path, tensors_of(0), keep=0)


def test_a_step_saved_again_replaces_the_first(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        path = save_alone(tmp_path, {"model/weight": torch.tensor(value)}, attempt=value)
        assert load(path, ["model/weight"])["model/weight"].item() == value
        assert read_manifest(path).extra == {"attempt": value}
        assert len(list(path.iterdir())) == 2


def fail_on_rank(failing: int, error: Exception) -> Callable[..., Any]:
    """Returns a `write_shard` that leaves half a file and raises on one rank."""

    def write(path: Path, tensors: dict[str, Tensor]) -> Any:
        from penstock.checkpoint.shard import write_shard

        if path.name.startswith(f"rank-{failing}."):
            path.write_bytes(b"half a fi")
            raise error
        return write_shard(path, tensors)

    return write


@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_on_one_rank_is_the_same_error_on_all_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    save_over(3, tmp_path, step=1, keep=1)
    before = content(tmp_path)
    full = OSError(28, "No space left on device", "rank-2.safetensors")
    monkeypatch.setattr("penstock.checkpoint.write.write_shard", fail_on_rank(2, full))

    errors = save_over(3, tmp_path, step=step, keep=1)

    assert {type(error) for error in errors} == {CheckpointError}
    assert len({str(error) for error in errors}) == 1
    assert "rank 2: cannot write rank-2.safetensors: No space left on device" in str(errors[0])
    assert content(tmp_path) == before
    monkeypatch.undo()
    assert save_over(3, tmp_path, step=step, keep=1) == [tmp_path / f"step-{step:08d}"] * 3


def test_a_disk_that_fills_up_names_the_file(tmp_path: Path) -> None:
    script = f"""
import pathlib, resource, signal, torch
from penstock.checkpoint import Label, Shard, write_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
shard = Shard({{"model/weight": torch.zeros(100_000)}})
write_checkpoint(pathlib.Path({str(tmp_path)!r}), shard, Label(1), rank=0, exchange=lambda b: [b])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"rank 0: cannot write {tmp_path / 'step-00000001' / 'rank-0.safetensors'}" in ended.stderr
    assert not content(tmp_path)


def test_an_unforeseen_error_on_one_rank_hangs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.checkpoint.write.write_shard", fail_on_rank(1, ZeroDivisionError("oh")))
    errors = save_over(2, tmp_path)
    assert all("rank 1: ZeroDivisionError: oh" in str(error) for error in errors)


def test_an_unwritable_root_is_the_same_error_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the place of a directory")
    errors = save_over(2, tmp_path / "runs")
    assert all(f"rank 0: cannot write {tmp_path / 'runs'}" in str(error) for error in errors)


def test_extra_that_is_not_json_is_an_error_and_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rank 0: TypeError"):
        save_alone(tmp_path, tensors_of(0), config=threading.Lock())
    assert latest(tmp_path) is None


def test_a_name_on_two_ranks_is_refused_with_both_files(tmp_path: Path) -> None:
    def work(rank: int, exchange: Exchange) -> Path:
        return save(tmp_path, Shard(tensors_of(0)), step=1, rank=rank, exchange=exchange, keep=1, extra={})

    for error in run_ranks(2, work):
        assert "is in rank-0.safetensors and in rank-1.safetensors" in str(error)


def test_a_crash_before_the_manifest_leaves_the_previous_checkpoint_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = save_alone(tmp_path, tensors_of(0), step=1)
    before = content(previous)

    def power_cut(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.checkpoint.write.write_manifest", power_cut)
    with pytest.raises(KeyboardInterrupt):
        save_alone(tmp_path, tensors_of(0), step=2)
    monkeypatch.undo()

    assert (tmp_path / "step-00000002" / "rank-0.safetensors").exists()
    assert latest(tmp_path) == previous
    assert content(previous) == before
    save_alone(tmp_path, tensors_of(0), step=3)
    assert not (tmp_path / "step-00000002").exists()


def test_a_crash_before_the_renaming_leaves_the_previous_checkpoint_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = save_alone(tmp_path, {"model/weight": torch.tensor(1.0)}, step=1)

    def power_cut(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.checkpoint.manifest.os.replace", power_cut)
    for step in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            save_alone(tmp_path, {"model/weight": torch.tensor(2.0)}, step=step)
    monkeypatch.undo()

    assert latest(tmp_path) == previous
    assert load(previous, ["model/weight"])["model/weight"].item() == 1.0
    save_alone(tmp_path, {"model/weight": torch.tensor(3.0)}, step=1)
    assert load(previous, ["model/weight"])["model/weight"].item() == 3.0
    assert len(list(previous.iterdir())) == 2


def test_what_others_put_beside_the_checkpoints_stays(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "notes.txt").write_text("mine")
    (tmp_path / "step-5").mkdir()
    for step in (2, 3, 4):
        save_alone(tmp_path, tensors_of(0), step=step, keep=1)
    assert (tmp_path / "step-00000001" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "step-5").is_dir()


def test_the_manifest_is_readable_json(tmp_path: Path) -> None:
    manifest = json.loads((save_alone(tmp_path, tensors_of(0), seed=3) / "manifest.json").read_text())
    assert manifest["format"] == "penstock-checkpoint"
    assert manifest["extra"] == {"seed": 3}
