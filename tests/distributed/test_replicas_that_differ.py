"""Data-parallel replicas that differ are named, before the first step or in it, and nobody waits for a deadline."""

from __future__ import annotations

import pytest
from tests.distributed.jobs import Ended, Job, run_jobs


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    """Ranks 0 and 1 are the first replica, 2 and 3 the second."""
    job = Job("replicas_that_differ.py", (), 4)
    return run_jobs(tmp_path_factory.mktemp("replicas"), {"replicas": job}, patience_seconds=40)["replicas"]


def errors(ranks: list[Ended], claim: str) -> list[str]:
    found = [line["error"] for rank in ranks for line in rank.lines if line["claim"] == claim]
    assert len(found) == 4, [rank.errors for rank in ranks]
    return found


def test_another_plan_or_none_is_told_to_all(ranks: list[Ended]) -> None:
    for error in errors(ranks, "other microbatches"):
        assert error.startswith(
            "HandshakeError: data-parallel replicas hold different values of num_microbatches: rank "
        )
        assert "(data-parallel replica 1) has 8, rank " in error
    first, _, *theirs = errors(ranks, "no model")
    assert first.startswith("HandshakeError: data-parallel replica 1: the model has no layers")
    assert all(error.startswith("ModelError: the model has no layers") for error in theirs)


def test_weights_that_differ_in_one_bit_are_named_before_the_first_step_and_may_be_put_right(
    ranks: list[Ended],
) -> None:
    """Symptom it had: replicas trained apart from one another, each with the sum of all gradients."""
    for error in errors(ranks, "other weights"):
        assert "4.weight of rank 3 of the job (data-parallel replica 1) is not that of rank 1 of the job" in error
        assert "call torch.manual_seed with one number before the model is made" in error
    assert errors(ranks, "evaluation meanwhile") == [""] * 4
    assert errors(ranks, "the same weights") == [""] * 4


def test_a_batch_that_one_replica_refuses_is_refused_by_all_and_the_next_is_not(ranks: list[Ended]) -> None:
    """Symptom it had: the other replica waited for its deadline, or took the sum of another call for its own."""
    refused = "a batch of 6 samples does not divide into num_microbatches=4"
    for number, error in enumerate(errors(ranks, "a refused batch")):
        assert error.startswith("BatchError: " if number > 1 else "BatchError: data-parallel replica 1: ")
        assert refused in error
    assert errors(ranks, "after that") == [""] * 4


def test_replicas_that_call_different_things_are_named(ranks: list[Ended]) -> None:
    for number, error in enumerate(errors(ranks, "another call")):
        first, second = (f"rank {number % 2 + 2 * i} of the job (data-parallel replica {i})" for i in (0, 1))
        assert error.startswith("HandshakeError: data-parallel replicas called different things: ")
        assert f": {first} step (its call 6), {second} evaluate (its call 6); every rank runs" in error


def test_an_exception_in_a_stage_ends_every_replica_with_its_place(ranks: list[Ended]) -> None:
    """Rank 1 waits for rank 3 in a sum of gradients, which nothing can interrupt: its watch ends it."""
    where = (
        "rank 1 failed in step 1, 1F2 (forward of stage 1 on microbatch 2): FloatingPointError: overflow in the fuse"
    )
    reports = [
        " ".join([str([line for line in rank.lines if line["claim"] == "a fuse"]), rank.errors]) for rank in ranks
    ]
    assert [rank.code in (1, 3) for rank in ranks] == [True] * 4, [rank.errors for rank in ranks]
    assert "FloatingPointError: overflow in the fuse" in reports[3]
    assert where in reports[2]
    for report in reports[:2]:
        assert f"data-parallel replica 1: {where}" in report
