"""Files appear whole or not at all, and what is no regular file is written to as it is."""

import os
import threading
from pathlib import Path

import pytest

from penstock.errors import NotationError
from penstock.notation.whole_file import check_writable, write_whole


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "first")
    write_whole(file, b"second")
    assert file.read_text() == "second"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    """Symptom: `--json /dev/full` left a plain file there. Cause: the renamed file took the device's place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "through")
    reader.join()
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in ("folder", "none/a.json"):
        with pytest.raises(NotationError, match=r"cannot write .*name a file in a folder that is there"):
            write_whole(tmp_path / place, "text")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("", "it is a folder"), ("none/a", "there is no folder .*make it first"), ("file/a", "a file is in the way")],
)
def test_a_place_is_refused_before_the_work(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotationError, match=reason):
        check_writable(tmp_path / place)
    check_writable(tmp_path / "file")
