"""Over real processes every kind of schedule gives the unsplit model's gradients, or its delay rule's weights."""

from pathlib import Path

import pytest
from tests.distributed.jobs import Ended, Job, run_jobs

NAMES = {
    "two": ["chimera m=3", "dualpipe_v m=5", "zb_v m=4", "pipedream"],
    "four": ["chimera m=7", "chimera m=5", "dualpipe m=8", "bpipe m=8", "pipedream"],
    "replicated": ["chimera twice", "pipedream_2bw twice"],
}


def check(ranks: list[Ended], names: list[str]) -> None:
    for rank in ranks:
        assert rank.code == 0, rank.errors
        assert [line["name"] for line in rank.lines] == names
        for line in rank.lines:
            assert max(line["worst"], line["loss"], line["norm"]) < 1e-12, line
            assert line["same"], line


@pytest.mark.slow
def test_every_kind_of_schedule_holds_over_gloo(tmp_path: Path) -> None:
    jobs = {"two": Job("directions.py", (), 2), "four": Job("directions.py", (), 4)}
    for name, ranks in run_jobs(tmp_path, jobs).items():
        check(ranks, NAMES[name])


@pytest.mark.slow
def test_data_parallel_replicas_of_several_directions_sum_over_both(tmp_path: Path) -> None:
    jobs = {"replicated": Job("directions.py", ("replicated",), 4)}
    check(run_jobs(tmp_path, jobs)["replicated"], NAMES["replicated"])
