"""Moments on a stream become the host's time, and nothing waits for the device before somebody asks."""

from __future__ import annotations

import time
from typing import ClassVar

import pytest
import torch

from penstock.runtime.recorder import Recorder


class Stream:
    """A device whose clock runs in milliseconds from its own start, half a second behind the host."""

    behind: ClassVar[float] = 0.5
    waits: ClassVar[int] = 0


class Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter() + Stream.behind

    def synchronize(self) -> None:
        Stream.waits += 1
        time.sleep(max(0.0, self.at - time.perf_counter()))

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)


def test_events_are_told_in_the_hosts_time_of_when_the_device_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    recorder = Recorder(torch.device("cuda"))
    recorder.begin()
    host = time.perf_counter()
    recorder.current.ops.append((3, recorder.now(), recorder.now(), recorder.now()))
    recorder.current.sends.append((4, recorder.now()))
    recorder.finish()
    assert Stream.waits == 0
    (record,) = recorder.last(1)
    assert Stream.waits == 1
    ((index, asked, begin, end),) = record.ops
    assert index == 3
    assert record.start <= asked <= begin <= end <= record.sends[0][1] <= record.end
    assert begin == pytest.approx(host + Stream.behind, abs=0.1)
    assert recorder.last(0) == []


def test_on_a_cpu_moments_are_the_hosts_own() -> None:
    recorder = Recorder(torch.device("cpu"))
    before = time.perf_counter()
    recorder.begin()
    recorder.finish()
    (record,) = recorder.last(5)
    assert before <= record.start <= record.end <= time.perf_counter()
