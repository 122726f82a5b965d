"""A process that is killed while it saves leaves the last good checkpoint or the new one, never half of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoint.runs import Rank, Setup, over_ranks

from penstock.checkpoint import latest, read_manifest, read_tensors
from penstock.errors import CheckpointError

COUNT = 26
"""More than a save has calls that change the disk, so that the last ones of these processes are not killed."""


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch")
def test_sigkill_at_any_point_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    script = Path(__file__).parent / "killed.py"
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    words = [sys.executable, str(script), str(tmp_path), str(COUNT)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    killed = [int(line) for line in ended.stdout.split()]
    assert len(killed) >= 12, "the points between the first and the last call"
    assert killed != list(range(COUNT)), "some have come to the end"
    found = {}
    for number in range(COUNT):
        path = latest(tmp_path / str(number))
        assert path is not None, number
        tensors = read_tensors(path, [name for name in read_manifest(path).tensors() if name.startswith("model/")])
        assert len(tensors) == 4
        values = {value for tensor in tensors.values() for value in tensor.flatten().tolist()}
        found[number] = (path.name, values)
        assert found[number] in (("step-00000001", {1.0}), ("step-00000002", {2.0})), number
    assert found[0] == ("step-00000001", {1.0})
    assert found[killed[-1]] == ("step-00000002", {2.0}), "killed while it deleted the first"
    steps = [found[number][0] for number in killed]
    assert steps == sorted(steps), "there is one point at which the new one begins to exist"


SETUP = Setup(2, "gpipe")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path: Path = over_ranks(SETUP, lambda rank: rank.save(tmp_path))[0]
    return path


@pytest.mark.parametrize("harm", ["bit", "torn", "missing", "swapped"])
def test_a_damaged_file_is_named_on_every_rank_and_nothing_is_loaded(harm: str, saved: Path) -> None:
    file, other = saved / "rank-1.safetensors", saved / "rank-0.safetensors"
    content = file.read_bytes()
    manifest = read_manifest(saved)
    if harm == "bit":
        file.write_bytes(content[:-500] + bytes([content[-500] ^ 4]) + content[-499:])
    elif harm == "torn":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "missing":
        file.unlink()
    else:
        assert manifest.files[0].bytes == manifest.files[1].bytes
        file.write_bytes(other.read_bytes())

    def load(rank: Rank) -> tuple[str, bool]:
        before = {name: value.clone() for name, value in rank.pipe.state_dict().items()}
        with pytest.raises(CheckpointError) as caught:
            rank.load(saved)
        same = all(value.equal(before[name]) for name, value in rank.pipe.state_dict().items())
        return str(caught.value), same

    told = over_ranks(SETUP, load, seed=2)
    assert told[0] == told[1]
    assert told[0][0].startswith(str(file))
    assert told[0][1]


def test_nothing_of_a_checkpoint_is_unpickled(saved: Path) -> None:
    import pickle

    for path in saved.iterdir():
        with pytest.raises(Exception, match=r"."), path.open("rb") as file:
            pickle.load(file)
    sources = Path(__file__).parents[2] / "src" / "penstock" / "checkpoint"
    for source in sources.rglob("*.py"):
        text = source.read_text()
        assert "import pickle" not in text
        assert "torch.load(" not in text


def test_a_checkpoint_of_version_1_loads(saved: Path) -> None:
    """It has one checksum a file, and neither layout nor settings of optimizers."""
    import hashlib
    import json

    file = saved / "manifest.json"
    manifest = json.loads(file.read_text())
    for each in manifest["files"]:
        del each["header_bytes"]
        each["sha256"] = hashlib.sha256((saved / each["name"]).read_bytes()).hexdigest()
        for entry in each["tensors"].values():
            del entry["sha256"]
    later = ("layout", "steps_done", "aliases", "optimizers", "config", "checksum")
    manifest = {key: value for key, value in manifest.items() if key not in later} | {"version": 1, "step": 4}
    file.write_text(json.dumps(manifest))

    def load(rank: Rank) -> tuple[int, float]:
        step = rank.load(saved).step
        return step, rank.train(range(1))[0]

    expected = over_ranks(SETUP, lambda rank: rank.train(range(1))[0])[0]
    assert over_ranks(SETUP, load, seed=2) == [(4, expected)] * 2
    content = bytearray((saved / "rank-1.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "rank-1.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank-1\.safetensors has changed since it was saved: it has SHA-256"):
        over_ranks(SETUP, load, seed=2)


def test_a_path_that_is_not_one_checkpoint_is_told_from_one_that_is(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="path is None; latest"):
        over_ranks(SETUP, lambda rank: rank.load(latest(saved / "nowhere")))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"load one of them, e.g. {saved}"):
        over_ranks(SETUP, lambda rank: rank.load(saved.parent))
    with pytest.raises(CheckpointError, match="does not exist; check the path"):
        over_ranks(SETUP, lambda rank: rank.load(saved / "no"))
