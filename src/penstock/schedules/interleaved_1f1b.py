from __future__ import annotations

from penstock.errors import ScheduleError
from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.one_f_one_b import alternate
from penstock.schedules.sizes import check_sizes


def interleaved_1f1b(
    num_ranks: int, num_microbatches: int, *, num_chunks: int = 2, group_size: int | None = None
) -> Schedule:
    if group_size is None:
        group_size = next(g for g in range(min(num_ranks,num_microbatches), num_microbatches + 1) if not 0 < num_microbatches % g < num_ranks)
    turns = chunk_turns(num_microbatches, num_chunks=num_chunks, group_size=group_size)
    last = num_chunks - 1
    ranks = tuple(
        alternate(
            [Op(OpKind.F, chunk * num_ranks + rank, microbatch) for chunk, microbatch in turns],
            [Op(OpKind.B, (last - chunk) * num_ranks + rank, microbatch) for chunk, microbatch in turns],
            ahead=2 * (num_ranks - 1 - rank) + last * group_size,
        )
        for rank in range(num_ranks)
    )
    return Schedule("interleaved_1f1b", Placement.looped(num_ranks, num_chunks), num_microbatches, ranks)


def chunk_turns(num_microbatches: int, *, num_chunks: int, group_size: int) -> list[tuple[int, int]]:
    """Returns `(chunk, microbatch)` of each forward of a rank in order: group by group, through every chunk."""
    return [
        (chunk, microbatch)
        for first in range(0, num_microbatches, group_size)
        for chunk in range(num_chunks)
        for microbatch in range(first, min(first + group_size, num_microbatches))
    ]
