"""Bytes held over time on each rank.

- Throughout: parameters, gradients and optimizer state of every stage the rank holds (of evaluation: parameters only),
  and the rings of its receive buffers, as large as the program needs them.
- From the start of F to the end of B, or of I: activations; from the end of I to that of W: what I keeps.
- What is offloaded: on the rank that keeps it from the start of the copy there to the end of the copy back, on its own
  rank to the end of the one and from the start of the other. The host's memory is not counted.
- Where replicas share parameters: their shares throughout, and all of a stage's from the start of the gather to the end
  of the op before its RESHARD.
- Weight versions beside the first: from the start of the S that makes one until the last backward that uses it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.costs import StageCosts
from penstock.ir.dependencies import carried
from penstock.ir.ops import RECEIVES, Channel, OpKind, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import WeightRule
from penstock.timeline import Span, Transmission
from penstock.verifier.peaks import ring_sizes
from penstock.verifier.weights import weights_of

Curve = tuple[tuple[float, float], ...]

_KNOWN = (
    "parameter_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "activation_bytes",
    "deferred_bytes",
    "sharded_bytes",
)


def memory_curves(
    program: Program, costs: StageCosts, spans: Sequence[Sequence[Span]], transmissions: Sequence[Transmission] = ()
) -> tuple[Curve, ...]:
    """Returns per rank `(seconds, bytes)` steps by the rules at the top of this file.

    Empty where the costs know no bytes but those of the boundaries, which also stand for transfer times alone.

    Raises:
        VerificationError: optimizer steps that the weight rule does not allow.
    """
    num_stages = program.schedule.num_stages
    known = {field: costs.per_stage(field, num_stages) for field in _KNOWN}
    if not any(any(values) for values in known.values()):
        return ()
    evaluates = program.schedule.weight_rule is WeightRule.FROZEN
    kept = (0,) * num_stages if evaluates else known["activation_bytes"]
    shares = bool((program.columns.kind == OpKind.UNSHARD).any())
    weights = "sharded_bytes" if shares else "parameter_bytes"
    throughout = (weights,) if evaluates else (weights, *_KNOWN[1:3])
    rings = _ring_bytes(program, costs.per_stage("boundary_bytes", num_stages))
    versions = weights_of(program.schedule).changes
    copies = [message for message in transmissions if message.channel.kind in (OpKind.OFFLOAD, OpKind.RELOAD)]
    curves = []
    for rank, row in enumerate(spans):
        stages = program.schedule.placement.held(rank)
        held = rings[rank] + sum(known[field][stage] for field in throughout for stage in stages)
        curve: list[tuple[float, float]] = [(0, held)]
        steps = []
        for span in row:
            at, change = _change(span, kept, known["deferred_bytes"])
            steps.append((at, change + versions[rank].get(span.op, 0) * known["parameter_bytes"][span.op.stage]))
        moved = list(_moves(rank, copies, kept))
        if shares:
            gathers = [start for channel, _, start, _ in transmissions if channel == (rank, rank, OpKind.UNSHARD)]
            moved += _gathers(program.ranks[rank], row, gathers, known["parameter_bytes"])
        # What leaves comes first: it made room for what arrives.
        for at, change in sorted(steps + moved, key=lambda step: (step[0], step[1] > 0)) if moved else steps:
            if change:
                held += change
                curve.append((at, held))
        curves.append(tuple(curve))
    return tuple(curves)


def _change(span: Span, kept: Sequence[float], deferred: Sequence[float]) -> tuple[float, float]:
    """Returns when the op changes what is held, and by how much, its stage's weight versions apart."""
    stage = span.op.stage
    changes = {
        OpKind.F: (span.start, kept[stage]),
        OpKind.B: (span.end, -kept[stage]),
        OpKind.I: (span.end, deferred[stage] - kept[stage]),
        OpKind.W: (span.end, -deferred[stage]),
    }
    return changes.get(span.op.kind, (span.start, 0))


def _moves(rank: int, copies: Sequence[Transmission], kept: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yields when offloaded activations leave or reach `rank`, and their bytes."""
    for (source, target, _), op, start, end in copies:
        to_host, from_host = (source == target and op.kind == kind for kind in (OpKind.OFFLOAD, OpKind.RELOAD))
        if rank == source and not from_host:
            yield end, -kept[op.stage]
        if rank == target and not to_host:
            yield start, kept[op.stage]


def _gathers(
    entries: Sequence[Instruction], row: Sequence[Span], starts: Sequence[float], sizes: Sequence[float]
) -> Iterator[tuple[float, float]]:
    """Yields when a rank takes in and lets go the parameters of its stages, and their bytes.

    Args:
        entries: its instructions.
        row: its spans in order; UNSHARD is among them where it runs alone.
        starts: when each UNSHARD that runs beside them started.
        sizes: of each stage.
    """
    spans, beside = iter(row), iter(starts)
    coming, now = next(spans, None), 0.0
    for entry in entries:
        begin = now
        if coming is not None and entry == coming.op:
            begin, now = coming.start, coming.end
            coming = next(spans, None)
        elif entry.kind == OpKind.UNSHARD:
            begin = next(beside)
        if entry.kind == OpKind.UNSHARD:
            yield begin, sizes[entry.stage]
        elif entry.kind == OpKind.RESHARD:
            yield now, -sizes[entry.stage]


def _ring_bytes(program: Program, boundary: Sequence[float]) -> list[float]:
    """Returns per rank the bytes of its receive buffers; each is as large as the largest message of its channel."""
    held: list[float] = [0] * program.num_ranks
    if not any(boundary):
        return held
    largest: dict[Channel, float] = {}
    for _, _, entry in program.instructions():
        if isinstance(entry, Transfer) and entry.kind in RECEIVES:
            size = boundary[min(carried(entry).stage, entry.stage)]
            largest[entry.channel] = max(largest.get(entry.channel, 0), size)
    for channel, size in ring_sizes(program).items():
        held[channel.target] += size * largest[channel]
    return held
