"""Files of torch.save: read as torch reads them; hostile ones are refused in bounded time."""

from __future__ import annotations

import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import hub_state, write_hub, write_nanogpt
from torch import Tensor, nn

from gpt2kit.checkpoints import pickled
from gpt2kit.checkpoints.load import build_model, open_checkpoint
from gpt2kit.errors import CheckpointError, CheckpointFormatError
from gpt2kit.model import GPT2

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])


def save(path: Path, content: Any, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def archive(path: Path, program: bytes) -> Path:
    """Write a zip archive as torch.save does, around the bytes of a pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", "3\n")
    return path


def older(path: Path, program: bytes) -> Path:
    """Write what torch.save wrote before 1.6, around the bytes of a pickle."""
    start: list[Any] = [pickled._MAGIC, pickled._PROTOCOL, {"little_endian": True}]
    parts = [pickle.dumps(value, protocol=2) for value in start]
    path.write_bytes(b"".join([*parts, program, pickle.dumps([], protocol=2)]))
    return path


# --- tensors --------------------------------------------------------------------------------------

_BASE = torch.arange(24.0)
TENSORS: dict[str, Tensor] = {
    "plain": torch.randn(3, 4),
    "one number": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "turned": torch.randn(3, 4).t(),
    "a slice": _BASE[4:16].view(3, 4),
    "every second": _BASE[::2],
    "the same storage": _BASE,
    "bfloat16": torch.randn(5).to(torch.bfloat16),
    "float16": torch.randn(5).half(),
    "float64": torch.randn(5).double(),
    "a parameter": nn.Parameter(torch.randn(2, 2)),
}


@FORMATS
def test_every_tensor_is_what_torch_reads(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "file.pt", OrderedDict(TENSORS), zipped)
    expected = torch.load(path, weights_only=True)
    file = pickled.open_file(path)
    assert file.content.keys() == TENSORS.keys()
    for name, value in file.content.items():
        stored = file.tensor(name, value)
        found = stored.read()
        assert found.dtype == stored.dtype == expected[name].dtype, name
        assert stored.shape == tuple(found.shape), name
        assert torch.equal(found, expected[name]), name
        assert torch.equal(stored.read(torch.empty(1000, dtype=torch.uint8)), found), name


@FORMATS
def test_plain_values_beside_the_tensors_are_read(tmp_path: Path, zipped: bool) -> None:
    content = {
        "numbers": [1, -1, 300, 70_000, 2**40, 0.5, True, False, None],
        "nested": {"tuple": (1, (2,), (), (1, 2, 3, 4)), 7: "è"},
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
    }
    found = pickled.open_file(save(tmp_path / "file.pt", content, zipped)).content
    assert found == {**content, "size": (2, 3), "device": None}


def test_attributes_of_a_state_dict_are_ignored(tmp_path: Path) -> None:
    # The state_dict of a module carries its _metadata as an attribute of the OrderedDict.
    linear = nn.Linear(3, 2)
    file = pickled.open_file(save(tmp_path / "file.pt", linear.state_dict(), True))
    assert torch.equal(file.tensor("weight", file.content["weight"]).read(), linear.weight)


# --- files that change ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "nanoGPT"])
def test_a_file_cut_short_after_it_was_opened_is_an_error(
    tmp_path: Path, tiny_model: GPT2, kind: str
) -> None:
    # It was mapped, so that reading the missing part killed the process with SIGBUS.
    if kind == "nanoGPT":
        path = write_nanogpt(tmp_path / "ckpt.pt", tiny_model)
    else:
        write_hub(tmp_path, tiny_model, weights="pytorch_model.bin")
        path = tmp_path / "pytorch_model.bin"
        save(path, hub_state(tiny_model), kind == "zip")
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(path, 4096)
    with pytest.raises(CheckpointFormatError, match="cut short"):
        build_model(checkpoint)


def test_a_flipped_bit_of_any_tensor_is_found(tmp_path: Path, tiny_model: GPT2) -> None:
    # torch itself writes checksums and does not read them.
    path = write_hub(tmp_path, tiny_model, weights="pytorch_model.bin") / "pytorch_model.bin"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        storages = [record for record in file.infolist() if "/data/" in record.filename]
    for record in storages:
        damaged = bytearray(whole)
        lengths = struct.unpack("<HH", whole[record.header_offset + 26 : record.header_offset + 30])
        damaged[record.header_offset + 30 + sum(lengths) + record.file_size // 2] ^= 1
        path.write_bytes(damaged)
        assert torch.load(path, weights_only=True)
        with pytest.raises(CheckpointFormatError, match="checksum"):
            build_model(open_checkpoint(tmp_path))


# --- hostile pickles ------------------------------------------------------------------------------

_START, _END = b"\x80\x02}q\x00X\x01\x00\x00\x00a", b"s."  # {"a": …}


def doubling(levels: int) -> bytes:
    """Return the pickle of a list that holds a list twice, which holds a list twice, …"""
    return b"]q\x01" + b"".join(
        b"]" + b"h" + bytes([n]) + b"a" + b"h" + bytes([n]) + b"a" + b"q" + bytes([n + 1])
        for n in range(1, levels)
    )


PROGRAMS = {
    "a list in itself": _START + b"]q\x01h\x01a" + _END,
    "a dictionary in itself": _START + b"h\x00" + _END,
    "a hundred thousand lists": _START + b"]" * 100_000 + b"a" * 99_999 + _END,
    "a hundred thousand tuples": _START + b")" + b"\x85" * 100_000 + _END,
    "lists that hold each other twice": _START + doubling(200) + _END,
    "a tuple as a key": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
    "a memo of 2^32 slots": _START + b"]r\xff\xff\xff\xff" + _END,
    "a text of 4 GB": b"\x80\x02}X\xff\xff\xff\xffa",
    "too few on the stack": b"\x80\x02\x87.",
    "nothing on the stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "never read before": b"\x80\x02h\x05.",
    "without an end": b"\x80\x02}",
    "another protocol": b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00}.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a storage of negative size": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\xfftQ.",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize("write", [archive, older], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt"])
def test_a_hostile_pickle_is_refused_at_once(
    tmp_path: Path, tiny_model: GPT2, program: bytes, write: Any, name: str
) -> None:
    # Containers were walked recursively, without a memory of what had been visited: RecursionError.
    if name == "pytorch_model.bin":
        write_hub(tmp_path, tiny_model, weights=name)
    write(tmp_path / name, program)
    start = time.monotonic()
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)
    assert time.monotonic() - start < 5


@FORMATS
def test_the_message_for_a_refused_pickle_is_ours_alone(
    tmp_path: Path, tiny_model: GPT2, zipped: bool
) -> None:
    # It carried torch's advice to switch the safety off, in bold by escape codes.
    write_hub(tmp_path, tiny_model, weights="pytorch_model.bin")
    program = b"\x80\x02cposix\x1b[1m\nsystem\x07\nX\x04\x00\x00\x00echo\x85R."
    (archive if zipped else older)(tmp_path / "pytorch_model.bin", program)
    with pytest.raises(CheckpointFormatError) as caught:
        open_checkpoint(tmp_path)
    message = str(caught.value)
    assert message.isprintable()
    assert r"'posix\x1b[1m.system\x07'" in message
    assert "save it as safetensors" in message
    assert "weights_only" not in message


def test_records_that_share_bytes_are_refused(tmp_path: Path, tiny_model: GPT2) -> None:
    # A small file could declare any number of tensors this way.
    path = write_hub(tmp_path, tiny_model, weights="pytorch_model.bin") / "pytorch_model.bin"
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", content[end + 12 : end + 20])
    first = start
    entries = []
    while first < start + size:
        lengths = struct.unpack("<HHH", content[first + 28 : first + 34])
        entries.append(first)
        first += 46 + sum(lengths)
    largest = max(entries, key=lambda at: struct.unpack("<I", content[at + 24 : at + 28])[0])
    for at in entries:
        if at != largest and b"/data/" in content[at + 46 : at + 100]:
            content[at + 16 : at + 28] = content[largest + 16 : largest + 28]
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError, match="declares"):
        open_checkpoint(tmp_path)


def test_a_shape_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    # The message had the product of the sizes in it, which Python refuses to write: ValueError.
    huge = b"\x8a\xfe" + b"\xff" * 253 + b"\x7f"
    path = save(tmp_path / "pytorch_model.bin", {"wte.weight": torch.zeros(3)}, False)
    data = path.read_bytes()
    for size, eight in ((b"K\x03\x85", huge), (b"K\x01\x85", b"K\x01")):
        assert size in data
        data = data.replace(size, b"(" + eight * 8 + b"t")
    path.write_bytes(data)
    with pytest.raises(CheckpointFormatError, match="a tensor in it has an impossible description"):
        pickled.open_file(path)


def test_a_compressed_archive_and_one_that_claims_more_than_it_has_are_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        file.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(CheckpointFormatError, match="compressed, which torch.save never does"):
        pickled.open_file(path)
    content = bytearray(archive(path, b"\x80\x02}.").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)  # its sizes
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError, match="declares more bytes than the file has"):
        pickled.open_file(path)
