"""Plans side by side, on a terminal and as a part of a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich import box
from rich.table import Table

from penstock.planner.plan import Plan
from penstock.planner.planning import Refused
from penstock.units import size_unit, time_unit

_HEADINGS = ("data", "tensor", "pipeline", "schedule", "chunks", "microbatch", "microbatches", "ZeRO", "again")
_CAPTION = """\
d×t×p  data, tensor and pipeline degrees; schedule/v: v stages a rank
b×m    sequences a microbatch, microbatches of each pipeline in a step
again  layers that run their forward again
idle   share of the step that a rank stands still, on the mean
mem.   of the fullest rank, on each of its devices"""


def plan_table(plans: Sequence[Plan]) -> Table:
    """Returns the plans in their order, within 80 columns."""
    table = Table(
        caption=_CAPTION,
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=0,
    )
    step, _, *_, memory = (heading.replace(" [", "\n[") for heading in _measures(plans))
    for heading in (
        "",
        "d×t×p",
        "schedule",
        "b×m",
        "ZeRO",
        "again",
        step,
        "MFU",
        "idle",
        memory.replace("memory", "mem."),
    ):
        table.add_column(heading, justify="left" if heading == "schedule" else "right", no_wrap=True)
    for number, (plan, row) in enumerate(zip(plans, _rows(plans), strict=True), start=1):
        seconds, _, *measured = row[len(_HEADINGS) :]
        table.add_row(
            str(number),
            f"{plan.data}×{plan.tensor}×{plan.pipeline}",
            plan.schedule + (f"/{plan.chunks}" if plan.chunks > 1 else ""),
            f"{plan.microbatch_size}×{plan.microbatches}",
            *(str(plan.sharding), str(len(plan.recompute)), seconds, *measured),
            style="bold" if number == 1 else None,
        )
    return table


def plans_html(plans: Sequence[Plan], refused: Sequence[Refused], notes: Sequence[str]) -> str:
    """Returns the plans with their reasons, and what does not fit, as HTML."""
    cell = '<td style="text-align:right;padding:1px 9px">{}</td>'
    head = "".join(cell.replace("td", "th").format(escape(heading)) for heading in ("", *_HEADINGS, *_measures(plans)))
    body = "".join(
        f"<tr>{''.join(cell.format(escape(text)) for text in (str(number), *row))}</tr>"
        for number, row in enumerate(_rows(plans), start=1)
    )
    reasons = "".join(f"<li><b>{escape(plan.name)}</b>: {escape(plan.reason)}</li>" for plan in plans)
    lacking = [f"tensor {one.tensor} × pipeline {one.pipeline}: {one.reason}" for one in refused]
    others = "".join(f"<li>{escape(text)}</li>" for text in [*notes, *lacking])
    return (
        f'<table style="font-size:12px;border-collapse:collapse"><tr>{head}</tr>{body}</table>'
        f'<ol style="font-size:12px">{reasons}</ol>'
        + (
            f'<p style="font-size:12px">What else there is to know:</p><ul style="font-size:12px">{others}</ul>'
            if others
            else ""
        )
    )


def _measures(plans: Sequence[Plan]) -> tuple[str, ...]:
    step = time_unit(max(plan.forecast.step_seconds for plan in plans))
    memory = size_unit(max(max(plan.forecast.memory_bytes) for plan in plans))
    return (f"step [{step.name}]", "tokens/s", "MFU", "bubble", f"memory [{memory.name}]")


def _rows(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    step = time_unit(max(plan.forecast.step_seconds for plan in plans))
    memory = size_unit(max(max(plan.forecast.memory_bytes) for plan in plans))
    return [
        (
            *map(str, (plan.data, plan.tensor, plan.pipeline, plan.schedule, plan.chunks)),
            *map(str, (plan.microbatch_size, plan.microbatches, plan.sharding, len(plan.recompute))),
            step.number(plan.forecast.step_seconds),
            f"{plan.forecast.tokens_per_second:,.0f}",
            f"{plan.forecast.mfu:.1%}" if plan.forecast.mfu else "-",
            f"{plan.forecast.bubble_fraction:.1%}",
            memory.number(max(plan.forecast.memory_bytes)),
        )
        for plan in plans
    ]
