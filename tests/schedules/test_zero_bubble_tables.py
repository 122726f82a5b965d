"""The published bubbles of 1F1B, ZB-H1, ZB-H2, ZB-1p and ZB-2p."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock import Cluster, OpKind, Schedule, StageCosts, Timeline, one_f_one_b, simulate, zb_auto, zb_h1, zb_h2

Row = dict[str, Any]
ROWS: list[Row] = json.loads(Path(__file__).parents[1].joinpath("reference/zero_bubble_tables.json").read_text())[
    "rows"
]
DETAILED = [row for row in ROWS if "cost_us" in row]


def named(row: Row) -> str:
    return f"{row['model']} p={row['p']} m={row['m']}"


def costs_of(row: Row) -> StageCosts:
    return StageCosts(
        forward=row["forward_us"],
        input_grad=row["input_grad_us"],
        weight_grad=row["weight_grad_us"],
        activation_bytes=row["activation"],
        deferred_bytes=row["deferred"],
    )


def cluster_of(row: Row) -> Cluster:
    return Cluster.uniform(row["p"], latency_seconds=row["transfer_us"])


def searched(row: Row, times: int) -> Schedule:
    """Returns what zb_auto finds when a rank may hold `times`·p microbatches."""
    limit = times * row["p"] * row["activation"]
    return zb_auto(row["p"], row["m"], costs=costs_of(row), cluster=cluster_of(row), memory_limit=limit)


def makespan(timeline: Timeline) -> float:
    return timeline.makespan


def per_rank_span(timeline: Timeline) -> float:
    return timeline.per_rank_span


COLUMNS: dict[str, tuple[Callable[[Row], Schedule], Callable[[Timeline], float]]] = {
    "1F1B": (lambda row: one_f_one_b(row["p"], row["m"]), makespan),
    "ZB-H1": (lambda row: zb_h1(row["p"], row["m"]), makespan),
    "ZB-H2": (lambda row: zb_h2(row["p"], row["m"]), per_rank_span),
    "ZB-1p": (lambda row: searched(row, 1), per_rank_span),
    "ZB-2p": (lambda row: searched(row, 2), per_rank_span),
}
"""The paper's name -> how the schedule is made and what its cost is."""


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS, ids=named)
def test_the_bubble_is_the_published_one(row: Row, column: str) -> None:
    generate, measure = COLUMNS[column]
    cost = measure(simulate(generate(row), costs_of(row), cluster_of(row)))
    if "cost_us" in row:
        assert cost == row["cost_us"][column]
    ideal = row["m"] * (row["forward_us"] + row["input_grad_us"] + row["weight_grad_us"])
    assert round(1 - ideal / cost, 4) == row["published_bubble"][column]


@pytest.mark.parametrize("column", ["ZB-1p", "ZB-2p"])
@pytest.mark.parametrize("row", DETAILED, ids=named)
def test_warm_up_peaks_and_flush_makespan_are_the_published_ones(row: Row, column: str) -> None:
    schedule = COLUMNS[column][0](row)
    warm_up = [[op.kind for op in ops].index(OpKind.I) for ops in schedule.ranks]
    assert warm_up == row["warm_up_forwards"][column]
    timeline = simulate(schedule, costs_of(row), cluster_of(row))
    assert timeline.makespan == row["flush_makespan_us"][column]
    peaks = [round(peak / row["activation"], 4) for peak in timeline.peak_memory]
    assert peaks == row["peak_in_activations"][column]
