"""Every error penstock raises on purpose, as one tree.

A message says three things in the user's words: what is wrong, with its value; why; and a value that
works. `UserError` is what a command prints as one line, without a traceback.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class PenstockError(Exception):
    """Root of every error raised by penstock."""


class UserError(PenstockError):
    """An argument, file or environment that the caller can put right."""


class ScheduleError(UserError):
    """Sizes or orders from which no schedule can be made."""


class NotationError(UserError):
    """A text grid or a JSON file that does not describe a schedule; the message says where."""


class VerificationError(ScheduleError):
    """A program that would not run correctly, with its counter-example in the message."""


class PartitionError(UserError):
    """Layers that cannot be laid onto stages as asked."""


class ModelError(UserError):
    """A model that cannot be cut, or whose boundary cannot travel between stages."""


class BatchError(UserError):
    """Inputs, targets or weights that do not fit the pipeline."""


class ConfigError(UserError):
    """A configuration with an unknown key, a wrong type or a value out of range."""


class DataError(UserError):
    """Text to train on that is missing, empty or not text."""


class CheckpointError(UserError):
    """A checkpoint that is absent, torn, foreign or of another model."""


class HandshakeError(UserError):
    """Ranks that hold different plans or called different things; the message names them."""


class RankFailedError(PenstockError):
    """A rank that raised, died or fell silent, told in pipeline terms."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean "…"?` for a near miss among `known`, else an empty string."""
    spelled = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold(), list(spelled), n=1, cutoff=0.6)
    return f' Did you mean "{spelled[matches[0]]}"?' if matches else ""


def told(error: BaseException) -> str:
    """Returns what code of the user's raised, as the rest of a sentence: `raised ValueError: …, at net.py:8`.

    The place is the last line that is neither torch's nor penstock's; where there is none, it is left out.
    """
    import traceback  # which takes milliseconds, and only a failure needs

    lines = traceback.extract_tb(error.__traceback__)
    own = [line for line in lines if not any(part in line.filename for part in _NOT_THE_USERS)]
    place = f", at {os.path.relpath(own[-1].filename)}:{own[-1].lineno}" if own else ""
    words = str(error).strip().partition("\n")[0] or "without a word"
    return f"raised {type(error).__name__}: {words}{place}"


_NOT_THE_USERS = ("site-packages", "<frozen", os.path.dirname(__file__))


def check_type(name: str, value: object, *expected: type, example: str) -> None:
    """Refuses `value`, the argument called `name`, where it is of none of the `expected` types.

    Raises:
        UserError: it is not; the message gives `example`, a value that works.
    """
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        shown = repr(value) if len(repr(value)) <= _LONGEST_SHOWN else f"a {type(value).__name__}"
        raise UserError(f"{name} is {shown}, not {_kinds(expected)}; give {example}")


_LONGEST_SHOWN = 60


def _kinds(expected: tuple[type, ...]) -> str:
    names = [_KINDS.get(one, one.__name__) for one in expected if one is not type(None)]
    return " or ".join(f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}" for name in names)


_KINDS: dict[type, str] = {int: "whole number", str: "text", bytes: "byte string"}
"""Types -> what a user calls them."""
