from __future__ import annotations

from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.interleaved_1f1b import chunk_turns
from penstock.schedules.one_f_one_b import alternate


def gis(num_ranks: int, num_microbatches: int, *, num_chunks: int = 2, group_size: int | None = None) -> Schedule:
    group = num_ranks if group_size is None else group_size
    whole = -(-num_microbatches // group) * group
    turns = chunk_turns(whole, num_chunks=num_chunks, group_size=group)
    last = num_chunks - 1
    ranks = []
    for rank in range(num_ranks):
        order = alternate(
            [Op(OpKind.F, chunk * num_ranks + rank, microbatch) for chunk, microbatch in turns],
            [Op(OpKind.I, (last - chunk) * num_ranks + rank, microbatch) for chunk, microbatch in turns],
            ahead=last * group + num_ranks - 1 - rank,
        )
        out = []
        for op in order:
            if op.microbatch < num_microbatches:
                out.append(op)
                if op.kind == OpKind.I:
                    out.append(op._replace(kind=OpKind.W))
        ranks.append(tuple(out))
    return Schedule("gis", Placement.looped(num_ranks, num_chunks), num_microbatches, tuple(ranks))
