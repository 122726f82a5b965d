"""What a message takes between two ranks, over the transport that will carry it.

    sender     |--- send ---|                                   stands still: copies, or hands over
    receiver   … waits …            |latency|--- receive ---|    waits, is woken, copies
    receiver               … busy …          |--- receive ---|   the message was there already

Each of the three for messages of several sizes, a line through each. Both ends have run a layer before, as in training:
the runtime's code is in no cache of the core, and each part takes twice as long and more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from penstock.ir.dependencies import Value, ValueKind
from penstock.ir.ops import Channel, OpKind, Transfer
from penstock.profiler.between import OtherWork
from penstock.profiler.values import MessageCosts
from penstock.runtime.links import Links
from penstock.runtime.stage_work import boundary_of
from penstock.runtime.transport.protocol import Transport

_REPEATS, _WARM_UP = 15, 3
_SMALLEST, _LEAST_LARGEST = 256, 1 << 16
_SAME_CLOCK_SECONDS = 1e-3
"""Clocks that seem to differ by less are one, read at the two ends of a message: hosts start at different times."""

_WAITING, _READY = 0, 1
"""The receiver asks before the message is sent, or when it is there."""

_VALUE = Value(ValueKind.OUTPUT, 0, 0, 0)


class _Way(NamedTuple):
    """The channels of one direction: what is timed, and the words around it."""

    data: Channel
    word: Channel
    answer: Channel


class _Trial(NamedTuple):
    """Bytes of the messages, whether the receiver waits for them, and where they live."""

    size: int
    mode: int
    device: torch.device


def message_costs(
    transport: Transport, source: int, target: int, *, largest: int, device: torch.device
) -> MessageCosts:
    """Returns what messages from rank `source` to rank `target` take; every rank calls it and learns it.

    Args:
        transport: between the ranks.
        source: the rank that sends.
        target: the rank that receives.
        largest: bytes of the largest message that will be sent.
        device: where messages live.
    """
    way = _Way(Channel(source, target, OpKind.F), Channel(source, target, OpKind.B), Channel(target, source, OpKind.F))
    transport.open(sorted(way))
    offsets = transport.clock_offsets()
    largest = max(largest, _LEAST_LARGEST)
    sizes = [_SMALLEST, largest // 32 * 4, largest // 4 * 4]
    row = torch.zeros(len(sizes), 2, _REPEATS, 2, dtype=torch.float64)
    if transport.rank in (source, target):
        end = _sender if transport.rank == source else _receiver
        links = Links(transport, device=device)
        for index, size in enumerate(sizes):
            for mode in (_WAITING, _READY):
                moments = end(transport, links, way, _Trial(size, mode, device))
                row[index, mode] = torch.tensor(moments[_WARM_UP:], dtype=torch.float64)
    rows = transport.gather(row)
    ahead = offsets[target] - offsets[source]
    return _fitted(sizes, rows[source], rows[target] - (ahead if abs(ahead) > _SAME_CLOCK_SECONDS else 0.0))


def _sender(transport: Transport, links: Links, way: _Way, trial: _Trial) -> list[tuple[float, float]]:
    """Sends some messages; returns when each send began and ended."""
    word = torch.zeros(1)
    boundary = boundary_of(torch.zeros(trial.size // 4, device=trial.device))
    moments, work = [], OtherWork()
    for _ in range(_WARM_UP + _REPEATS):
        transport.recv(way.answer, word).wait()
        links.begin(trial.size)
        work.run()  # the receiver waits longer than a wait asks before it sleeps
        for tensor in boundary.tensors:
            tensor.zero_()  # as a stage has just made it
        begin = time.perf_counter()
        links.offer(_VALUE, boundary)
        links.send(Transfer(OpKind.SEND_F, *_VALUE[1:], way.data), _VALUE)
        links.reap()
        moments.append((begin, time.perf_counter()))
        sent = transport.send(way.word, word)
        links.end()
        sent.wait()
    return moments


def _receiver(transport: Transport, links: Links, way: _Way, trial: _Trial) -> list[tuple[float, float]]:
    """Receives some messages; returns when it asked for each, set back by the posting, and when it had it."""
    word = torch.zeros(1)
    moments, work = [], OtherWork()
    for _ in range(_WARM_UP + _REPEATS):
        links.begin(trial.size)
        work.run()
        begin = time.perf_counter()
        links.post(Transfer(OpKind.RECV_F, 1, *_VALUE[2:], way.data), _VALUE, 0)
        posting = time.perf_counter() - begin
        answered = transport.send(way.answer, word)
        coming = transport.recv(way.word, word)
        if trial.mode == _READY:
            coming.wait()
            work.run()
        begin = time.perf_counter() - posting
        links.take(_VALUE, way.data)
        moments.append((begin, time.perf_counter()))
        coming.wait()
        answered.wait()
        links.end()
    return moments


def _fitted(sizes: Sequence[int], sent: torch.Tensor, received: torch.Tensor) -> MessageCosts:
    """Returns the lines through what was measured.

    Args:
        sizes: of the messages.
        sent: by size, mode and repetition when each send began and ended.
        received: likewise when each was asked for and there, on the sender's clock.
    """
    send = [_middle(ends[_WAITING, :, 1] - ends[_WAITING, :, 0]) for ends in sent]
    receive = [_middle(ends[_READY, :, 1] - ends[_READY, :, 0]) for ends in received]
    under_way = [
        max(0.0, _middle(there[_WAITING, :, 1] - left[_WAITING, :, 1]) - taken)
        for there, left, taken in zip(received, sent, receive, strict=True)
    ]
    return MessageCosts(*_line(sizes, send), *_line(sizes, receive), *_line(sizes, under_way))


def _middle(seconds: torch.Tensor) -> float:
    return float(median(seconds.tolist()))


def _line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Returns constant and slope of the line with the least relative error, neither of them negative."""
    scale = np.maximum(np.array(seconds), 1e-6)
    slope, constant = np.polyfit(np.array(sizes, float), np.array(seconds), 1, w=1 / scale)
    if slope < 0:
        return float(np.mean(seconds)), 0.0
    if constant < 0:
        return 0.0, float(np.mean(np.array(seconds) / np.array(sizes)))
    return float(constant), float(slope)
