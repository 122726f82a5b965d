"""The steady phase of batches that follow one another without a flush, cut out of a timeline.

          ┌ all ranks are at work ┐
    0: F F│F B F B F B F B F B F B│
    1:    │F B F B F B F B F B F B│F B
          begin                 end

What lies before `begin` and behind `end` is the fill and the drain of the stretch that was looked at, no bubble.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.ir.schedule import Schedule
from penstock.lowering import lower
from penstock.schedules.unbroken import part_ends, unbroken
from penstock.simulator.events import simulate
from penstock.timeline import Span, Timeline, Transmission, Wait


def steady_phase(timeline: Timeline) -> Timeline:
    """Returns the part of `timeline` between the last rank's first op and the first rank's last, begun at 0.

    Ops that are under way at its ends count as far as they lie in it. Memory is left out.

    Raises:
        UserError: there is no time at which all ranks are at work.
    """
    rows = [row for row in timeline.by_rank if row]
    begin = max((row[0].start for row in rows), default=0)
    end = min((row[-1].end for row in rows), default=0)
    if len(rows) < timeline.num_ranks or end <= begin:
        raise UserError("the ranks are never all at work in this timeline; look at more batches, e.g. 8")

    def at(moment: float) -> float:
        return min(max(moment, begin), end) - begin

    def within(each: Span | Wait | Transmission) -> bool:
        return each.end > begin and each.start < end

    return Timeline(
        timeline.num_ranks,
        tuple(each._replace(start=at(each.start), end=at(each.end)) for each in timeline.spans if within(each)),
        tuple(
            each._replace(start=at(each.start), end=at(each.end), sent=each.sent - begin)
            for each in timeline.waits
            if within(each)
        ),
        tuple(each._replace(start=at(each.start), end=at(each.end)) for each in timeline.transmissions if within(each)),
    )


def simulate_steady(schedule: Schedule, costs: StageCosts, *, batches: int, cluster: Cluster | None = None) -> Timeline:
    """Returns the steady phase of `batches` batches of `schedule` that follow one another without a flush.

    Args:
        schedule: of one batch; one that steps inside.
        costs: of its stages.
        batches: how many to look at, one before them and one behind.
        cluster: devices and links; None means equal devices and messages that take no time.

    Raises:
        ScheduleError: the schedule cannot go on without a flush.
        UserError: too few batches for a time at which all ranks are at work.
    """
    whole, ends = unbroken(schedule, batches + 2), part_ends(schedule, batches + 2)
    timeline = simulate(lower(whole), costs, cluster)
    inner = {op for ops, own in zip(whole.ranks, ends, strict=True) for op in ops[own[0] : own[batches]]}
    return steady_phase(
        replace(
            timeline,
            spans=tuple(span for span in timeline.spans if span.op in inner),
            waits=tuple(wait for wait in timeline.waits if wait.op in inner),
            transmissions=tuple(message for message in timeline.transmissions if message.op in inner),
        )
    )
