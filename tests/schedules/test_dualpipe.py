"""DualPipe and DualPipeV: two streams that meet, and forwards that overlap backwards."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import OpKind, Schedule, StageCosts, dualpipe, dualpipe_v, simulate, verify
from penstock.errors import ScheduleError

GRIDS = {
    (2, 4): """
        rank 0: F0   F2@1 F1   B2@1 F3@1+B0 B3@1 I1   W1
        rank 1: F2@1 F0   F3@1 B0   F1+B2@1 B1   I3@1 W3@1
    """,
    (4, 8): """
        rank 0: F0   F1   F2   F4@1 I4@1 W4@1 F5@1 F3+B5@1 F6@1+B0 B6@1    F7@1+B1 B7@1 I2   W2   I3   W3
        rank 1: .    F0   F4@1 F1   F5@1 F2   B4@1 F6@1+B0 F3+B5@1 F7@1+B1 B6@1    B2   I7@1 I3   W7@1 W3
        rank 2: .    F4@1 F0   F5@1 F1   F6@1 B0   F2+B4@1 F7@1+B1 F3+B5@1 B2      B6@1 I3   I7@1 W3   W7@1
        rank 3: F4@1 F5@1 F6@1 F0   I0   W0   F1   F7@1+B1 F2+B4@1 B2      F3+B5@1 B3   I6@1 W6@1 I7@1 W7@1
    """,
}
GRIDS_V = {
    (1, 3): """
        rank 0: 0F0 1F0 0F1 1B0 1F1+0B0 0F2+1B1 1F2+0B1 1B2 0I2 0W2
    """,
    (2, 4): """
        rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3+3B1 3F2+0B0 3B2     3F3+0B1 3B3 0I2 0W2 0I3 0W3
        rank 1: .   1F0 2F0 1F1 2F1 1F2 2B0 2F2+1B0 1F3+2B1 2F3+1B1 2B2     1B2 2I3 1I3 2W3 1W3
    """,
}
# fmt: off
STEADY_V = [
    "0F5+5B2 5F3+0B0 5B3 5F4+0B1 5B4 5F5+0B2",
    "1F4+4B1 4F3+1B0 1F5+4B2 4F4+1B1 4B3 4F5+1B2",
    "2F3 3B0 3F3+2B0 2F4+3B1 3F4+2B1 2F5+3B2 3F5+2B2",
]
"""What DualPipeV overlaps at p=3, m=6: from the first pair, or its two ops apart on the last rank, to the last one."""
# fmt: on

REFERENCE = Path(__file__).parents[1] / "reference" / "dualpipe.json"
ROWS: list[dict[str, Any]] = json.loads(REFERENCE.read_text())["rows"]


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_dualpipe_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(dualpipe(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS_V)
def test_dualpipe_v_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(dualpipe_v(num_ranks, num_microbatches)) == drawn(GRIDS_V[num_ranks, num_microbatches])


def test_dualpipe_v_of_three_ranks_overlaps_these() -> None:
    for steady, row in zip(STEADY_V, rows(dualpipe_v(3, 6)).splitlines(), strict=True):
        cells = " ".join(cell for cell in row.partition(":")[2].split() if cell != ".")
        before, found, after = cells.partition(steady)
        assert found and "+" not in before + after


def test_the_docstrings_draw_what_is_generated() -> None:
    assert drawing_in(dualpipe) == rows(dualpipe(4, 8))
    assert drawing_in(dualpipe_v) == rows(dualpipe_v(2, 4))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"p{row['p']} m{row['m']} pair {row['overlapped']}")
def test_every_published_row_comes_out_exactly(row: dict[str, Any]) -> None:
    proof = verify(dualpipe(row["p"], row["m"]))
    input_grad = row["backward"] - row["weight_grad"]
    costs = StageCosts(
        forward=row["forward"],
        input_grad=input_grad,
        weight_grad=row["weight_grad"],
        overlapped=row["overlapped"],
    )
    timeline = simulate(proof.program, costs)
    assert timeline.makespan == row["makespan"]
    assert [timeline.makespan - busy for busy in timeline.busy] == row["idle"]
    assert list(proof.peak_activations) == list(timeline.peak_activations) == row["peak_activations"]
    worst = max(row["idle"])
    if row["forward"] == input_grad:
        assert worst == row["published_bubble"]
    else:  # F = 10, I = 11: the paper's formula does not count on an F shorter than I, and is a little above
        assert worst == row["published_bubble"] - (input_grad - row["forward"]) * (row["p"] // 2 - 1)


COSTS = [(3, 3, 6 + 3), (3, 2, 8), (3, 2, 6), (3, 2, 5), (5, 0, 10), (5, 1, 7), (Fraction(1, 3), Fraction(1, 7), 1)]
"""F = I, W and an overlapped pair: some as long as F + B, some as long as B."""


def check_closed_forms(schedule: Schedule, microbatches: int, half: int, costs: tuple[Any, Any, Any]) -> None:
    """Checks makespan and idle, for so many microbatches of both streams and so many ranks to the middle."""
    forward, weight_grad, pair = costs
    backward = forward + weight_grad
    pair = min(max(pair, forward, backward), forward + backward)
    saved, bubble = forward + backward - pair, (half - 1) * (pair + backward - 3 * weight_grad)
    stage_costs = StageCosts(forward=forward, input_grad=forward, weight_grad=weight_grad, overlapped=pair)
    timeline = simulate(schedule, stage_costs)
    pairs = microbatches - 2 * half - 1
    assert timeline.makespan == microbatches * (forward + backward) - pairs * saved + bubble
    for rank, busy in enumerate(timeline.busy):
        place = min(rank, 2 * half - 1 - rank)
        assert timeline.makespan - busy == bubble - max(half - 2 - place, 0) * saved


@pytest.mark.parametrize("costs", COSTS)
def test_the_closed_forms_of_dualpipe_hold_exactly(costs: tuple[Any, Any, Any]) -> None:
    for num_ranks in (2, 4, 6, 8):
        for num_microbatches in (2 * num_ranks, 2 * num_ranks + 2, 3 * num_ranks + 4):
            schedule = dualpipe(num_ranks, num_microbatches)
            check_closed_forms(schedule, num_microbatches, num_ranks // 2, costs)


@pytest.mark.parametrize("costs", COSTS)
def test_the_closed_forms_of_dualpipe_v_hold_exactly(costs: tuple[Any, Any, Any]) -> None:
    for num_ranks in (1, 2, 3, 4):
        for num_microbatches in (2 * num_ranks, 2 * num_ranks + 1, 3 * num_ranks + 1):
            check_closed_forms(dualpipe_v(num_ranks, num_microbatches), 2 * num_microbatches, num_ranks, costs)


def test_every_rank_holds_one_activation_more_than_there_are_stages() -> None:
    for num_ranks in range(2, 13, 2):
        for num_microbatches in range(2 * num_ranks, 2 * num_ranks + 6, 2):
            assert verify(dualpipe(num_ranks, num_microbatches)).peak_activations == (num_ranks + 1,) * num_ranks
    for num_ranks in range(1, 7):
        for num_microbatches in range(2 * num_ranks, 2 * num_ranks + 4):
            proof = verify(dualpipe_v(num_ranks, num_microbatches))
            assert proof.peak_activations == (2 * num_ranks + 1,) * num_ranks


def test_both_halves_of_the_ranks_run_the_same_with_the_directions_exchanged() -> None:
    schedule = dualpipe(6, 14)
    for rank, ops in enumerate(schedule.ranks):
        mirrored = tuple(op._replace(microbatch=(op.microbatch + 7) % 14, replica=1 - op.replica) for op in ops)
        assert schedule.ranks[5 - rank] == mirrored
        assert schedule.overlapped[5 - rank] == schedule.overlapped[rank]


def test_the_v_is_dualpipe_on_the_upper_half_of_twice_the_ranks() -> None:
    bent, straight = dualpipe_v(3, 7), dualpipe(6, 14)
    for rank in range(3):
        assert [(op.kind, op.stage, op.microbatch) for op in bent.ranks[rank]] == [
            (op.kind, op.stage, op.microbatch % 7) for op in straight.ranks[rank]
        ]
        assert bent.overlapped[rank] == straight.overlapped[rank]


def test_weight_gradients_are_done_in_the_order_of_their_input_gradients() -> None:
    for ops in dualpipe(8, 16).ranks:
        split = {kind: [op[1:] for op in ops if op.kind == kind] for kind in (OpKind.I, OpKind.W)}
        assert split[OpKind.I] == split[OpKind.W]


@pytest.mark.parametrize(
    ("num_ranks", "num_microbatches", "said"),
    [
        (3, 8, "dualpipe: num_ranks=3; its two directions share ranks and microbatches equally, use an even number, "
               "e.g. num_ranks=4"),
        (1, 4, "dualpipe: num_ranks=1; its two directions"),
        (4, 9, "dualpipe: num_microbatches=9; its two directions share ranks and microbatches equally, use an even "
               "number, e.g. num_microbatches=10"),
        (4, 6, "dualpipe: num_microbatches=6 on 4 ranks do not fill it; use at least 2 a rank, "
               "e.g. num_microbatches=8"),
    ],
)  # fmt: skip
def test_sizes_that_dualpipe_is_not_defined_for_are_refused(num_ranks: int, num_microbatches: int, said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        dualpipe(num_ranks, num_microbatches)
    assert str(refused.value).startswith(said)


def test_too_few_microbatches_for_the_v_are_refused() -> None:
    with pytest.raises(ScheduleError, match="dualpipe_v: num_microbatches=5 on 3 ranks do not fill it; use at least 2"):
        dualpipe_v(3, 5)
