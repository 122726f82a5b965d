"""Where receives are posted: one message ahead on each channel, earlier where a sender would block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from penstock.ir.columns import ABSENT, Ints
from penstock.ir.ops import Op
from penstock.ir.schedule import Schedule
from penstock.ir.steps import awaited_gradients, contributed
from penstock.ir.waiting import NEVER, Waits, Walk
from penstock.lowering.messages import Messages


class Stream(NamedTuple):
    """What the ranks do in which order, receives left out, numbered through rank after rank.

    Attributes:
        ops: the number of each op.
        sends: the number of each send.
        reductions: the number of each reduction.
        first: the number at which each rank begins, and behind them the end.
    """

    ops: Ints
    sends: Ints
    reductions: Ints
    first: Ints


def postings(schedule: Schedule, messages: Messages, stream: Stream, reductions: list[Op]) -> tuple[Ints, Ints]:
    """Returns before which entry of `stream` receives are posted, in order, and the index of each receive."""
    sends, receives = messages.sends, messages.receives
    ends = np.array([channel[:2] for channel in messages.channels], np.int64).reshape(-1, 2)
    taker = receives.op - schedule.ends_pair[receives.op]  # a pair takes what it needs at its start
    before = _due(messages, _last_chances(stream)[taker], stream.first[ends[receives.channel, 1]])
    waits = [
        Waits(stream.sends, ends[sends.channel, 1], np.append(before, NEVER)[sends.match]),
        Waits(stream.ops[taker], ends[receives.channel, 0], np.append(stream.sends + 1, NEVER)[receives.match]),
        _awaited(schedule, stream, reductions),
    ]
    walk = Walk(stream.first, Waits.joined(waits))
    posted_early = np.zeros(len(before), np.int64)  # and in which order
    while blocked := [
        (rank, wait) for rank, wait in walk.run().items() if wait < len(sends.op) and sends.match[wait] != ABSENT
    ]:
        for rank, send in blocked:
            receive = sends.match[send]
            before[receive] = walk.reached[ends[sends.channel[send], 1]]
            posted_early[receive] = posted_early.max() + 1
            walk.release(rank)
    order = np.lexsort((posted_early, before))
    return before[order], order


def _last_chances(stream: Stream) -> Ints:
    """Returns for each op the entry before which its receives are posted at the latest: the reductions before it."""
    chances = stream.ops.copy()
    following = np.searchsorted(stream.ops, stream.reductions)
    same_rank = (
        following < np.searchsorted(stream.ops, stream.first)[np.searchsorted(stream.first, stream.reductions, "right")]
    )
    np.minimum.at(chances, following[same_rank], stream.reductions[same_rank])
    return chances


def _due(messages: Messages, takes: Ints, first: Ints) -> Ints:
    """Returns before which entry each receive is due: the taker of its channel's message before, or sooner.

    Args:
        messages: all messages.
        takes: before which entry each is posted at the latest.
        first: where the rank begins that takes it.
    """
    channel = messages.receives.channel
    follows = channel == np.concatenate([[ABSENT], channel[:-1]])
    due = np.minimum(takes, np.where(follows, np.concatenate([[0], takes[:-1]]), first))
    # Not later than the receives behind it on its channel: what channels are apart by hides one from the other.
    apart = channel * (int(takes.max(initial=0)) + 1)
    return np.minimum.accumulate((due + apart)[::-1])[::-1] - apart


def _awaited(schedule: Schedule, stream: Stream, reductions: list[Op]) -> Waits:
    """Returns what optimizer steps wait for: the reductions of the stage's other owners."""
    awaited = awaited_gradients(schedule)
    ops = {op: number for number, (_, _, op) in enumerate(schedule.ops())} if awaited else {}
    given = {contributed(op): at for op, at in zip(reductions, stream.reductions.tolist(), strict=True)}
    rows = [(int(stream.ops[ops[step]]), given.get(value, NEVER - 1)) for step in awaited for value in awaited[step]]
    entry, until = np.array(rows, np.int64).reshape(-1, 2).T
    return Waits(entry, np.searchsorted(stream.first[1:-1], until, side="right"), until + 1)
