"""What a rank notes of its steps: three moments an op, one a send. Cheap enough to stay on.

On a CPU a moment is the time. On a GPU, which works behind the host, it is an event in its stream; only when somebody
asks for a timeline are they turned into the host's time, and only then does the host wait for the device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

_KEPT_STEPS = 32

Moment = Any
"""Seconds of perf_counter, or an event of a stream."""


@dataclass
class StepRecord:
    """Moments of one step on one rank.

    Attributes:
        start: when the ranks had agreed to run the step.
        end: when the rank's program had ended.
        ops: (instruction, asked for its input, started, ended).
        sends: (instruction, handed to the transport).
    """

    start: Moment
    end: Moment = 0.0
    ops: list[tuple[int, Moment, Moment, Moment]] = field(default_factory=list)
    sends: list[tuple[int, Moment]] = field(default_factory=list)


class Recorder:
    """The last steps of one rank; `current` is the one under way.

    Args:
        device: where the rank computes.

    Attributes:
        now: gives the present moment.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_stream = device.type == "cuda"
        self.now: Callable[[], Moment] = _event if self._on_stream else time.perf_counter
        self.current = StepRecord(0.0)
        self._steps: deque[StepRecord] = deque(maxlen=_KEPT_STEPS)

    def begin(self) -> None:
        """Starts a step."""
        self.current = StepRecord(self.now())

    def finish(self) -> None:
        """Keeps the step under way."""
        self.current.end = self.now()
        self._steps.append(self.current)

    def last(self, count: int) -> list[StepRecord]:
        """Returns the last steps, the latest last, their moments in seconds of this rank's perf_counter."""
        records = list(self._steps)[-count:] if count > 0 else []
        if not self._on_stream or not records:
            return records
        mark = _event()
        mark.synchronize()
        here = time.perf_counter()

        def seconds(moment: Any) -> float:
            return here - float(moment.elapsed_time(mark)) / 1e3

        return [
            StepRecord(
                seconds(record.start),
                seconds(record.end),
                [(at, *map(seconds, moments)) for at, *moments in record.ops],  # type: ignore[misc]
                [(at, seconds(moment)) for at, moment in record.sends],
            )
            for record in records
        ]


def _event() -> Any:
    """Returns an event at the end of what the current stream has to do."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
