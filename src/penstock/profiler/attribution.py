"""Why a step took what it took: predicted against measured, cause by cause.

The prediction's parts are replaced by what was measured, one after another, and the program is simulated each time:

    predicted ──compute──> ──host──> ──transfer──> ──waiting──> measured

Each cause is the change at its arrow, so that they add up. Waiting is what is left when every op takes its measured
median: ops that took longer at one time than at another, for which other ranks waited.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from statistics import median

from penstock.cluster import Cluster, Device
from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.ir.halves import whole_backwards
from penstock.ir.ops import OpKind
from penstock.ir.program import Instruction, Program
from penstock.profiler.prediction import Prediction
from penstock.profiler.running import as_run
from penstock.profiler.stages import Parts, Seconds
from penstock.simulator import simulate
from penstock.timeline import Span, Timeline


@dataclass(frozen=True)
class Causes:
    """A step predicted and measured, and what the difference is made of, in seconds.

    Attributes:
        predicted: the step by the profile.
        measured: the median of the steps.
        compute: layers that took longer (above 0) or less than in the profile.
        host: the engine between ops, sending, and what is outside the program.
        transfer: messages under way and taking them.
        waiting: ranks that waited for ops that took longer than their median.
    """

    predicted: float
    measured: float
    compute: float
    host: float
    transfer: float
    waiting: float


def causes(
    prediction: Prediction, program: Program, timelines: Sequence[Timeline], *, step_seconds: Sequence[float] = ()
) -> Causes:
    """Returns what the difference between prediction and measurement is made of.

    Args:
        prediction: of a step of `program`.
        program: what ran.
        timelines: of some steps.
        step_seconds: of the same steps, from call to return; empty: the prediction's time outside the program is
            taken for theirs.

    Raises:
        UserError: no timeline.
    """
    if not timelines:
        raise UserError("timelines is empty; run some steps and give pipe.trace(10)")
    ran = median(timeline.makespan for timeline in timelines)
    measured = median(step_seconds) if step_seconds else ran + prediction.step_seconds
    found = _measured(timelines, prediction.parts, program, prediction.cluster.devices)
    program = as_run(program)
    parts, cluster = prediction.parts, prediction.cluster
    by_plan = prediction.timeline.makespan
    with_compute = _seconds(parts._replace(compute=found.compute), prediction.costs, program, cluster)
    with_host = _seconds(found._replace(transfer=parts.transfer), prediction.costs, program, cluster)
    no_links = Cluster(cluster.devices, Cluster.uniform(program.num_ranks).levels)
    with_transfer = _seconds(found, prediction.costs, program, no_links)
    outside = measured - ran - prediction.step_seconds
    return Causes(
        prediction.seconds,
        measured,
        with_compute - by_plan,
        with_host - with_compute + outside,
        with_transfer - with_host,
        ran - prediction.closing_seconds - with_transfer,
    )


def _seconds(parts: Parts, costs: StageCosts, program: Program, cluster: Cluster) -> float:
    changed = replace(
        costs,
        forward=parts.whole(OpKind.F),
        backward=parts.whole(OpKind.B),
        input_grad=parts.whole(OpKind.I),
        weight_grad=parts.whole(OpKind.W),
        reduce_grad=parts.whole(OpKind.REDUCE_GRAD),
    )
    return simulate(program, changed, cluster).makespan


_Key = tuple[OpKind, int]
_Found = dict[_Key, list[float]]


def _measured(timelines: Sequence[Timeline], planned: Parts, program: Program, devices: Sequence[Device]) -> Parts:
    """Returns the medians of what ops were made of, at speed 1 and awake; of ops that did not run what was planned."""
    compute: _Found = defaultdict(list)
    host: _Found = defaultdict(list)
    transfer: _Found = defaultdict(list)
    wholes = [{entries[at] for at in whole_backwards(entries)} for entries in program.ranks]
    for timeline in timelines:
        asked = {(wait.rank, wait.op): wait for wait in timeline.waits}
        for rank, row in enumerate(timeline.by_rank):
            speed = devices[rank].speed
            spans = list(_as_run(row, wholes[rank]))
            for (key, span), following in zip(spans, [*(each for _, each in spans[1:]), None], strict=True):
                wait = asked.get((rank, span.op))
                waking = 0.0
                if wait is not None:
                    waking = devices[rank].waking_seconds(wait.end - wait.start)
                    transfer[key].append((wait.end - min(max(wait.sent, wait.start), wait.end)) * speed)
                compute[key].append((span.end - span.start - waking) * speed)
                if following is not None:
                    then = asked.get((rank, following.op))
                    host[key].append(((then.start if then else following.start) - span.end) * speed)
    return Parts(_medians(compute, planned.compute), _medians(host, planned.host), _medians(transfer, planned.transfer))


def _as_run(row: Sequence[Span], wholes: Set[Instruction]) -> Iterator[tuple[_Key, Span]]:
    """Yields the spans of a rank with what they ran: an I of `wholes` and its W, as one B."""
    whole: Span | None = None
    for span in row:
        if whole is not None and span.op.kind == OpKind.W and span.op[1:] == whole.op[1:]:
            yield (OpKind.B, span.op.stage), whole._replace(end=span.end)
            whole = None
        elif span.op in wholes:
            whole = span
        else:
            yield (span.op.kind, span.op.stage), span


def _medians(found: Mapping[tuple[OpKind, int], list[float]], planned: Seconds) -> Seconds:
    return {
        kind: tuple(
            max(0.0, median(found[kind, stage])) if found.get((kind, stage)) else seconds
            for stage, seconds in enumerate(row)
        )
        for kind, row in planned.items()
    }
