"""Whatever befalls a rank, the others end within the deadline with a report in pipeline terms."""

from pathlib import Path
from typing import NamedTuple

import pytest
from tests.distributed.jobs import Ended, Job, run_jobs

PATIENCE_SECONDS = 40.0  # on a busy machine; far below the deadline of 300 s, so the watch has to see it
WHERE = "1F2 (forward of stage 1 on microbatch 2)"


class Fault(NamedTuple):
    what: str
    culprit: int
    num_ranks: int
    own_store: bool = False


FAULTS = {
    "killed": Fault("kill", 1, 3),
    "stopped": Fault("stop", 1, 3),
    "raising": Fault("raise", 1, 2),
    "leaving": Fault("leave", 1, 2),
    "killed with the store": Fault("kill", 0, 2, own_store=True),
}

WAYS = ("shared memory", "gloo")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ended]]:
    """How every rank of every job ended; the jobs run side by side, since most of their time is waiting."""
    jobs = {}
    for name, (what, culprit, num_ranks, own_store) in FAULTS.items():
        arguments = (what, str(culprit), *["own store"] * own_store)
        jobs[name] = Job("fault.py", arguments, num_ranks, unending=(culprit,) if what == "stop" else ())
    jobs |= {way: Job("exception.py", (way,), 3) for way in WAYS}
    return run_jobs(tmp_path_factory.mktemp("faults"), jobs, patience_seconds=PATIENCE_SECONDS)


def reports(ranks: list[Ended], fault: Fault) -> list[str]:
    """Returns what each survivor knew when it ended, which it did by itself and not with success."""
    survivors = [rank for number, rank in enumerate(ranks) if number != fault.culprit]
    for rank in survivors:
        assert rank.code in (1, 3), f"a survivor ended with {rank.code}: {rank.errors} {rank.lines}"
    return [" ".join([str(rank.lines), rank.errors]) for rank in survivors]


@pytest.mark.parametrize("name", ["killed", "stopped"])
def test_a_rank_that_falls_silent_in_mid_step_is_named_with_its_place(name: str, outcomes):
    for report in reports(outcomes[name], FAULTS[name]):
        assert "rank 1" in report
        assert f"in step 2 at {WHERE}" in report


@pytest.mark.slow
def test_a_rank_that_is_slow_beyond_the_deadline_is_named_with_its_place(tmp_path: Path) -> None:
    """By itself: its deadline is short, and a busy machine starts other jobs no faster."""
    fault = Fault("slow", 1, 3)
    ended = run_jobs(tmp_path, {"slow": Job("fault.py", ("slow", "1"), 3)}, patience_seconds=PATIENCE_SECONDS)
    for report in reports(ended["slow"], fault):
        assert f"in step 2 at {WHERE}" in report


def test_a_rank_that_raises_is_named_with_its_place_and_its_error(outcomes):
    ranks = outcomes["raising"]
    for report in reports(ranks, FAULTS["raising"]):
        assert f"rank 1 failed in step 2, {WHERE}: FloatingPointError: overflow" in report
    own, again = ranks[1].lines
    assert own["kind"] == "FloatingPointError"
    assert own["notes"] == [f"penstock: raised on rank 1, step 2, {WHERE}"]
    assert "this pipeline ended when call 2 (step) failed" in again["again"]


@pytest.mark.parametrize("way", WAYS)
def test_an_exception_in_a_stage_ends_all_ranks_within_ten_seconds(way: str, outcomes):
    """Rank 0 waits for rank 1 with a deadline of 300 s, rank 2 is busy in its own stage; no patience is shortened."""
    waiting, culprit, busy = outcomes[way]
    (raised,) = [line["raised"] for line in culprit.lines]
    assert [rank.code for rank in (waiting, culprit, busy)] == [1, 1, 1]
    assert all(0 < rank.at - raised < 10 for rank in outcomes[way]), [rank.at - raised for rank in outcomes[way]]
    assert "in forward\n" in culprit.errors, "the user's own traceback"
    assert "FloatingPointError: overflow\n" in culprit.errors
    assert f"penstock: raised on rank 1, step 2, {WHERE}\n" in culprit.errors
    for rank in (waiting, busy):
        assert f"rank 1 failed in step 2, {WHERE}: FloatingPointError: overflow" in rank.errors
    assert "penstock: rank 2 was in step 2 at 2F1 (forward of stage 2 on microbatch 1)" in busy.errors


def test_a_rank_that_leaves_early_is_named(outcomes):
    ranks = outcomes["leaving"]
    assert ranks[1].code == 0
    for report in reports(ranks, FAULTS["leaving"]):
        assert "Rank 1 was last heard of" in report
        assert "gone: it closed its pipeline" in report


def test_a_rank_that_takes_the_store_with_it_is_reported_too(outcomes):
    """Symptom: a bare error of the store's socket. Cause: the report was looked up where it could not be any more."""
    for report in reports(outcomes["killed with the store"], FAULTS["killed with the store"]):
        assert "Traceback" not in report
        assert "lost rank 0" in report or "lost the control connection" in report
