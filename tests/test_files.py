"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gpt2kit.files import write_whole


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "page", "old")
    write_whole(tmp_path / "page", "new")
    assert (tmp_path / "page").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
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
