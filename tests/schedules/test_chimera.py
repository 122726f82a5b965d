"""Chimera: pipelines down and up the same ranks."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Op, OpKind, StageCosts, chimera, simulate, verify
from penstock.errors import ScheduleError
from penstock.notation.grid import slots

GRIDS = {
    (2, 1, 2): """
        rank 0: F0 .  .  B0
        rank 1: .  F0 B0 .
    """,
    (4, 4, 2): """
        rank 0: F0   F1   .    F2@1 B2@1 F3@1 B3@1 B0   .    B1
        rank 1: .    F0   F2@1 F1   F3@1 B2@1 B0   B3@1 B1   .
        rank 2: .    F2@1 F0   F3@1 F1   B0   B2@1 B1   B3@1 .
        rank 3: F2@1 F3@1 .    F0   B0   F1   B1   B2@1 .    B3@1
    """,
    (4, 4, 4): """
        rank 0: F0   F3@3 F2@2 F1@1 B1@1 B2@2 B3@3 B0
        rank 1: F3@3 F0   F1@1 F2@2 B2@2 B1@1 B0   B3@3
        rank 2: F2@2 F1@1 F0   F3@3 B3@3 B0   B1@1 B2@2
        rank 3: F1@1 F2@2 F3@3 F0   B0   B3@3 B2@2 B1@1
    """,
}

REFERENCE = Path(__file__).parents[1] / "reference" / "chimera.json"
ROWS: list[dict[str, Any]] = json.loads(REFERENCE.read_text())["rows"]

SIZES = [(2, 2), (4, 2), (4, 4), (6, 2), (6, 6), (8, 2), (8, 4), (8, 8), (12, 4), (12, 6)]
"""Ranks and replicas."""


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "num_replicas"), GRIDS)
def test_chimera_is_drawn_so(num_ranks: int, num_microbatches: int, num_replicas: int) -> None:
    schedule = chimera(num_ranks, num_microbatches, num_replicas=num_replicas)
    assert rows(schedule) == drawn(GRIDS[num_ranks, num_microbatches, num_replicas])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(chimera) == rows(chimera(4, 4))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"p{row['p']} B{row['backward']}")
def test_every_published_row_comes_out_exactly(row: dict[str, Any]) -> None:
    proof = verify(chimera(row["p"], row["m"]))
    timeline = simulate(proof.program, StageCosts(forward=row["forward"], backward=row["backward"]))
    assert timeline.makespan == row["makespan"]
    assert round(timeline.bubble_fraction, 6) == row["bubble_fraction"]
    published = row["published_equal"] if row["backward"] == row["forward"] else row["published_double"]
    assert round(timeline.bubble_fraction, 6) == published
    assert list(proof.peak_activations) == list(timeline.peak_activations) == row["peak_activations"]


@pytest.mark.parametrize(("num_ranks", "num_replicas"), SIZES)
def test_ops_run_in_the_order_of_the_papers_slots_and_none_later(num_ranks: int, num_replicas: int) -> None:
    schedule = chimera(num_ranks, 2 * num_ranks, num_replicas=num_replicas)
    share = num_ranks // num_replicas
    for rank, row in enumerate(slots(schedule)):
        papers = []
        for slot, op in zip(row, schedule.ranks[rank], strict=True):
            unit, place = divmod(op.microbatch, num_ranks)
            replica, index = divmod(place, share)
            assert op.replica == replica
            late = op.stage if op.kind is OpKind.F else 2 * num_ranks - 1 - op.stage
            papers.append(2 * num_ranks * unit + 2 * index + late)
            assert slot <= papers[-1]
        assert papers == sorted(set(papers)), "no two ops of a rank in one slot"


@pytest.mark.parametrize(("num_ranks", "num_replicas"), SIZES)
def test_the_closed_forms_of_full_units_hold_exactly(num_ranks: int, num_replicas: int) -> None:
    bubbles = 2 * num_ranks // num_replicas - 2
    for units in (1, 2, 3):
        num_microbatches = units * num_ranks
        schedule = chimera(num_ranks, num_microbatches, num_replicas=num_replicas)
        for forward, backward in ((1, 1), (1, 2), (3, 2), (Fraction(1, 3), Fraction(2, 7))):
            timeline = simulate(schedule, StageCosts(forward=forward, backward=backward))  # type: ignore[arg-type]
            uneven = units * max(forward, backward) - (units - 1) * min(forward, backward)
            assert timeline.makespan == num_microbatches * (forward + backward) + bubbles * uneven
        timeline = simulate(schedule, StageCosts(forward=1, backward=1))
        idle = num_ranks - num_replicas
        assert timeline.bubble_fraction == idle / (num_replicas * num_microbatches + idle)
    timeline = simulate(chimera(num_ranks, num_ranks), StageCosts(forward=1, backward=2))
    assert timeline.bubble_fraction == (num_ranks - 2) / (1.5 * num_ranks + num_ranks - 2)


@pytest.mark.parametrize(("num_ranks", "num_replicas"), SIZES)
def test_peaks_are_those_of_the_place_between_the_ends_of_two_pipelines(num_ranks: int, num_replicas: int) -> None:
    apart = 2 * num_ranks // num_replicas
    places = [rank % apart for rank in range(num_ranks)]
    expected = tuple(num_ranks - apart // 2 + 1 + min(place, apart - 1 - place) for place in places)
    for num_microbatches in (num_ranks, num_ranks + 1, 2 * num_ranks, 3 * num_ranks + 2):
        schedule = chimera(num_ranks, num_microbatches, num_replicas=num_replicas)
        assert verify(schedule).peak_activations == expected


def test_any_number_of_microbatches_is_proven_and_shared_out_evenly() -> None:
    for num_ranks, num_replicas in SIZES[:8]:
        for num_microbatches in range(1, 2 * num_ranks + 1):
            schedule = chimera(num_ranks, num_microbatches, num_replicas=num_replicas)
            verify(schedule)
            entered = [op.replica for _, _, op in schedule.ops() if op.kind is OpKind.F and op.stage == 0]
            shares = [entered.count(replica) for replica in range(num_replicas)]
            assert sum(shares) == num_microbatches
            assert max(shares) - min(shares) <= 1


def test_a_lonely_microbatch_runs_down_a_single_pipeline() -> None:
    schedule = chimera(4, 1)
    assert all(op.replica == 0 for _, _, op in schedule.ops())
    assert simulate(schedule, StageCosts(forward=1, backward=2)).makespan == 12


def test_a_unit_starts_in_the_bubbles_of_the_one_before() -> None:
    """Rank 0 runs F4 before B1, the last op of the first unit."""
    row = chimera(4, 8).ranks[0]
    assert row.index(Op(OpKind.F, 0, 4)) + 1 == row.index(Op(OpKind.B, 0, 1))


@pytest.mark.parametrize(
    ("num_ranks", "num_replicas", "said"),
    [
        (3, 2, "chimera: num_ranks=3; pipelines down and up would meet in the same slots of a rank, use an even "
               "number, e.g. num_ranks=4"),
        (1, 2, "chimera: num_ranks=1; pipelines down and up"),
        (4, 3, "chimera: num_replicas=3 on 4 ranks; half of them run down, half up, and all share 4 microbatches "
               "equally, use an even divisor of 4, e.g. num_replicas=2"),
        (6, 3, "chimera: num_replicas=3 on 6 ranks; half of them run down"),
        (6, 4, "chimera: num_replicas=4 on 6 ranks; half of them run down"),
        (4, 8, "chimera: num_replicas=8 on 4 ranks; half of them run down"),
        (4, 0, "chimera: num_replicas=0; use at least 1"),
    ],
)  # fmt: skip
def test_sizes_that_chimera_is_not_defined_for_are_refused(num_ranks: int, num_replicas: int, said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        chimera(num_ranks, 4, num_replicas=num_replicas)
    assert str(refused.value).startswith(said)
