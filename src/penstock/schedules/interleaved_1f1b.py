"""Interleaved 1F1B, Megatron's schedule: several chunks a rank, which take turns by groups of microbatches."""

from __future__ import annotations

from itertools import repeat

from penstock.errors import ScheduleError
from penstock.ir.collector import collector_paused
from penstock.ir.columns import rows_of
from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.one_f_one_b import alternate
from penstock.schedules.sizes import check_sizes


@collector_paused
def interleaved_1f1b(
    num_ranks: int, num_microbatches: int, *, num_chunks: int = 2, group_size: int | None = None
) -> Schedule:
    """Returns the schedule of Narayanan et al. 2021 (Efficient Large-Scale Training with Megatron-LM, section 2.2).

        rank 0: 0F0 0F1 0F2 3F0 3F1 3F2 .   .   3B0 .   3B1 .   3B2 0B0 0B1 0B2
        rank 1: .   1F0 1F1 1F2 4F0 4F1 4F2 4B0 .   4B1 .   4B2 1B0 1B1 1B2 .
        rank 2: .   .   2F0 2F1 2F2 5F0 5B0 5F1 5B1 5F2 5B2 2B0 2B1 2B2 .   .

    A rank takes the microbatches in groups of g: each group through its first chunk, then through the next. The
    backwards go through the chunks from the last to the first. Before its first backward, rank i runs
    2(p-1-i) + (v-1)·g + 1 forwards, or all m·v.

    With F and B the seconds of one chunk: bubble time (p-1)·(F+B) for m ≥ p, which is bubble_ratio (p-1)/(v·m) and
    bubble_fraction (p-1)/(v·m+p-1), whatever g; (v-1)·(p-m)·(F+B) more for m < p. Transfers of c ≤ (F+B)/3 seconds
    add 2(p·v-1)·c for m a multiple of p. Peak activations min(2(p-1-i) + (v-1)·g + 1, m·v) chunks on rank i, at most
    v·p+p-1 for g = p.

    Defined for every p, m and v ≥ 1. Of one chunk it is eager 1F1B.

    Args:
        num_ranks: p.
        num_microbatches: m.
        num_chunks: v, chunks a rank.
        group_size: g, at least p and at most m; the last group may be smaller, but not below p (Megatron's
            `microbatch_group_size_per_vp_stage`). None takes the smallest that is allowed: p where p divides m
            (Megatron's default), else what torch takes where it takes any. Fewer than p microbatches are one group.

    Raises:
        ScheduleError: p, m or v below 1, or a group size that is not allowed.
    """
    check_sizes("interleaved_1f1b", num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=num_chunks)
    group = _group_size(num_ranks, num_microbatches, group_size)
    turns = chunk_turns(num_microbatches, num_chunks=num_chunks, group_size=group)
    last = num_chunks - 1
    ranks = tuple(
        alternate(
            _ops(OpKind.F, [(chunk * num_ranks + rank, microbatch) for chunk, microbatch in turns]),
            _ops(OpKind.B, [((last - chunk) * num_ranks + rank, microbatch) for chunk, microbatch in turns]),
            ahead=2 * (num_ranks - 1 - rank) + last * group,
        )
        for rank in range(num_ranks)
    )
    return Schedule("interleaved_1f1b", Placement.looped(num_ranks, num_chunks), num_microbatches, ranks)


def chunk_turns(num_microbatches: int, *, num_chunks: int, group_size: int) -> list[tuple[int, int]]:
    """Returns the order of one rank's forwards as `(chunk, microbatch)`: group by group, each through all chunks."""
    return [
        (chunk, microbatch)
        for first in range(0, num_microbatches, group_size)
        for chunk in range(num_chunks)
        for microbatch in range(first, min(first + group_size, num_microbatches))
    ]


def _ops(kind: OpKind, work: list[tuple[int, int]]) -> list[Op]:
    """Returns the op of `kind` for each (stage, microbatch)."""
    return rows_of(Op, repeat(kind, len(work)), *zip(*work, strict=True), repeat(0, len(work)))


def _group_size(num_ranks: int, num_microbatches: int, asked: int | None) -> int:
    """Returns the group size asked for, if every group fills the pipeline; without one, the smallest that does."""
    fewest = min(num_ranks, num_microbatches)
    smallest = next(size for size in range(fewest, num_microbatches + 1) if not 0 < num_microbatches % size < num_ranks)
    if asked is None:
        return smallest
    check_sizes("interleaved_1f1b", group_size=asked)
    if asked < fewest:
        why = f"a group has to fill the pipeline of num_ranks={num_ranks}"
    elif asked > num_microbatches:
        why = f"there are only num_microbatches={num_microbatches}"
    elif 0 < num_microbatches % asked < num_ranks:
        why = (
            f"num_microbatches={num_microbatches} leaves a last group of {num_microbatches % asked}, which does not "
            f"fill the pipeline of num_ranks={num_ranks}"
        )
    else:
        return asked
    raise ScheduleError(f"interleaved_1f1b: group_size={asked}: {why}; use e.g. group_size={smallest}")
