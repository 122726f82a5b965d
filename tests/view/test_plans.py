"""Plans as a table within 80 columns and as HTML with their reasons."""

import io
from dataclasses import replace

from rich.console import Console

from penstock.planner import Forecast, Plan, Refused
from penstock.view.plans import plan_table, plans_html

PLAN = Plan(
    data=1024,
    tensor=8,
    pipeline=2,
    outermost="data",
    schedule="interleaved_1f1b",
    chunks=2,
    microbatches=128,
    microbatch_size=1,
    sequence=128,
    sharding=1,
    partition=(2, 2, 1, 3),
    recompute=(1, 4),
    forecast=Forecast(1.25, 123456.0, 0.4, 0.125, (1 * 2**30, 2 * 2**30), (8e9, 8e9), {"waiting": 1.25}),
    reason="it is <fast>",
)


def shown(*plans: Plan) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(plan_table(plans))
    return console.export_text().splitlines()


def test_a_plan_is_a_row_of_eighty_columns() -> None:
    lines = shown(PLAN, replace(PLAN, schedule="zb_h1", pipeline=4, chunks=1, microbatch_size=2))
    assert all(len(line.rstrip()) <= 80 for line in lines)
    (first,) = (line.split() for line in lines if "interleaved" in line)
    assert first == ["1", "1024×8×2", "interleaved_1f1b/2", "1×128", "1", "2", "1.25", "40.0%", "12.5%", "2"]
    (second,) = (line.split() for line in lines if "zb_h1" in line)
    assert second[1:4] == ["1024×8×4", "zb_h1", "2×128"]


def test_a_profile_has_no_mfu() -> None:
    forecast = replace(PLAN.forecast, mfu=0.0)
    (row,) = (line.split() for line in shown(replace(PLAN, forecast=forecast)) if "interleaved" in line)
    assert row[6:9] == ["1.25", "-", "12.5%"]


def test_html_has_reasons_and_what_does_not_fit() -> None:
    page = plans_html([PLAN], [Refused(1, 2, "rank 0 lacks 5 bytes")], ["a note & more"])
    assert "it is &lt;fast&gt;" in page
    assert "tensor 1 × pipeline 2: rank 0 lacks 5 bytes" in page
    assert "a note &amp; more" in page
    assert "123,456" in page
    assert "What else" not in plans_html([PLAN], [], [])
