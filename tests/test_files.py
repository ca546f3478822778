"""Files that are read with care and appear complete or not at all."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.errors import CorpusError, FileError, TokenizerError
from gpt2kit.files import (
    check_regular,
    new_directory,
    new_file,
    read_bytes,
    read_json,
    read_start,
    read_text,
    write_whole,
)

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")

READERS: dict[str, Callable[..., Any]] = {
    "check_regular": check_regular,
    "read_start": read_start,
    "read_bytes": read_bytes,
    "read_text": lambda path, **options: read_text(path, largest=1000, **options),
    "read_json": read_json,
}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for content in ("old", b"new"):
        write_whole(tmp_path / "page", content)
    assert (tmp_path / "page").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


@needs_pipes
def test_a_pipe_is_written_to_and_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(pipe, "content")
    reader.join(10)
    assert received == [b"content"]
    assert pipe.is_fifo()


def test_a_folder_is_refused_under_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path, "content")
    assert caught.value.filename == str(tmp_path)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@needs_pipes
@every_reader
@pytest.mark.parametrize(
    ("make", "detail"),
    [
        (_pipe, "expected a file, found a pipe"),
        (_socket, "expected a file, found a socket"),
        (Path.mkdir, "expected a file, found a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "expected a file, found a device"),
        (lambda path: path.symlink_to("nowhere"), "a link to nowhere, which does not exist"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: None, "no such file"),
    ],
    ids=["pipe", "socket", "folder", "device", "dangling", "loop", "nothing"],
)
def test_what_is_no_file_is_refused_at_once_with_the_callers_error(
    tmp_path: Path,
    read: Callable[..., Any],
    make: Callable[[Path], None],
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Callers had to catch CheckpointFormatError and rename it, for texts and vocabularies too.
    monkeypatch.chdir(tmp_path)
    path = Path("file")
    make(path)
    with pytest.raises(FileError) as caught:
        read(path)
    assert (caught.value.path, caught.value.detail) == (path, detail)
    for error in (TokenizerError, CorpusError):
        with pytest.raises(error) as other:
            read(path, error=error)
        assert str(other.value) == f"file: {detail}"


@every_reader
def test_a_mistyped_name_is_answered_with_the_most_similar_one(
    tmp_path: Path, read: Callable[..., Any]
) -> None:
    # "no such file" left the reader to find the mistake.
    (tmp_path / "stimuli.csv").touch()
    with pytest.raises(FileError) as caught:
        read(tmp_path / "stimulli.csv")
    assert caught.value.detail == f"no such file; did you mean {tmp_path / 'stimuli.csv'}?"


@needs_pipes
def test_a_pipe_that_takes_a_files_place_after_the_check_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    monkeypatch.setattr("gpt2kit.files.check_regular", lambda path, *, error: 10)
    done: list[bytes] = []
    reader = threading.Thread(
        target=lambda: done.append(read_bytes(path, largest=100)), daemon=True
    )
    reader.start()
    reader.join(10)
    assert done == [b""]


def test_the_limit_holds_for_a_file_that_grew_after_its_size_was_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr("gpt2kit.files.check_regular", lambda path, *, error: 10)
    assert read_bytes(path, largest=100) == b"x" * 100
    with pytest.raises(FileError, match="100 bytes, expected at most 99"):
        read_bytes(path, largest=99)


def test_a_file_of_exactly_the_limit_is_read_and_a_larger_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, largest=100) == b"x" * 100
    with pytest.raises(FileError, match="100 bytes, expected at most 99"):
        read_bytes(path, largest=99)


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"\xff", "not UTF-8 text: byte 0 is 0xff"),
        (b"[1]", "expected a JSON object, found a list"),
        (b'{"a": 1, "a": 2}', "not valid JSON: a key is given twice"),
        (b"[" * 100_000, "not valid JSON: "),
        (b"<!DOCTYPE html>", "this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "run: git lfs pull"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_callers_error(
    tmp_path: Path, content: bytes, detail: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        read_json(path, error=TokenizerError)
    assert detail in str(caught.value)


def test_what_a_killed_process_left_is_deleted_also_under_a_name_with_brackets(
    tmp_path: Path,
) -> None:
    # The name was read as a pattern, so ".run[1].….new" was never found.
    (tmp_path / ".run[1].999999999.new").mkdir()
    with new_directory(tmp_path / "run[1]"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run[1]"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_file_that_a_killed_process_was_writing_is_deleted_by_the_next_one(
    tmp_path: Path,
) -> None:
    # Its temporary file stayed for ever: the next process wrote under another name.
    target = tmp_path / "table[1].csv"
    child = os.fork()
    if child == 0:
        with new_file(target) as file:
            file.write(b"half")
            file.flush()
            os._exit(9)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    with new_file(target) as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_two_writers_of_one_small_file_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both wrote under one temporary name: the second one to rename it found nothing there.
    target = tmp_path / "report.json"
    others = iter([threading.Thread(target=write_whole, args=(target, "second"))])

    def meanwhile(_: int) -> None:
        for other in others:
            other.start()
            other.join()

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_whole(target, "first")
    assert target.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
