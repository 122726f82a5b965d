"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from penstock.errors import NotationError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes the file at `path` beside its place and renames it, so that nobody ever meets half of it.

    What is no regular file, such as a pipe or /dev/stdout, is written to as it is: a rename would take its place. A
    symbolic link stays, and the file that it names is written.

    Raises:
        NotationError: the file cannot be written; what was there before is as it was.
    """
    raw = content.encode() if isinstance(content, str) else content
    try:
        place = Path(path).resolve()
        if place.exists() and not place.is_file():
            place.write_bytes(raw)
            return
        part = place.with_name(f"{place.name}.partial")
        try:
            part.write_bytes(raw)
            os.replace(part, place)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise NotationError(cannot_write(path, error.strerror or str(error))) from None


def check_writable(path: str | Path) -> None:
    """Refuses a place where no file can be written, before the work whose result it is to hold.

    Raises:
        NotationError: the folder is not there or not one's own, or there is a folder of that name.
    """
    place = Path(path)
    if place.is_dir():
        raise NotationError(cannot_write(path, "it is a folder"))
    if not place.parent.is_dir():
        reason = (
            "a file is in the way" if place.parent.exists() else f"there is no folder {place.parent}, make it first"
        )
        raise NotationError(cannot_write(path, reason))
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise NotationError(cannot_write(path, "permission denied"))


def cannot_write(path: str | Path, reason: str) -> str:
    """Returns the sentence that refuses to write `path`, with what would work."""
    return f"cannot write {path}: {reason}; name a file in a folder that is there and yours to write"
