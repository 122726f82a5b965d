"""A checkpoint of data-parallel replicas is one checkpoint, and opens in any number of replicas."""

import pytest
from tests.distributed.jobs import Ended, Job, run_jobs


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    """How the four ranks of the one job ended."""
    directory = tmp_path_factory.mktemp("checkpoints")
    ended = run_jobs(directory, {"checkpoints": Job("checkpoints.py", (str(directory / "saved"),), 4)})["checkpoints"]
    for rank in ended:
        assert rank.code == 0, rank.errors
    return ended


def test_two_replicas_of_two_ranks_go_on_as_four_ranks_and_as_four_replicas(ranks: list[Ended]):
    for rank in ranks:
        same, *others = [line for line in rank.lines if "shape" in line]
        assert same["same"], "bit for bit in the same layout"
        assert [each["shape"] for each in others] == [[1, 4], [4, 1]]
        assert all(each["worst"] < 1e-12 for each in others), "replicas add up in another order"
        assert all(each["files"] == 4 for each in (same, *others))


def test_four_ranks_of_two_chunks_go_on_as_one_chunk_and_as_two_and_four_replicas(ranks: list[Ended]):
    for rank in ranks:
        same, *others = [line for line in rank.lines if "chunked" in line]
        assert same["worst"] < 1e-12, "of two microbatches instead of four"
        assert [each["chunked"] for each in (same, *others)] == [[1, 4], [2, 2], [4, 1]]
        assert all(each["worst"] < 1e-12 for each in others)
        assert [each["rate"] for each in (same, *others)] == [0.01 / 16] * 3, "the fourth step of the scheduler"


def test_a_file_cut_short_is_named_on_every_rank(ranks: list[Ended]):
    for rank in ranks:
        assert rank.lines[-1] == ranks[0].lines[-1]
        assert "rank-1.safetensors has 0 bytes" in rank.lines[-1]["refused"]
