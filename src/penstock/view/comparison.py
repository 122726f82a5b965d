"""All schedules at the same sizes and costs: a row of numbers each, and a reason for each that is not defined there.

What is held equal is the work of a rank: its whole share of the model on one microbatch takes the same seconds and
keeps the same bytes under every schedule. A rank that holds its share in v chunks takes 1/v of these seconds for each.
In a bidirectional schedule each of a rank's two stages is a whole share, of which it sees half of the microbatches.
A message takes the same time under all of them: what passes between stages is as large however short the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import ScheduleError, UserError
from penstock.ir.ops import SENDS
from penstock.ir.schedule import Schedule
from penstock.schedules.registry import SCHEDULES, Given, canonical_name, named_schedule
from penstock.schedules.sizes import check_sizes
from penstock.simulator import simulate
from penstock.timeline import Timeline
from penstock.verifier import Proof, verify


@dataclass(frozen=True)
class Row:
    """What one schedule achieves.

    Attributes:
        name: its name in the registry.
        num_chunks: stages that a rank holds in one direction, v.
        peak_activations: the most that a rank keeps from F to B or I, in activations of its share of the model on one
            microbatch; one of a chunk is 1/v.
        peak_deferred: the most that a rank keeps for W alone, counted likewise.
        weight_copies: copies of its share that a rank holds: replicas times weight versions.
        messages: sent between ranks in the whole step.
        timeline: its simulation.
    """

    name: str
    num_chunks: int
    peak_activations: Fraction
    peak_deferred: Fraction
    weight_copies: Fraction
    messages: int
    timeline: Timeline

    @property
    def bubble_fraction(self) -> float:
        """Idle / total over all ranks."""
        return self.timeline.bubble_fraction

    @property
    def makespan(self) -> float:
        """Seconds from 0 to the end of the last op."""
        return self.timeline.makespan

    @property
    def per_rank_span(self) -> float:
        """Seconds from first start to last end, on the rank where that is longest."""
        return self.timeline.per_rank_span


@dataclass(frozen=True)
class Comparison:
    """The schedules that are defined at these sizes, and why the others are not.

    Attributes:
        rows: one a schedule, best first.
        undefined: name -> reason.
    """

    rows: tuple[Row, ...]
    undefined: dict[str, str]


SORTS: dict[str, Callable[[Row], Any]] = {
    "bubble": lambda row: row.bubble_fraction,
    "makespan": lambda row: row.makespan,
    "span": lambda row: row.per_rank_span,
    "memory": lambda row: row.peak_activations,
    "copies": lambda row: row.weight_copies,
    "messages": lambda row: row.messages,
}
"""What rows can be sorted by, the least first."""


def compare(
    num_ranks: int,
    num_microbatches: int,
    *,
    costs: StageCosts | None = None,
    transfer_seconds: float = 0,
    sort: str = "bubble",
    names: Iterable[str] = SCHEDULES,
) -> Comparison:
    """Returns the schedules called `names`, each verified and simulated at these sizes.

    Args:
        num_ranks: p.
        num_microbatches: m.
        costs: seconds of F, I, W and B of a rank's whole share of the model on a microbatch; None means F = I = W = 1.
        transfer_seconds: from rank to rank, of any message.
        sort: a key of SORTS; equals are sorted by makespan, memory and name.
        names: schedules, by name or alias.

    Raises:
        UserError: sizes below 1, an unknown name, costs that differ between stages, or a transfer that is no time.
    """
    check_sizes("compare", num_ranks=num_ranks, num_microbatches=num_microbatches)
    costs = StageCosts() if costs is None else costs
    cluster = Cluster.uniform(num_ranks, latency_seconds=transfer_seconds)
    rows, undefined = [], {}
    for name in dict.fromkeys(map(canonical_name, names)):
        given = Given(chunk_costs(costs, SCHEDULES[name].num_chunks), cluster)
        try:
            schedule = named_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches, given=given)
        except ScheduleError as error:
            undefined[name] = str(error).removeprefix(f"{name}: ")
            continue
        rows.append(_row(name, schedule, costs, cluster))
    rows.sort(key=lambda row: (SORTS[sort](row), row.makespan, row.peak_activations, row.name))
    return Comparison(tuple(rows), undefined)


def pareto(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows than which no other has less of memory or bubble without more of the other, by memory."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.peak_activations, row.bubble_fraction, row.name)):
        if not best or row.bubble_fraction < best[-1].bubble_fraction:
            best.append(row)
    return best


def _row(name: str, schedule: Schedule, costs: StageCosts, cluster: Cluster) -> Row:
    proof = verify(schedule)
    chunks = schedule.placement.num_chunks
    return Row(
        name,
        chunks,
        Fraction(max(proof.peak_activations), chunks),
        Fraction(max(proof.peak_deferred), chunks),
        _weight_copies(proof),
        sum(entry.kind in SENDS for _, _, entry in proof.program.instructions()),
        simulate(proof.program, chunk_costs(costs, chunks), cluster),
    )


def _weight_copies(proof: Proof) -> Fraction:
    placement = proof.program.schedule.placement
    held = (len(placement.held(rank)) * versions for rank, versions in enumerate(proof.weight_versions))
    return Fraction(max(held), placement.num_chunks)


def chunk_costs(costs: StageCosts, num_chunks: int) -> StageCosts:
    """Returns what one of `num_chunks` equal parts of a stage costs; whole numbers become exact fractions.

    Raises:
        UserError: costs given a stage: a rank's whole share is one number.
    """
    parts: dict[str, Any] = {}
    for field in ("forward", "input_grad", "weight_grad", "backward"):
        value = getattr(costs, field)
        if isinstance(value, tuple):
            raise UserError(f"{field}={value}; give one number, the seconds of a rank's whole share of the model")
        # A Fraction of a whole number, because it keeps the simulation exact.
        parts[field] = Fraction(value, num_chunks) if isinstance(value, int) else value and value / num_chunks
    return StageCosts(**parts)
