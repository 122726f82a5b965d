"""Text is found on every machine, and what is not text is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.errors import DataError
from penstock.train.texts import library_texts, standard_library, user_files


def test_the_standard_library_is_python_source_without_tests_or_installed_packages() -> None:
    paths = standard_library()
    assert paths == sorted(paths)
    assert "argparse.py" in {path.name for path in paths}
    assert all(path.suffix == ".py" for path in paths)
    assert not {"site-packages", "test", "tests", "encodings"} & {part for path in paths for part in path.parts}


def test_the_standard_library_is_megabytes_of_text() -> None:
    texts = library_texts()
    assert sum(len(text.content) for text in texts) > 3_000_000
    assert all(not Path(text.name).is_absolute() for text in texts)


def test_files_and_directories_are_read_in_order_and_once(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "deep" / "er" / "a.txt").write_text("ä")
    assert [tuple(text) for text in user_files([str(tmp_path / "b.txt"), str(tmp_path)])] == [
        ("b.txt", b"b"),
        ("deep/er/a.txt", "ä".encode()),
    ]


def test_a_directory_is_read_without_its_binary_empty_and_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\xf6")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("[core]")
    (tmp_path / "text.txt").write_text("words")
    assert [text.name for text in user_files([tmp_path])] == ["text.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "is empty"), (b"ab\0c", "byte 2 is NUL"), (b"a\xff", "byte 1 is 0xff")],
)
def test_a_named_file_has_to_be_text(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "corpus.bin"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        user_files([file])
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_a_directory_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match="holds no text file"):
        user_files([tmp_path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "locked.txt"
    file.write_text("words")
    file.chmod(0)
    with pytest.raises(DataError, match=r"cannot read .*locked\.txt: Permission denied"):
        user_files([file])


def test_a_device_or_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="is not a file"):
        user_files([pipe])
