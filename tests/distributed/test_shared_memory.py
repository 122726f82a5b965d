"""Ranks of one host find each other by themselves and train to the same bits as over gloo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.distributed.jobs import Ended, Job, run_jobs

from penstock.runtime.transport.shared_memory import semaphore

pytestmark = pytest.mark.skipif(not semaphore.AVAILABLE or not hasattr(os, "memfd_create"), reason="Linux only")
SIZES = (2, 4)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Ended]]:
    """How every rank of both jobs ended; and nothing of either is left in /dev/shm."""
    before = sorted(os.listdir("/dev/shm"))
    jobs = {str(size): Job("shared_memory.py", (), size) for size in SIZES}
    ended = run_jobs(tmp_path_factory.mktemp("jobs"), jobs)
    assert sorted(os.listdir("/dev/shm")) == before
    return {size: ended[str(size)] for size in SIZES}


def lines(ranks: list[Ended], key: str) -> list[list[dict]]:
    for rank in ranks:
        assert rank.code == 0, rank.errors
    return [[line for line in rank.lines if key in line] for rank in ranks]


@pytest.mark.parametrize("num_ranks", SIZES)
def test_gradients_have_the_bits_of_gloo_and_of_the_unsplit_model(num_ranks: int, outcomes):
    for told in lines(outcomes[num_ranks], "schedule"):
        assert [line["schedule"] for line in told] == ["one_f_one_b", "gpipe"]
        for line in told:
            assert line["gradients"] > 0
            assert line["same"] and line["right"]
            assert all(line["near"]) and line["near"]
            assert not any(line["far"])
            assert line["everyone"] == [True, False]


@pytest.mark.parametrize("num_ranks", SIZES)
def test_channels_of_a_rank_elsewhere_go_over_gloo_and_the_others_do_not(num_ranks: int, outcomes):
    told = [row for (row,) in lines(outcomes[num_ranks], "apart")]
    expected = {2: [[False], [False]], 4: [[True], [True, True], [True, False], [False]]}
    assert [line["apart"] for line in told] == expected[num_ranks]
    assert not any(line["everyone"] for line in told)
    assert all(line["same"] for line in told)
    assert len({line["loss"] for line in told}) == 1


@pytest.mark.parametrize("num_ranks", SIZES)
def test_a_closed_pipeline_leaves_no_file_of_its_own(num_ranks: int, outcomes):
    for (line,) in lines(outcomes[num_ranks], "own"):
        assert line["shm"]
        assert line["held"] >= line["own"] > 0
        assert line["left"] == 0


def test_a_rank_killed_amid_its_messages_leaves_nothing(tmp_path: Path):
    """The survivors' reports are in test_faults; here: no memory outlives its processes, whenever they die."""
    before = sorted(os.listdir("/dev/shm"))
    ranks = run_jobs(tmp_path, {"killed": Job("fault.py", ("kill", "1"), 3)})["killed"]
    assert [rank.code for rank in ranks][1] == -9
    assert all(rank.code in (1, 3) for rank in (ranks[0], ranks[2]))
    assert sorted(os.listdir("/dev/shm")) == before
