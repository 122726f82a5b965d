"""Every cell of the matrix over gloo, on 2, 4 and 8 processes, and by two data-parallel replicas."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.distributed.jobs import Job, run_jobs
from tests.runtime.matrix.running import cells

PATIENCE_SECONDS = 3000.0


def wrong(directory: Path, num_ranks: int, *arguments: str) -> tuple[int, list[str]]:
    """Returns how many cells all ranks have run, and what was wrong in words."""
    ranks = run_jobs(
        directory, {"matrix": Job("matrix.py", ("", *arguments), num_ranks)}, patience_seconds=PATIENCE_SECONDS
    )["matrix"]
    told = [f"rank {number}: {rank.errors[-2000:]}" for number, rank in enumerate(ranks) if rank.code]
    for number, rank in enumerate(ranks):
        for line in rank.lines:
            if "error" in line or not line["worst"] <= line["allowed"]:
                told.append(f"rank {number}: {line}")
    return min(len(rank.lines) for rank in ranks), told


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_SECONDS + 100)
@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_every_cell_holds_over_gloo(num_ranks: int, tmp_path: Path) -> None:
    count, told = wrong(tmp_path, num_ranks)
    assert not told, "\n".join(told)
    assert count == len(cells(num_ranks=num_ranks, num_microbatches=2 * num_ranks))


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_SECONDS + 100)
@pytest.mark.parametrize("num_ranks", [4, 8])
def test_every_cell_holds_with_two_data_parallel_replicas(num_ranks: int, tmp_path: Path) -> None:
    count, told = wrong(tmp_path, num_ranks, "replicas")
    assert not told, "\n".join(told)
    assert count == len(cells(num_ranks=num_ranks // 2, num_microbatches=num_ranks))
