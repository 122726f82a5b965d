"""Finds and reads text: the source of Python's own standard library, or the user's files and directories."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from penstock.errors import DataError

NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
"""Directories of the standard library's folder that are not the library: what is installed, and tests."""

TABLES = frozenset({"encodings", "pydoc_data"})
"""Directories of generated tables: so predictable that they would flatter a loss."""


class Text(NamedTuple):
    """One file's content, and its name relative to where it was found."""

    name: str
    content: bytes


def standard_library() -> list[Path]:
    """Returns the running Python's own `*.py` files, sorted, without tests and generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    return [path for path in _walk(root, leave_out=NOT_LIBRARY | TABLES) if path.suffix == ".py"]


def library_texts() -> list[Text]:
    """Returns the texts of `standard_library()`.

    Raises:
        DataError: This Python keeps no source files, as some stripped installations do.
    """
    root = Path(sysconfig.get_path("stdlib"))
    texts = list(_readable(standard_library(), root=root))
    if not texts:
        raise DataError(
            f"this Python has no standard library source under {root}; give your own text with --data.paths"
        )
    return texts


def user_files(paths: Iterable[str | Path]) -> list[Text]:
    """Returns the texts of files and, recursively, of directories, sorted within each directory.

    In a directory, binary, empty, unreadable and hidden files are passed over; a file that is named itself
    has to be text. A file reached twice is read once.

    Raises:
        DataError: A path is missing, unreadable, empty or binary, or a directory holds no text.
    """
    texts: dict[Path, Text] = {}
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            found = [(path / text.name, text) for text in _directory_texts(path)]
        else:
            found = [(path, Text(path.name, _read_text(path)))]
        for place, text in found:
            texts.setdefault(place.resolve(), text)
    return list(texts.values())


def _directory_texts(root: Path) -> list[Text]:
    texts = list(_readable(_walk(root, leave_out=frozenset({"__pycache__"})), root=root))
    if not texts:
        raise DataError(f"directory {root} holds no text file; name a directory with UTF-8 text, or a file in it")
    return texts


def _walk(root: Path, *, leave_out: frozenset[str]) -> list[Path]:
    """Returns the files under `root`, sorted, without hidden ones and directories in `leave_out`."""
    found = []
    for folder, directories, names in os.walk(root):
        directories[:] = [name for name in directories if name not in leave_out and not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _readable(paths: Iterable[Path], *, root: Path) -> Iterator[Text]:
    for path in paths:
        try:
            yield Text(path.relative_to(root).as_posix(), _read_text(path))
        except DataError:
            continue


def _read_text(path: Path) -> bytes:
    """Returns the bytes of a file that is UTF-8 text."""
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise DataError(f"data path {path} {what}; give a text file or a directory of text files")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if not content:
        raise DataError(f"{path} is empty; give a file with text in it")
    _check_text(path, content)
    return content


def _check_text(path: Path, content: bytes) -> None:
    zero = content.find(b"\0")
    if zero >= 0:
        raise DataError(f"{path} is binary (byte {zero} is NUL); give UTF-8 text")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}); convert it with iconv"
        ) from error
