"""DualPipe and DualPipeV: two streams of microbatches that meet, and forwards that overlap backwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from penstock.errors import ScheduleError
from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import check_sizes


class _Stream(NamedTuple):
    """A rank's part in one stream of microbatches."""

    stage: int
    replica: int
    microbatches: range


def dualpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule of DeepSeek-AI 2024 (DeepSeek-V3, section 3.2.1: DualPipe).

        rank 0: F0   F1   F2   F4@1 I4@1 W4@1 F5@1 F3+B5@1 F6@1+B0 B6@1    F7@1+B1 B7@1 I2   W2   I3   W3
        rank 1: .    F0   F4@1 F1   F5@1 F2   B4@1 F6@1+B0 F3+B5@1 F7@1+B1 B6@1    B2   I7@1 I3   W7@1 W3
        rank 2: .    F4@1 F0   F5@1 F1   F6@1 B0   F2+B4@1 F7@1+B1 F3+B5@1 B2      B6@1 I3   I7@1 W3   W7@1
        rank 3: F4@1 F5@1 F6@1 F0   I0   W0   F1   F7@1+B1 F2+B4@1 B2      F3+B5@1 B3   I6@1 W6@1 I7@1 W7@1

    The paper's B is a full backward, as ours; what the zero-bubble papers call B is our I. Replica 0 runs down the
    ranks with the first half of the microbatches, replica 1 up with the rest, so every rank holds two stages: two
    copies of the parameters, whose gradients are summed as soon as they are complete. In the steady phase the forward
    of one direction overlaps the backward of the other.

    Peak activations p+1 on every rank. With P the seconds of an overlapped pair, for F = I ≥ W and F+B ≥ P ≥ B: the
    makespan is m·(F+B) - (m-p-1)·(F+B-P) + (p/2-1)·(P+B-3W), and rank i, the r-th from its end, r = min(i, p-1-i),
    stands still for (p/2-1)·(P+B-3W) - max(p/2-2-r, 0)·(F+B-P); the paper's bubble (p/2-1)·(P+B-3W) is that of the
    middle. Defined for even p and even m ≥ 2p.

    Raises:
        ScheduleError: p or m below 1 or odd, or m < 2p.
    """
    check_sizes("dualpipe", num_ranks=num_ranks, num_microbatches=num_microbatches)
    for name, value in (("num_ranks", num_ranks), ("num_microbatches", num_microbatches)):
        if value % 2:
            raise ScheduleError(
                f"dualpipe: {name}={value}; its two directions share ranks and microbatches equally, use an even "
                f"number, e.g. {name}={value + 1}"
            )
    _check_microbatches("dualpipe", num_ranks, num_microbatches)
    each, half = num_microbatches // 2, num_ranks // 2
    down = [_Stream(rank, 0, range(each)) for rank in range(num_ranks)]
    up = [_Stream(num_ranks - 1 - rank, 1, range(each, num_microbatches)) for rank in range(num_ranks)]
    from_above = [_rank(down[rank], up[rank], half=half, place=rank) for rank in range(half)]
    from_below = [_rank(up[rank], down[rank], half=half, place=num_ranks - 1 - rank) for rank in range(half, num_ranks)]
    placement = Placement.replicas(range(num_ranks), range(num_ranks - 1, -1, -1))
    return _schedule("dualpipe", placement, num_microbatches, from_above + from_below)


def dualpipe_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the half of DualPipe that one copy of the model needs (DeepSeek-AI 2025, DualPipeV, "cut in half").

        rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3+3B1 3F2+0B0 3B2     3F3+0B1 3B3 0I2 0W2 0I3 0W3
        rank 1: .   1F0 2F0 1F1 2F1 1F2 2B0 2F2+1B0 1F3+2B1 2F3+1B1 2B2     1B2 2I3 1I3 2W3 1W3

    What the zero-bubble papers call B is our I. Rank i holds stages i and 2p-1-i: what were two directions are the
    two arms of the V.

    Peak activations 2p+1 chunks on every rank. With the seconds of one chunk, P those of an overlapped pair, for
    F = I ≥ W and F+B ≥ P ≥ B: rank i stands still for (p-1)·(P+B-3W) - max(p-2-i, 0)·(F+B-P), and the makespan is
    2m·(F+B) - (2m-2p-1)·(F+B-P) + (p-1)·(P+B-3W). Defined for every p ≥ 1 and m ≥ 2p.

    Raises:
        ScheduleError: p or m below 1, or m < 2p.
    """
    check_sizes("dualpipe_v", num_ranks=num_ranks, num_microbatches=num_microbatches)
    _check_microbatches("dualpipe_v", num_ranks, num_microbatches)
    everything = range(num_microbatches)
    ranks = [
        _rank(
            _Stream(rank, 0, everything),
            _Stream(2 * num_ranks - 1 - rank, 0, everything),
            half=num_ranks,
            place=rank,
        )
        for rank in range(num_ranks)
    ]
    return _schedule("dualpipe_v", Placement.v_shaped(num_ranks), num_microbatches, ranks)


def _check_microbatches(name: str, num_ranks: int, num_microbatches: int) -> None:
    if num_microbatches < 2 * num_ranks:
        raise ScheduleError(
            f"{name}: num_microbatches={num_microbatches} on {num_ranks} ranks do not fill it; use at least 2 a rank, "
            f"e.g. num_microbatches={2 * num_ranks}"
        )


_Row = tuple[tuple[Op, ...], tuple[int, ...]]
"""A rank's ops, and the positions at which its pairs start."""


def _schedule(name: str, placement: Placement, num_microbatches: int, ranks: list[_Row]) -> Schedule:
    orders, overlapped = zip(*ranks, strict=True)
    return Schedule(name, placement, num_microbatches, orders, overlapped=overlapped)


def _rank(near: _Stream, far: _Stream, *, half: int, place: int) -> _Row:
    """Returns the order of the rank that is `place` ranks from the end where `near` enters, of `half` ranks there.

    Stream 0 is `near`, stream 1 is `far`; `F0+B1` is an overlapped pair, `W` the oldest weight gradient not done.
    """
    outside, inside = half - place - 1, place + 1
    steady = len(near.microbatches) - 2 * half + inside
    warm_up = ["F0"] * 2 * outside + ["F0", "F1"] * inside + ["I1", "W", "F1"] * outside
    pairs = ["F0+B1", "F1+B0"] * steady + ["B1", "F1+B0"] * outside
    if outside == 0:
        pairs[:1] = ["F0", "B1"]  # the middle starts them one by one: the other middle rank waits for this B
    turns = ["1", "0"] * inside
    cool_down = [f"B{stream}" for stream in turns[:inside]] + [f"I{stream}" for stream in turns[inside:]]
    return _resolved([*warm_up, *pairs, *cool_down, *["W", "I0"] * outside, *["W"] * inside], (near, far))


def _resolved(words: Iterable[str], streams: tuple[_Stream, _Stream]) -> _Row:
    """Returns the ops that `words` stand for: of each kind and stream one microbatch after the other."""
    forwards, backwards = (tuple(iter(stream.microbatches) for stream in streams) for _ in range(2))
    deferred: deque[Op] = deque()
    ops: list[Op] = []
    pairs: list[int] = []
    for word in words:
        pairs.extend([len(ops)] if "+" in word else [])
        for part in word.split("+"):
            if part == "W":
                ops.append(deferred.popleft())
                continue
            kind, index = OpKind[part[0]], int(part[1])
            microbatches = forwards if kind == OpKind.F else backwards
            op = Op(kind, streams[index].stage, next(microbatches[index]), streams[index].replica)
            ops.append(op)
            deferred.extend([op._replace(kind=OpKind.W)] if kind == OpKind.I else [])
    return tuple(ops), tuple(pairs)
