"""A checkpoint of data-parallel replicas is one checkpoint, and opens in any number of replicas."""

from pathlib import Path

from tests.distributed.jobs import Job, run_jobs


def test_two_replicas_of_two_ranks_go_on_as_four_ranks_and_as_four_replicas(tmp_path: Path):
    ranks = run_jobs(tmp_path, {"checkpoints": Job("checkpoints.py", (str(tmp_path / "saved"),), 4)})["checkpoints"]
    for rank in ranks:
        assert rank.code == 0, rank.errors
        same, *others, refused = rank.lines
        assert same["same"], "bit for bit in the same layout"
        assert [each["shape"] for each in others] == [[1, 4], [4, 1]]
        assert all(each["worst"] < 1e-12 for each in others), "replicas add up in another order"
        assert all(each["files"] == 4 for each in (same, *others))
        assert refused == ranks[0].lines[-1]
        assert "rank-1.safetensors has 0 bytes" in refused["refused"]
