"""One cell of the matrix: a schedule, a case and sizes, by the pipeline and by the unsplit model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from tests.runtime.matrix.cases import CASES, Case
from tests.runtime.matrix.subjects import Adding, Found, Piped, Unsplit, steps_inside
from tests.runtime.runs import Poisoning

import penstock as ps
from penstock.errors import ScheduleError
from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS
from penstock.schedules.registry import SCHEDULES


class Error(NamedTuple):
    """The largest deviation, relative to the largest entry expected, and of what."""

    size: float
    what: str


def schedule_of(name: str, case: Case, *, num_ranks: int, num_microbatches: int) -> Schedule | None:
    """Returns the schedule of a cell; None where there is none of these sizes, or the case is not for it."""
    named = _named(name, num_ranks, num_microbatches)
    try:
        schedule = named and case.schedule(named)
    except ScheduleError:
        return None
    if schedule is None:
        return None
    inside = schedule.weight_rule not in SYNCHRONOUS
    return None if inside and not (case.inside and steps_inside(schedule)) else schedule


@cache
def _named(name: str, num_ranks: int, num_microbatches: int) -> Schedule | None:
    try:
        return ps.named_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    except ScheduleError:
        return None


def cells(*, num_ranks: int, num_microbatches: int) -> list[tuple[str, str]]:
    """Returns (schedule, case) of all cells that there are."""
    sizes = {"num_ranks": num_ranks, "num_microbatches": num_microbatches}
    return [(name, case) for name in SCHEDULES for case in CASES if schedule_of(name, CASES[case], **sizes) is not None]


def allowed(name: str, case: str, *, num_ranks: int, num_microbatches: int, replicas: int = 1) -> float:
    """Returns how far a cell may be from the unsplit model."""
    schedule = schedule_of(name, CASES[case], num_ranks=num_ranks, num_microbatches=num_microbatches)
    return 0.0 if schedule is None else CASES[case].allowed(schedule, replicas=replicas)


def arguments_of(case: Case, schedule: Schedule) -> dict[str, Any]:
    """Returns what the cell's Pipeline is given beside the model, the loss and its ranks."""
    inside = {} if schedule.weight_rule in SYNCHRONOUS else {"optimizer": Adding}
    return {"schedule": schedule, **case.arguments, **case.reference, **inside}


@cache
def expected(case: str, *, num_layers: int, num_microbatches: int, replicas: int = 1) -> Found:
    """Returns what the unsplit model leaves behind."""
    given = CASES[case]
    return given.loop(Unsplit(given, num_layers=num_layers, num_microbatches=num_microbatches, replicas=replicas))


def error_of(found: Found, wanted: Found) -> Error:
    """Returns the worst of what one rank found; a gradient of zeros may stand where the unsplit model has none."""
    worst = Error(0.0, "")
    for what, value in found.items():
        target = wanted.get(what, torch.zeros_like(value)).to(value.dtype)
        if value.shape != target.shape:
            return Error(float("inf"), f"{what} of shape {tuple(value.shape)}, not {tuple(target.shape)}")
        if torch.equal(value, target):
            continue
        size = float((value.double() - target.double()).abs().max() / target.double().abs().max())
        worst = max(worst, Error(float("inf") if size != size else size, what))
    return worst


def error_of_all(parts: Iterable[Found], wanted: Found) -> Error:
    """Returns the worst of all ranks; what several ranks hold has the same bits, and all that is wanted is there."""
    merged: Found = {}
    worst = Error(0.0, "")
    for part in parts:
        worst = max(worst, error_of(part, wanted))
        for what, value in part.items():
            other = merged.setdefault(what, value)
            if not torch.equal(value, other):
                return Error(
                    float("inf"),
                    f"copies of {what} differ: {value.flatten()[:3].tolist()} {other.flatten()[:3].tolist()}",
                )
    missing = [what for what, value in wanted.items() if what not in merged and not what.startswith("buffer")]
    missing = [what for what in missing if bool(wanted[what].any())]
    return Error(float("inf"), f"nobody has {missing[0]}") if missing else worst


def over_loopback(name: str, case: str, *, num_ranks: int, num_microbatches: int) -> Error:
    """Returns how far a cell over threads is from the unsplit model; every buffer was full of NaN before."""
    given = CASES[case]
    schedule = schedule_of(name, given, num_ranks=num_ranks, num_microbatches=num_microbatches)
    if schedule is None:
        raise ValueError(f"there is no {name} of these sizes for {case}")
    model = given.model(schedule.num_stages)

    def rank(transport: ps.LoopbackTransport) -> Found:
        arguments = arguments_of(given, schedule)
        pipe = ps.Pipeline(model, given.loss_fn, transport=Poisoning(transport), **arguments)
        return given.loop(Piped(pipe, given))

    parts = ps.run_ranks(rank, num_ranks, timeout_seconds=120)
    wanted = expected(case, num_layers=schedule.num_stages, num_microbatches=num_microbatches)
    return error_of_all(parts, wanted)
