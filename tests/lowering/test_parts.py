"""A program in parts: every rank may pause at the end of each, and nothing is asked for before it is sent."""

from __future__ import annotations

import pytest

import penstock as ps
from penstock.ir.dependencies import carried
from penstock.ir.ops import RECEIVES, SENDS, Transfer
from penstock.lowering.parts import Parts, lower_in_parts

SCHEDULES = [
    ps.pipedream(3, 4),
    ps.pipedream(4, 4, vertical_sync=True),
    ps.pipedream_2bw(3, 3),
    ps.pipemare(3, 5),
    ps.pipemare(4, 8, microbatches_per_version=2),
]


def transfers(parts: Parts, kinds: frozenset[ps.OpKind]) -> dict[object, int]:
    """Returns value -> the part in which it is sent, or its receive posted."""
    found = {}
    for rank, entries in enumerate(parts.program.ranks):
        for part in range(len(parts.ends[rank])):
            begin, end = parts.span(rank, part)
            for entry in entries[begin:end]:
                if isinstance(entry, Transfer) and entry.kind in kinds:
                    found[carried(entry)] = part
    return found


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("times", [1, 3])
def test_a_receive_is_posted_in_the_part_in_which_its_message_is_sent(schedule: ps.Schedule, times: int) -> None:
    parts = lower_in_parts(schedule, times)
    assert transfers(parts, SENDS) == transfers(parts, RECEIVES)
    assert ps.verify(parts.program).program is parts.program


def test_parts_are_the_same_from_the_third_on() -> None:
    parts = lower_in_parts(ps.pipemare(3, 5), 5)
    for rank, entries in enumerate(parts.program.ranks):
        begin, end = parts.span(rank, 2)
        following = entries[slice(*parts.span(rank, 3))]
        assert [entry._replace(microbatch=entry.microbatch + 5) for entry in entries[begin:end]] == list(following)


def test_no_forward_and_no_optimizer_step_is_left_for_the_drain_of_the_last_rank() -> None:
    parts = lower_in_parts(ps.pipedream(3, 4), 2)
    assert [parts.span(rank, 2)[1] - parts.span(rank, 2)[0] for rank in range(3)] == [5, 3, 0]
    drain = parts.program.ranks[0][slice(*parts.span(0, 2))]
    assert " ".join(map(str, drain)) == "0RECV_B7 0B6 0S6 0B7 0S7"


def test_gradients_of_replicas_are_summed_part_by_part() -> None:
    parts = lower_in_parts(ps.pipedream(2, 3), 2, reduce_gradients=True)
    kinds = [entry.kind for entry in parts.program.ranks[1][slice(*parts.span(1, 1))]]
    assert kinds.count(ps.OpKind.REDUCE_GRAD) == kinds.count(ps.OpKind.S) == 3
