"""Asynchronous training on processes: data-parallel replicas step together, and nothing relies on shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.distributed.jobs import Job, run_jobs


@pytest.mark.slow
def test_replicas_follow_the_delay_rule_together_and_four_ranks_over_gloo_do_alone(tmp_path: Path) -> None:
    """A step of a version sums its microbatches over replicas: the rule with the samples of both in each microbatch."""
    ranks = run_jobs(tmp_path, {"asynchronous": Job("asynchronous.py", (), 4)}, patience_seconds=150)["asynchronous"]
    for rank in ranks:
        assert rank.code == 0, rank.errors
    for claim in ("replicas, step", "replicas, run", "gloo, run"):
        told = [next(line for line in rank.lines if line["claim"] == claim) for rank in ranks]
        assert all(line["worst"] <= (1e-12 if claim.startswith("replicas") else 0) for line in told), told
        assert len({tuple(line["losses"]) for line in told}) == 1, "the loss is the same on every rank"
        held: dict[tuple[str, ...], set[str]] = {}
        for line in told:
            held.setdefault(tuple(line["names"]), set()).add(line["bits"])
        assert all(len(bits) == 1 for bits in held.values()), "replicas hold the same bits"
        assert len(held) == (2 if claim.startswith("replicas") else 4)
