"""The JSON file of a profile, versioned and checked on load.

    {"format": "penstock.profile", "version": 1, "device": "…", "measured": true, "microbatch_size": 2,
     "layers": [{"name": "embed", "kind": 0, "seconds": {"forward": {"seconds": 0.001, …}, …}, …}],
     "host": {…}, "links": [{"ranks_per_group": 2, "messages": {…}}], "memory_bytes": 0}

Its fields are those of `Profile`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import NotationError, check_type
from penstock.notation.files import check_heading
from penstock.notation.whole_file import write_whole
from penstock.profiler.values import Profile

FORMAT = "penstock.profile"
VERSION = 1


class _Format(msgspec.Struct):
    format: str


_FORMATS, _PROFILES = msgspec.json.Decoder(_Format), msgspec.json.Decoder(Profile)
"""Made once, for threads: see notation/files.py."""


def profile_to_json(profile: Profile) -> str:
    """Returns `profile` as JSON text."""
    check_type("profile", profile, Profile, example="what penstock.profile returns")
    heading = {"format": FORMAT, "version": VERSION}
    body = {field.name: getattr(profile, field.name) for field in fields(Profile)}
    return msgspec.json.format(msgspec.json.encode(heading | body)).decode() + "\n"


def profile_from_json(text: str | bytes) -> Profile:
    """Returns the profile written in `text`; the inverse of `profile_to_json`.

    Raises:
        NotationError: not JSON, another format or version, or a field that does not fit, and where.
    """
    try:
        check_heading(text, FORMAT, VERSION, what="profile")
        found = msgspec.json.decode(text)
        known = {field.name for field in fields(Profile)}
        foreign = sorted(set(found) - known - {"format", "version"})
        if foreign:
            raise NotationError(f'not a profile: unknown field "{foreign[0]}"; remove it')
        profile = _PROFILES.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NotationError(f"not a profile: {error}") from None
    _check(profile, msgspec.to_builtins(profile))
    return profile


def save_profile(profile: Profile, path: str | Path) -> None:
    """Writes `profile` to the file at `path`, whole or not at all.

    Raises:
        NotationError: the file cannot be written.
    """
    write_whole(path, profile_to_json(profile))


def load_profile(path: str | Path) -> Profile:
    """Returns the profile in the file at `path`.

    Raises:
        NotationError: the file cannot be read or holds no profile; the message names the file.
    """
    try:
        return profile_from_json(Path(path).read_bytes())
    except OSError as error:
        raise NotationError(f"cannot read {path}: {error.strerror}; {_REMEDY}") from None
    except NotationError as error:
        raise NotationError(f"{path}: {error}; {_REMEDY}") from None


_REMEDY = "name a profile, penstock profile writes one"


def is_profile(path: Path) -> bool:
    """Returns whether the file at `path` calls itself a profile; it may still be a faulty one."""
    try:
        found = _FORMATS.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return found.format == FORMAT


def _check(profile: Profile, body: dict[str, Any]) -> None:
    if not profile.layers:
        raise NotationError("layers is empty; a profile has one entry a layer")
    if any(level.ranks_per_group < 1 for level in profile.links):
        raise NotationError("ranks_per_group is below 1; a group holds a rank or more, e.g. 2")
    negative = next(_negatives(body, "profile"), None)
    if negative:
        raise NotationError(f"{negative}; times and sizes are not negative, e.g. 0")


def _negatives(value: Any, place: str) -> Any:
    """Yields where a number of the tree is negative."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _negatives(each, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _negatives(each, f"{place}[{index}]")
    elif isinstance(value, int | float) and value < 0:
        yield f"{place} is {value}"
