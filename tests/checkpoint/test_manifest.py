"""What is not a whole checkpoint of ours is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.ranks import alone, save

from penstock.checkpoint import Shard, latest, read_manifest
from penstock.errors import CheckpointError

EXTRA = {"rate": 0.001, "checksum": '"checksum": ""'}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    shard = Shard({"model/weight": torch.arange(100.0)})
    return save(tmp_path, shard, step=7, rank=0, exchange=alone, keep=1, extra=EXTRA)


def change(path: Path, **changes: Any) -> None:
    """Changes the manifest and leaves its checksum out, as somebody who means harm would."""
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes | {"checksum": ""}))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_manifest(path)
    return str(caught.value)


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path, saved: Path) -> None:
    assert f"{tmp_path / 'no'} does not exist" in refusal(tmp_path / "no")
    assert "is not a complete checkpoint: it has no manifest.json" in refusal(tmp_path)
    assert "is not a complete checkpoint" in refusal(saved / "rank-0.safetensors")


@pytest.mark.parametrize("keep", [0, 1, 20, -3])
def test_a_torn_manifest_is_refused(saved: Path, keep: int) -> None:
    file = saved / "manifest.json"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in refusal(saved)
    assert "damaged" in refusal(saved)


def test_every_flipped_bit_of_the_manifest_is_found(saved: Path) -> None:
    """Symptom: a run went on with another learning rate. Cause: only tensors had checksums, and JSON stayed JSON."""
    file = saved / "manifest.json"
    content = file.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert str(file) in refusal(saved)
    flipped = bytearray(content)
    for place, bit in [(len(content) - back, bit) for back in range(1, 90) for bit in range(8)]:
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        assert str(file) in refusal(saved), "in the checksum itself and around it"
        flipped[place] ^= 1 << bit


def test_a_setting_that_has_changed_is_found_though_the_manifest_is_whole(saved: Path) -> None:
    file = saved / "manifest.json"
    text = file.read_text()
    assert '"rate": 0.001' in text
    file.write_text(text.replace('"rate": 0.001', '"rate": 0.101'))
    assert f"{file} has changed since it was saved; use another checkpoint" in refusal(saved)
    file.write_text(text)
    assert read_manifest(saved).extra == {"rate": 0.001, "checksum": '"checksum": ""'}


def test_a_manifest_that_is_not_text_is_refused(saved: Path) -> None:
    (saved / "manifest.json").write_bytes(b'{"format": "\xff\xfe"}')
    assert "damaged" in refusal(saved)


def test_another_programs_manifest_is_refused(saved: Path) -> None:
    (saved / "manifest.json").write_text('{"name": "an app", "version": 3}')
    assert "not penstock's" in refusal(saved)
    (saved / "manifest.json").write_text('{"format": "other", "version": 3}')
    assert 'format "other"' in refusal(saved)


def test_a_newer_version_is_told_from_a_damaged_one(saved: Path) -> None:
    change(saved, version=3, news="unheard of")
    assert "format version 3, this penstock reads up to 2; upgrade" in refusal(saved)


@pytest.mark.parametrize("changes", [{"step": "7"}, {"files": [{"name": "x"}]}, {"unknown": 1}])
def test_a_manifest_of_another_shape_is_refused(saved: Path, changes: dict[str, Any]) -> None:
    change(saved, **changes)
    assert "is damaged" in refusal(saved)


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / "rank-0.safetensors").unlink()
    assert f"{saved / 'rank-0.safetensors'} is missing" in refusal(saved)


def test_a_truncated_file_is_named_with_both_sizes(saved: Path) -> None:
    file = saved / "rank-0.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file} has {size - 1} bytes instead of {size}" in refusal(saved)


def test_a_manifest_cannot_reach_outside_its_directory(saved: Path) -> None:
    files = json.loads((saved / "manifest.json").read_text())["files"]
    change(saved, files=[files[0] | {"name": "../secret.safetensors"}])
    assert "outside its directory" in refusal(saved)


def test_the_latest_is_the_highest_step_with_a_manifest(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "step-00000009" / "rank-0.safetensors").touch()
    assert latest(tmp_path) == saved
    assert latest(tmp_path / "nowhere") is None
    assert latest(saved) is None
