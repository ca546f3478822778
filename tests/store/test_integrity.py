"""Files that are not as they were downloaded are noticed when a model is opened."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from gpt2kit import store
from gpt2kit.errors import CheckpointError, CheckpointFormatError, Gpt2KitWarning
from gpt2kit.store.integrity import CHECKED
from gpt2kit.store.manifest import Manifest

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}


@pytest.fixture
def download(weights: Path) -> Path:
    """A directory with two files and the record of their download."""
    return make_download(weights / "124M")


def make_download(folder: Path, repository: str = "openai-community/gpt2") -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    hashes = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items()}
    source = "openai" if "://" in repository else "hub"
    Manifest(source, repository, None, hashes).write(folder)
    return folder


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Flip one bit of a file, as a failing disk does; on request without a trace in its times."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("checked_before", [False, True])
def test_a_flipped_bit_is_an_error_that_says_what_to_type(
    download: Path, name: str, checked_before: bool
) -> None:
    # The hashes were there, and the file was loaded nevertheless.
    if checked_before:
        store.check_files(download)
    flip(download / name)
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(CheckpointFormatError) as caught:
            store.check_files(download)
    assert caught.value.path == download / name
    assert "another sha256" in str(caught.value)
    assert "run: gpt2kit download 124M --force" in str(caught.value)


@pytest.mark.parametrize(
    ("repository", "arguments"),
    [
        ("org/novel", "org/novel"),
        ("distilbert/distilgpt2", "distilgpt2"),
        ("https://host/gpt-2/models/355M", "355M --source openai"),
    ],
)
def test_the_command_fetches_what_was_downloaded(
    weights: Path, repository: str, arguments: str
) -> None:
    folder = make_download(weights / "any", repository)
    (folder / "config.json").write_text("")
    with pytest.raises(CheckpointFormatError, match=f"gpt2kit download {arguments} --force"):
        store.check_files(folder)


def test_a_file_is_hashed_once_for_each_version_of_it(download: Path, tmp_path: Path) -> None:
    store.check_files(download)
    flip(download / "model.safetensors", keep_time=True)
    store.check_files(download)  # not read again: inode, size and time are the same
    os.utime(download / "model.safetensors")
    with pytest.raises(CheckpointFormatError):
        store.check_files(download)


def test_a_damaged_record_of_what_was_checked_means_that_all_is_checked(download: Path) -> None:
    store.check_files(download)
    (record,) = download.glob(".*checked*")
    record.write_text("{")
    flip(download / "model.safetensors", keep_time=True)
    with pytest.raises(CheckpointFormatError):
        store.check_files(download)


def test_nothing_is_written_into_a_folder_of_others_and_it_is_still_hashed_once(
    tmp_path: Path,
) -> None:
    folder = make_download(tmp_path / "somebody" / "model")
    before = sorted(path.name for path in folder.iterdir())
    store.check_files(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    flip(folder / "model.safetensors", keep_time=True)
    store.check_files(folder)


def test_files_that_were_not_downloaded_are_not_checked(download: Path) -> None:
    (download / "notes.txt").write_text("mine")
    store.check_files(download)
    assert json.loads((download / CHECKED).read_text()).keys() == FILES.keys()


def test_a_missing_file_is_left_to_the_readers(download: Path) -> None:
    (download / "config.json").unlink()
    store.check_files(download)
    assert json.loads((download / CHECKED).read_text()).keys() == {"model.safetensors"}


def test_a_folder_without_a_record_of_its_download_is_not_checked(download: Path) -> None:
    (download / store.MANIFEST).unlink()
    flip(download / "config.json")
    store.check_files(download)
    assert not (download / CHECKED).exists()


def test_a_damaged_manifest_is_a_warning(download: Path) -> None:
    (download / store.MANIFEST).write_text("[")
    with pytest.warns(Gpt2KitWarning, match="hashes of the files are not checked"):
        store.check_files(download)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(download: Path) -> None:
    (download / "config.json").unlink()
    os.mkfifo(download / "config.json")
    with pytest.raises(CheckpointError, match="found a pipe"):
        store.check_files(download)
