"""What a rank notes of its steps: three moments an op, one a send. Cheap enough to stay on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_KEPT_STEPS = 32


@dataclass
class StepRecord:
    """Moments of one step on one rank, in seconds of its perf_counter.

    Attributes:
        start: when the ranks had agreed to run the step.
        end: when the rank's program had ended.
        ops: (instruction, asked for its input, started, ended).
        sends: (instruction, handed to the transport).
    """

    start: float
    end: float = 0.0
    ops: list[tuple[int, float, float, float]] = field(default_factory=list)
    sends: list[tuple[int, float]] = field(default_factory=list)


class Recorder:
    """The last steps of one rank; `current` is the one under way."""

    def __init__(self) -> None:
        self.current = StepRecord(0.0)
        self.steps: deque[StepRecord] = deque(maxlen=_KEPT_STEPS)

    def begin(self, now: float) -> None:
        """Starts a step."""
        self.current = StepRecord(now)

    def finish(self, now: float) -> None:
        """Keeps the step under way."""
        self.current.end = now
        self.steps.append(self.current)
