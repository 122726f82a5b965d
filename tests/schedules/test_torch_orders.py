"""Orders that torch.distributed.pipelining has too: found equal, op for op."""

from types import SimpleNamespace

import pytest

from penstock import OpKind, breadth_first, interleaved_1f1b, verify

INTERLEAVED = [
    (1, 3, 2), (2, 2, 2), (2, 8, 3), (3, 9, 2), (4, 8, 2), (4, 16, 4), (8, 24, 3), (3, 5, 1),
    (4, 10, 2), (4, 3, 2), (4, 6, 3), (3, 4, 2), (5, 12, 2), (8, 1, 2),  # p does not divide m
]  # fmt: skip
"""(p, m, v)"""


def _torch_orders(name: str, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[list[str]]:
    """Returns the text of each rank's ops in torch's schedule, whose class needs no more than sizes."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    stage = SimpleNamespace(group_size=num_ranks, group_rank=0, num_stages=num_ranks * num_chunks)
    made = getattr(schedules, name)([stage] * num_chunks, num_microbatches)
    return [[str(action) for action in made.pipeline_order[rank] if action is not None] for rank in range(num_ranks)]


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "num_chunks"), INTERLEAVED)
def test_interleaved_1f1b_is_torchs(num_ranks: int, num_microbatches: int, num_chunks: int) -> None:
    ours = interleaved_1f1b(num_ranks, num_microbatches, num_chunks=num_chunks)
    theirs = _torch_orders("ScheduleInterleaved1F1B", num_ranks, num_microbatches, num_chunks)
    assert [list(map(str, ops)) for ops in ours.ranks] == theirs


def test_where_torch_refuses_ours_is_defined() -> None:
    with pytest.raises(ValueError, match="multiple of the number of rounds"):
        _torch_orders("ScheduleInterleaved1F1B", 4, 9, 2)
    verify(interleaved_1f1b(4, 9))


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "num_chunks"), [(1, 2, 2), (2, 4, 2), (3, 2, 3), (4, 8, 2)])
def test_breadth_first_is_torchs_but_for_microbatches_in_order_on_the_way_back(
    num_ranks: int, num_microbatches: int, num_chunks: int
) -> None:
    ours = breadth_first(num_ranks, num_microbatches, num_chunks=num_chunks)
    theirs = _torch_orders("ScheduleLoopedBFS", num_ranks, num_microbatches, num_chunks)
    last = num_microbatches - 1
    mirrored = [
        [str(op if op.kind == OpKind.F else op._replace(microbatch=last - op.microbatch)) for op in ops]
        for ops in ours.ranks
    ]
    assert mirrored == theirs
