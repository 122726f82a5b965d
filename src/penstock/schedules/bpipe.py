"""BPipe: 1F1B whose first ranks lend memory from its last ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.one_f_one_b import one_f_one_b
from penstock.schedules.sizes import check_sizes


def bpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule of Kim et al. 2023 (BPipe, ICML): 1F1B within ⌈(p+2)/2⌉ activations on every rank.

        rank 0: F0 F1 F2,OFFLOAD2 F3 .  .  .  B0 F4,OFFLOAD4 B1,RELOAD2 F5 B2 .  B3,RELOAD4 .  B4 .  B5
        rank 1: .  F0 F1          F2 .  .  B0 F3 B1          F4         B2 F5 B3 .          B4 .  B5 .
        rank 2: .  .  F0          F1 .  B0 F2 B1 F3          B2         F4 B3 F5 B4         .  B5 .  .
        rank 3: .  .  .           F0 B0 F1 B1 F2 B2          F3         B3 F4 B4 F5         B5 .  .  .

    The order of F and B is that of 1F1B, where rank i holds min(p-i, m) activations: together with rank p-1-i never
    more than p+1. Where rank i would hold more than K = ⌈(p+2)/2⌉, it offloads to rank p-1-i what it needs last, and
    reloads it one backward ahead. In the steady phase the copy away runs beside the backward that follows, the copy
    back beside the forward.

    Peak activations for m ≥ 2p, those kept for another rank included: min(p-i, K) on rank i of the upper half (the
    middle one among them); p+2-K ≤ K on its rank p-1-i if it offloads (p-i > K), else i+1. Makespan (m+p-1)·(F+B), as
    1F1B, if a copy takes no longer than F and no longer than B. Defined for every p ≥ 1 and m ≥ 1.

    Raises:
        ScheduleError: p or m below 1.
    """
    check_sizes("bpipe", num_ranks=num_ranks, num_microbatches=num_microbatches)
    limit = (num_ranks + 3) // 2
    ranks = tuple(tuple(_balanced(ops, limit)) for ops in one_f_one_b(num_ranks, num_microbatches).ranks)
    keepers = tuple(reversed(range(num_ranks)))
    return Schedule("bpipe", Placement.looped(num_ranks), num_microbatches, ranks, keepers=keepers)


def _balanced(ops: Sequence[Op], limit: int) -> Iterator[Op]:
    """Yields `ops`, a rank's order of 1F1B, with what keeps it from holding more than `limit` activations.

    A forward's activations leave at once where there would be no room for what comes before they are needed: of all
    that are held they are needed last. They come back right after the backward before theirs.
    """
    held = 0
    away: set[int] = set()
    for position, op in enumerate(ops):
        yield op
        if op.kind == OpKind.F:
            held += 1
            if held + _growth(ops[position + 1 : position + 3], away) > limit:
                yield op._replace(kind=OpKind.OFFLOAD)
                away.add(op.microbatch)
                held -= 1
        else:
            held -= 1
            if op.microbatch + 1 in away:
                yield op._replace(kind=OpKind.RELOAD, microbatch=op.microbatch + 1)
                away.remove(op.microbatch + 1)
                held += 1


def _growth(following: Sequence[Op], away: set[int]) -> int:
    """Returns how many activations more the rank holds at most after the forward or the backward and forward ahead."""
    if following[0].kind == OpKind.F:
        return 1
    reloads = following[0].microbatch + 1 in away
    return reloads - 1 + sum(op.kind == OpKind.F for op in following[1:])
