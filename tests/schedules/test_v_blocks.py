"""V-Min, V-Half and V-ZB."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Cluster, OpKind, Placement, Schedule, StageCosts, simulate, v_half, v_min, v_zb, verify
from penstock.errors import ScheduleError

ROWS: list[dict[str, Any]] = json.loads(
    Path(__file__).parents[1].joinpath("reference/controllable_memory.json").read_text()
)["rows"]

Generator = Callable[[int, int], Schedule]

GRIDS: dict[tuple[Generator, int, int], str] = {
    (v_min, 1, 2): """
        rank 0: 0F0 1F0 1I0 0I0 1W0 0W0 0F1 1F1 1I1 0I1 1W1 0W1
    """,
    (v_min, 2, 3): """
        rank 0: 0F0 0F1 .   3F0 3I0 3W0 .   0I0 0W0 3F1 3I1 3W1 0F2 0I1 0W1 3F2 3I2 3W2 .   0I2 0W2
        rank 1: .   1F0 2F0 .   .   2I0 1I0 1F1 2F1 2W0 1W0 2I1 1I1 1F2 2F2 2W1 1W1 2I2 1I2 2W2 1W2
    """,
    (v_min, 3, 4): """
        rank 0: 0F0 0F1 0F2 .   .   5F0 5I0 5W0 5F1 .   .   0I0 5I1 5W1 0W0 5F2 0F3 0I1 5I2 5W2 0W1 5F3 5I3 0I2 5W3 0W2 .   0I3 0W3
        rank 1: .   1F0 1F1 .   4F0 .   4F1 4I0 4W0 .   1I0 1F2 1W0 4I1 4F2 4W1 1I1 1F3 1W1 4I2 4F3 4W2 1I2 4I3 4W3 1W2 1I3 1W3 .
        rank 2: .   .   2F0 3F0 2F1 3F1 .   .   3I0 2I0 3W0 2W0 2F2 3F2 3I1 2I1 3W1 2W1 2F3 3F3 3I2 2I2 3W2 2W2 3I3 2I3 3W3 2W3 .
    """,  # noqa: E501
    (v_half, 1, 2): """
        rank 0: 0F0 1F0 1I0 1W0 0I0 0W0 0F1 1F1 1I1 0I1 1W1 0W1
    """,
    (v_half, 2, 4): """
        rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 .   0I0 3I1 3W1 3F2 0W0 0F3 0I1 3I2 3W2 3F3 3I3 0I2 3W3 0I3 0W1 0W2 0W3
        rank 1: .   1F0 2F0 1F1 2F1 2I0 2W0 1I0 1W0 1F2 2F2 2I1 1I1 2W1 1F3 1W1 2F3 2I2 1I2 2I3 1I3 2W2 2W3 1W2 1W3
    """,
    (v_half, 3, 4): """
        rank 0: 0F0 0F1 0F2 .   .   5F0 5I0 5W0 5F1 5I1 5W1 .   0I0 0W0 0F3 5F2 5I2 5W2 0I1 0W1 .   5F3 5I3 0I2 5W3 0W2 .   0I3 0W3
        rank 1: .   1F0 1F1 .   4F0 .   4F1 4I0 4W0 1F2 .   1I0 4I1 4W1 4F2 1W0 1F3 1I1 4I2 4W2 4F3 1W1 1I2 4I3 4W3 1W2 1I3 1W3 .
        rank 2: .   .   2F0 3F0 2F1 3F1 .   .   3I0 3W0 2I0 2W0 2F2 3F2 3I1 2I1 3W1 2F3 2W1 3F3 3I2 2I2 3W2 2W2 3I3 2I3 3W3 2W3 .
    """,  # noqa: E501
    (v_zb, 1, 2): """
        rank 0: 0F0 1F0 1I0 0I0 1W0 0W0 0F1 1F1 1I1 0I1 1W1 0W1
    """,
    (v_zb, 2, 4): """
        rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 0I0 3W1 0I1 0F3 0W0 3F2 3I2 3W2 0W1 3F3 3I3 0I2 3W3 0I3 0W2 0W3 .
        rank 1: .   1F0 2F0 1F1 2F1 2I0 1I0 2W0 2I1 1I1 1F2 2W1 2F2 1W0 1F3 1W1 2F3 2I2 1I2 2I3 1I3 2W2 2W3 1W2 1W3
    """,
}

UNTIL_W = StageCosts(activation_bytes=1, deferred_bytes=1)
"""F = I = W = 1, and what F keeps is held until W."""

PEAK: dict[Generator, Callable[[int], int]] = {
    v_min: lambda p: (p + 4) // 3,
    v_half: lambda p: (p + 2) // 2,
    v_zb: lambda p: p,
}
"""The most microbatches of both stages that a rank holds from F to W."""

BUBBLE: dict[Generator, Callable[[int], tuple[int, int, int]]] = {
    v_min: lambda p: (p + 1, 4 * p - (5 if p % 3 else 7) if p > 1 else 0, 0),
    v_half: lambda p: (p + 2, max(6 * ((p + 1) // 2) - 7, p - 1), 0),
    v_zb: lambda p: (2 * p, 0, p - 1),
}
"""From which m on the bubble of the per-rank span is how long, and how much longer the flush makespan is."""


@pytest.mark.parametrize(("generate", "num_ranks", "num_microbatches"), GRIDS)
def test_the_blocks_are_drawn_so(generate: Generator, num_ranks: int, num_microbatches: int) -> None:
    assert rows(generate(num_ranks, num_microbatches)) == drawn(GRIDS[generate, num_ranks, num_microbatches])


@pytest.mark.parametrize("generate", PEAK)
def test_the_docstring_draws_what_is_generated(generate: Generator) -> None:
    assert drawing_in(generate) == rows(generate(3, 4))


@pytest.mark.parametrize("generate", PEAK)
def test_the_peak_is_the_closed_form_whatever_m(generate: Generator) -> None:
    for p, m in product(range(1, 9), (*range(1, 8), 12)):
        schedule = generate(p, m)
        peak = 2 * min(m, PEAK[generate](p))
        assert max(simulate(schedule, UNTIL_W).peak_memory) == peak
        assert max(verify(schedule).peak_activations) <= peak


@pytest.mark.parametrize("generate", BUBBLE)
def test_the_bubble_is_the_closed_form_from_some_m_on(generate: Generator) -> None:
    for p in range(1, 9):
        first, bubble, drain = BUBBLE[generate](p)
        for m in (first, first + 1, first + 2, first + 5, 3 * p + 3):
            timeline = simulate(generate(p, m), UNTIL_W)
            assert timeline.per_rank_span == 6 * m + bubble
            assert timeline.makespan == 6 * m + bubble + drain


def test_v_half_bears_times_that_differ_and_v_min_does_not() -> None:
    def bubbles(generate: Generator, times: tuple[int, int, int]) -> list[float]:
        spans = {m: simulate(generate(4, m), StageCosts(*times)).per_rank_span for m in (12, 16, 20)}
        return [span - 2 * m * sum(times) for m, span in spans.items()]

    assert bubbles(v_half, (10, 12, 8)) == [78, 78, 78]
    assert bubbles(v_min, (10, 12, 8)) == [256, 304, 352]
    assert bubbles(v_zb, (10, 12, 8)) == [24, 24, 24]


@pytest.mark.parametrize(
    "times", [(1, 1, 0), (2, 1, 2), (1, 2, 2), (3, 4, 2), (5, 3, 4), (2, 1, 1), (1, 2, 1), (3, 4, 1)]
)
def test_the_bubble_of_v_half_does_not_grow_with_m_while_w_bridges_f_and_i(times: tuple[int, int, int]) -> None:
    forward, input_grad, weight_grad = times
    bridged = weight_grad + 2 * input_grad >= 2 * forward and weight_grad + 2 * forward >= 2 * input_grad
    for p in range(2, 7):
        spans = [simulate(v_half(p, m), StageCosts(*times)).per_rank_span for m in (2 * p + 4, 2 * p + 8)]
        assert (spans[1] - spans[0] == 4 * 2 * sum(times)) == bridged


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(str(row[key]) for key in list(row)[:6]))
@pytest.mark.parametrize("generate", [v_min, v_half])
def test_the_rows_of_the_paper_come_out_exactly(generate: Generator, row: dict[str, Any]) -> None:
    times, expected = (row["forward"], row["input_grad"], row["weight_grad"]), row[generate.__name__]
    costs = StageCosts(*times, activation_bytes=1, deferred_bytes=1)
    cluster = Cluster.uniform(row["p"], latency_seconds=row["transfer"])
    timeline = simulate(generate(row["p"], row["m"]), costs, cluster)
    assert timeline.per_rank_span == expected["span"]
    assert round(1 - 2 * row["m"] * sum(times) / timeline.per_rank_span, 6) == expected["bubble"]
    assert max(timeline.peak_memory) / 2 == expected["peak"]


@pytest.mark.parametrize("generate", PEAK)
def test_every_size_is_proven_and_accumulates_in_the_order_of_microbatches(generate: Generator) -> None:
    for p, m in product(range(1, 7), range(1, 10)):
        schedule = generate(p, m)
        verify(schedule)
        assert schedule.placement == Placement.v_shaped(p)
        for ops, stage in (
            (ops, stage) for rank, ops in enumerate(schedule.ranks) for stage in (rank, 2 * p - 1 - rank)
        ):
            weights = [op.microbatch for op in ops if op.kind == OpKind.W and op.stage == stage]
            assert weights == list(range(m))


@pytest.mark.parametrize("generate", PEAK)
@pytest.mark.parametrize(("num_ranks", "num_microbatches"), [(0, 4), (4, 0), (-1, 4)])
def test_sizes_below_1_are_refused(generate: Generator, num_ranks: int, num_microbatches: int) -> None:
    with pytest.raises(ScheduleError, match=rf"{generate.__name__}: num_\w+=-?\d; use at least 1"):
        generate(num_ranks, num_microbatches)
