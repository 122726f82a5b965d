"""Tensors are read by name, from files that are what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.checkpoint.ranks import alone, run_ranks, save

from penstock.checkpoint import Shard, read_manifest
from penstock.checkpoint import read_tensors as load
from penstock.checkpoint.read import check_fits, names_for
from penstock.errors import CheckpointError

TENSORS = {
    "model/a.weight": torch.arange(6.0).view(2, 3),
    "optimizer/exp_avg/a.weight": torch.ones(2, 3),
    "optimizer/step/a.weight": torch.tensor(4.0),
    "optimizer_number/count/a.weight": torch.tensor(4),
    "model/b.weight": torch.zeros(4, dtype=torch.float64),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path, Shard(TENSORS), step=7, rank=0, exchange=alone, keep=1, extra={})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_named_and_never_loaded(saved: Path, data: st.DataObject) -> None:
    file = saved / "rank-0.safetensors"
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = content[place] ^ (1 << data.draw(st.integers(0, 7)))
    try:
        file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"rank-0\.safetensors has changed since it was saved"):
            load(saved, TENSORS)
    finally:
        file.write_bytes(content)


def test_missing_names_are_listed_with_a_near_miss(saved: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(saved, ["model/a.weight", "model/a.wegiht", "model/c.weight"])
    assert 'lacks 2 of 3 tensors: "model/a.wegiht", "model/c.weight"' in str(caught.value)
    assert 'Did you mean "model/a.weight"?' in str(caught.value)


def test_loaded_tensors_outlive_their_files(saved: Path) -> None:
    loaded = load(saved, ["model/a.weight"])["model/a.weight"]
    (saved / "rank-0.safetensors").write_bytes(b"")
    assert torch.equal(loaded, TENSORS["model/a.weight"])
    loaded.add_(1)


def test_only_files_that_hold_a_wanted_tensor_are_verified(tmp_path: Path) -> None:
    def work(rank: int, exchange: object) -> Path:
        shard = Shard({f"model/{rank}": torch.full((3,), float(rank))})
        return save(tmp_path, shard, step=1, rank=rank, exchange=exchange, keep=1, extra={})  # type: ignore[arg-type]

    path = run_ranks(2, work)[0]
    assert isinstance(path, Path)
    other = path / "rank-1.safetensors"
    other.write_bytes(bytes(other.stat().st_size))
    assert load(path, ["model/0"])["model/0"].tolist() == [0, 0, 0]
    with pytest.raises(CheckpointError, match=r"rank-1\.safetensors has changed"):
        load(path, ["model/1"])


def test_the_names_of_a_parameter_are_its_value_and_its_optimizer_states(saved: Path) -> None:
    manifest = read_manifest(saved)
    assert set(names_for(manifest, ["a.weight"])) == {name for name in TENSORS if name.endswith("a.weight")}
    assert names_for(manifest, ["weight"]) == []


def test_a_model_of_another_size_or_type_is_refused_with_both(saved: Path) -> None:
    manifest = read_manifest(saved)
    check_fits(saved, manifest, expected={name: TENSORS[name] for name in ("model/a.weight", "model/b.weight")})
    with pytest.raises(CheckpointError, match=r'"model/a.weight" is float32 \[2, 3\] in .* and float32 \[3, 2\]'):
        check_fits(saved, manifest, expected={"model/a.weight": torch.zeros(3, 2)})
    with pytest.raises(CheckpointError, match=r"float64 \[4\] in .* and float32 \[4\]"):
        check_fits(saved, manifest, expected={"model/b.weight": torch.zeros(4)})
