"""Where a rank of a pipeline is, in words for a person: while it runs, and after an error came out of it."""

from __future__ import annotations

import re

from penstock.runtime import Pipeline
from penstock.runtime.shared_weights.replicas import replicas_of
from penstock.train.failures import Position


def position(pipe: Pipeline) -> Position:
    """Returns where this rank is. Called in another thread: the cursor may move on meanwhile."""
    cursor = pipe.cursor
    call, done = cursor.call, pipe.steps_done
    replicas = replicas_of(pipe)
    copy = "" if replicas is None else f" of replica {replicas.index}"
    waiting = f"rank {cursor.waiting_for}{copy}" if cursor.waiting_for >= 0 else None
    if call:
        return _place(call, cursor.where, done, waiting)
    if not done:
        return Position("the start", waiting_for=waiting)
    return Position("the training loop's own work", step=done, waiting_for=waiting)


def place_noted(error: Exception, pipe: Pipeline) -> Position | None:
    """Returns where `error` came out of the pipeline, whose cursor has moved on, by the note that it bears."""
    pattern = re.compile(rf"penstock: (?:raised|noticed) on rank {pipe.rank}, (\w+) \d+, (.+)")
    found = [match for note in getattr(error, "__notes__", ()) if (match := pattern.fullmatch(note))]
    return _place(found[0][1], found[0][2], pipe.steps_done) if found else None


def _place(call: str, where: str, done: int, waiting: str | None = None) -> Position:
    if call in ("step", "run"):
        return Position(where, step=done + 1, waiting_for=waiting)
    return Position(f"{where} in {call}", step=done, waiting_for=waiting)
