"""TensorFlow checkpoints, TensorFlow's own and our writer's, are read exactly or refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_bundle_writer as writer
from campaigns.damage import mutate

from gpt2kit.checkpoints import snappy
from gpt2kit.checkpoints.tf_bundle import TensorBundle
from gpt2kit.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError

GOLDEN = Path(__file__).parents[1] / "golden" / "tf"
PREFIXES = {
    "micro-a": "model.ckpt",
    "micro-deep": "model.ckpt",
    "micro-sharded": "model.ckpt",
    "micro-adam": "model.ckpt",
    "micro-simple": "model-20",
    "micro-fp16": "model.ckpt",
    "micro-partitioned": "model.ckpt",
}


def copy_of(name: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN / name, folder / name)
    return folder / name / PREFIXES[name]


def read_all(prefix: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    bundle = TensorBundle(prefix)
    return {
        name: (entry.shape, entry.dtype, bundle.read(name).tobytes())
        for name, entry in bundle.entries.items()
    }


def small_bundle(folder: Path, **options: Any) -> Path:
    """Five variables, one of them in 2 x 2 slices: a little of everything."""
    numbers = np.random.default_rng(5)
    tensors: dict[str, np.ndarray] = {
        "model/a": numbers.standard_normal((3, 4)).astype(np.float32),
        "model/b": numbers.standard_normal(7).astype(np.float16),
        "model/cut": numbers.integers(-9, 9, (4, 6)).astype(np.int64),
        "step": np.array(12345, np.int64),
        "zero": np.empty((0, 3), np.float32),
    }
    cuts: list[writer.Extents] = [
        ((0, 1), (0, 2)),
        ((0, 1), (2, 4)),
        ((1, 3), (0, 2)),
        ((1, 3), (2, 4)),
    ]
    return writer.write_bundle(folder / "small", tensors, slices={"model/cut": cuts}, **options)


# Files that TensorFlow wrote.


@pytest.mark.parametrize("name", PREFIXES)
def test_every_tensor_that_tensorflow_wrote_is_read_bit_for_bit(name: str) -> None:
    expected = json.loads((GOLDEN / name / "tensors.json").read_text())
    found = {
        tensor: {"dtype": dtype, "shape": list(shape), "sha256": hashlib.sha256(data).hexdigest()}
        for tensor, (shape, dtype, data) in read_all(GOLDEN / name / PREFIXES[name]).items()
    }
    assert found == expected
    assert list(found) == sorted(found)


def test_optimizer_slots_and_the_integer_step_are_readable() -> None:
    bundle = TensorBundle(GOLDEN / "micro-adam" / "model.ckpt")
    step = bundle.read("global_step")
    assert (step.dtype, step.shape, int(step)) == (np.dtype(np.int64), (), 3)
    assert bundle.entries["model/wte/Adam_1"].shape == bundle.entries["model/wte"].shape
    assert (bundle.read("model/wte/Adam_1") >= 0).all()


def test_slices_are_joined_and_never_listed() -> None:
    bundle = TensorBundle(GOLDEN / "micro-partitioned" / "model.ckpt")
    assert len(bundle.entries) == 28
    assert all(len(entry.parts) == 2 for entry in bundle.entries.values())


def test_shards_of_one_model_hold_what_its_single_file_holds() -> None:
    assert read_all(GOLDEN / "micro-sharded" / "model.ckpt") == read_all(
        GOLDEN / "micro-a" / "model.ckpt"
    )


def test_the_writer_of_these_tests_writes_the_index_that_tensorflow_writes() -> None:
    original = (GOLDEN / "micro-a" / "model.ckpt.index").read_bytes()
    bundle = TensorBundle(GOLDEN / "micro-a" / "model.ckpt")
    offset, items = 0, [(b"", bytes.fromhex("08011a020801"))]
    for name, entry in bundle.entries.items():
        crc = writer.masked_crc(bundle.read(name).tobytes())
        fields: list[writer.Field] = [
            (1, 1),
            (2, writer.message(*((2, writer.message((1, size))) for size in entry.shape))),
        ]
        fields += [(4, offset)] if offset else []
        items.append(
            (name.encode(), writer.message(*fields, (5, entry.nbytes)) + writer.fixed32(6, crc))
        )
        offset += entry.nbytes
    # The one freedom is the key of the index block, which TensorFlow shortens.
    positions = writer.block_positions(original)
    assert writer.block(items) == original[: positions[0][1]]


# Files that our own writer wrote.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compress": True},
        {"items_per_block": 2},
        {"num_shards": 3, "padding": 5, "items_per_block": 1},
    ],
)
def test_what_is_written_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.mkdir()
    other.mkdir()
    expected = read_all(small_bundle(plain))
    assert expected["step"] == ((), "int64", struct.pack("<q", 12345))
    assert expected["zero"] == ((0, 3), "float32", b"")
    assert read_all(small_bundle(other, **options)) == expected


@pytest.mark.parametrize(
    "dtype", [name for name in writer.DTYPE_NUMBERS if name not in ("string", "bfloat16")]
)
def test_every_dtype_of_numbers_is_read(tmp_path: Path, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    bundle = TensorBundle(writer.write_bundle(tmp_path / "x", {"a": array}))
    found = bundle.read("a")
    assert (bundle.entries["a"].dtype, found.dtype, found.tolist()) == (
        dtype,
        np.dtype(dtype),
        array.tolist(),
    )


def test_bfloat16_comes_back_as_its_bits(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC000], np.uint16)  # 1, -2
    bundle = TensorBundle(
        writer.write_bundle(tmp_path / "x", {"a": bits}, dtypes={"a": "bfloat16"})
    )
    assert bundle.entries["a"].dtype == "bfloat16"
    assert bundle.read("a").dtype == np.uint16
    assert bundle.read("a").tolist() == bits.tolist()


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        ((300,), [((0, 100),), ((100, 200),)]),
        ((20000, 1), [((0, 70), (0, 1)), ((70, 10000), (0, None)), ((10070, 9930), (0, 1))]),
        ((70000,), [((0, 65000),), ((65000, 5000),)]),
        ((2, 3), [((0, None), (0, None))]),
        ((), [()]),
        (
            (3, 3),
            [
                ((0, 1), (0, 2)),
                ((0, 2), (2, 1)),
                ((2, 1), (1, 2)),
                ((1, 2), (0, 1)),
                ((1, 1), (1, 1)),
            ],
        ),  # a pinwheel
    ],
)
def test_slices_of_any_tiling_are_joined(
    tmp_path: Path, shape: tuple[int, ...], cuts: list[writer.Extents]
) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    bundle = TensorBundle(
        writer.write_bundle(
            tmp_path / "x", {"odd\0name é": np.asarray(array)}, slices={"odd\0name é": cuts}
        )
    )
    np.testing.assert_array_equal(bundle.read("odd\0name é"), array)


def test_many_threads_may_read_at_once() -> None:
    prefix = GOLDEN / "micro-partitioned" / "model.ckpt"
    bundle, expected = TensorBundle(prefix), read_all(prefix)

    def read(name: str) -> bool:
        out = np.empty(bundle.entries[name].nbytes, np.uint8)
        bundle.read_into(name, out)
        return out.tobytes() == expected[name][2]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, list(bundle.entries) * 10))


@pytest.mark.parametrize(
    "out",
    [
        np.empty(47, np.uint8),
        np.empty(12, np.float32),
        np.empty(96, np.uint8)[::2],
        np.frombuffer(bytes(48), np.uint8),
    ],
)
def test_only_a_fitting_array_is_filled(tmp_path: Path, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="48 uint8"):
        TensorBundle(small_bundle(tmp_path)).read_into("model/a", out)


def test_bytes_after_the_last_tensor_are_accepted(tmp_path: Path) -> None:
    prefix = small_bundle(tmp_path)
    expected = read_all(prefix)
    with open(f"{prefix}.data-00000-of-00001", "ab") as file:
        file.write(b"junk")
    assert read_all(prefix) == expected


def test_unknown_fields_and_packed_versions_are_skipped(tmp_path: Path) -> None:
    more = (
        writer.message((99, 7), (98, b"text"))
        + writer.fixed32(97, 1)
        + writer.varint(96 << 3 | 1)
        + bytes(8)
    )
    items = {b"a": writer.entry(4, (2,), size=2, crc=writer.masked_crc(b"ab"), more=more)}
    writer.write_files(
        tmp_path / "x",
        items,
        [b"ab"],
        head=writer.header(1, version=[(1, 9), (2, 1), (3, b"\x02\x81\x01")]),
    )
    assert TensorBundle(tmp_path / "x").read("a").tobytes() == b"ab"


# Damage.


def test_a_flipped_bit_in_a_tensor_is_found_and_named(tmp_path: Path) -> None:
    prefix = copy_of("micro-sharded", tmp_path)
    bundle = TensorBundle(prefix)
    generator = random.Random(0)
    for name, entry in bundle.entries.items():
        (part,) = entry.parts
        path = Path(f"{prefix}.data-{part.shard:05d}-of-00003")
        data = bytearray(path.read_bytes())
        data[part.offset + generator.randrange(part.nbytes)] ^= 1 << generator.randrange(8)
        good = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(
            CheckpointFormatError, match=r"has checksum 0x\w{8}, not 0x\w{8}"
        ) as caught:
            bundle.read(name)
        assert repr(name) in str(caught.value)
        assert caught.value.path == path
        path.write_bytes(good)


def test_any_flipped_bit_in_the_index_is_found(tmp_path: Path) -> None:
    prefix = copy_of("micro-a", tmp_path)
    path = Path(f"{prefix}.index")
    good = path.read_bytes()
    expected = read_all(prefix)
    padding = range(
        len(good) - 48 + 6, len(good) - 8
    )  # of the footer, after two handles of three bytes
    generator = random.Random(1)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << generator.randrange(8)
        path.write_bytes(bad)
        if at in padding:
            assert read_all(prefix) == expected
        else:
            with pytest.raises(CheckpointFormatError, match="index: "):
                TensorBundle(prefix)


@pytest.mark.parametrize("name", ["micro-a", "micro-sharded"])
def test_a_shortened_data_file_is_refused_before_anything_is_read(
    tmp_path: Path, name: str
) -> None:
    prefix = copy_of(name, tmp_path)
    generator = random.Random(2)
    for path in sorted(prefix.parent.glob("*.data-*")):
        data = path.read_bytes()
        parts = [part for entry in TensorBundle(prefix).entries.values() for part in entry.parts]
        cuts = {part.offset for part in parts if part.offset < len(data)} | {
            generator.randrange(len(data)) for _ in range(30)
        }
        for size in cuts:
            os.truncate(path, size)
            with pytest.raises(
                CheckpointFormatError,
                match=rf"is {size:,} bytes, but the index needs {len(data):,}",
            ):
                TensorBundle(prefix)
            path.write_bytes(data)


def test_a_shortened_index_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    prefix = small_bundle(tmp_path, items_per_block=2)
    path = Path(f"{prefix}.index")
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointFormatError, match="only a part of one"):
            TensorBundle(prefix)
        # A cut in the middle that keeps the end gets past the magic number.
        path.write_bytes(data[:size] + data[size + 1 :])
        if size < len(data) - 48:
            with pytest.raises(CheckpointFormatError):
                TensorBundle(prefix)


def test_a_file_that_shrinks_after_opening_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    prefix = small_bundle(tmp_path)
    bundle = TensorBundle(prefix)
    os.truncate(f"{prefix}.data-00000-of-00001", 10)
    with pytest.raises(CheckpointFormatError, match="cut short"):
        bundle.read("model/a")


def test_the_data_of_another_checkpoint_is_found_by_its_checksum(tmp_path: Path) -> None:
    prefix = copy_of("micro-a", tmp_path)
    shutil.copy(
        GOLDEN / "micro-simple" / "model-10.data-00000-of-00001", f"{prefix}.data-00000-of-00001"
    )
    bundle = TensorBundle(prefix)
    with pytest.raises(CheckpointFormatError, match="checksum"):
        bundle.read("model/wte")


# Entries that lie, in tables whose checksums are right.

E = writer.entry
CUT: Callable[..., bytes] = writer.slice_key


def sliced(shape: tuple[int, ...], *slices: writer.Extents) -> dict[bytes, bytes]:
    """A variable in slices, and for each slice an entry with data of its own."""
    items = {b"v": E(1, shape, slices=slices)}
    for number, extents in enumerate(slices):
        part = [
            size if length is None else length
            for (_, length), size in zip(extents, shape, strict=True)
        ]
        items[CUT("v", extents)] = E(1, part, offset=16 * number, size=4 * math.prod(part))
    return items


LIES: dict[str, tuple[dict[bytes, bytes], str]] = {
    "negative dimension": ({b"v": E(1, (-4,), size=16)}, "impossible shape"),
    "two negative dimensions": ({b"v": E(1, (-2, -2), size=16)}, "impossible shape"),
    "missing dtype": ({b"v": E(None, (4,), size=16)}, "dtype number 0"),
    "unsupported dtype": ({b"v": E(999, (4,), size=16)}, "dtype number 999"),
    "reference dtype": ({b"v": E(101, (4,), size=16)}, "dtype number 101"),
    "negative dtype": ({b"v": E(-1, (4,), size=16)}, "dtype number -1"),
    "tensor size overflow": ({b"v": E(1, (2**32, 2**32), size=0)}, "impossible shape"),
    "tensor size overflow to a small number": (
        {b"v": E(1, (2**62 + 1,), size=4)},
        "impossible shape",
    ),
    "empty, but NumPy's sizes overflow": ({b"v": E(1, (0, 2**62), size=0)}, "impossible shape"),
    "missing tensor data": ({b"v": E(1, (4,), size=0)}, "makes 16"),
    "data beyond the end": (
        {b"v": E(1, (4,), offset=60, size=16)},
        "is 64 bytes, but the index needs 76",
    ),
    "huge offset": ({b"v": E(1, (4,), offset=2**63 - 1, size=16)}, "the index needs"),
    "negative offset": ({b"v": E(1, (4,), offset=-16, size=16)}, "offset -16"),
    "negative size": ({b"v": E(7, (4,), size=-16)}, "size -16"),
    "size too large": ({b"v": E(1, (4,), size=17)}, "makes 16"),
    "nine dimensions": ({b"v": E(1, (1,) * 9, size=4)}, "9 dimensions"),
    "no rank": ({b"v": writer.message((1, 1), (2, writer.message((3, 1))), (5, 4))}, "no rank"),
    "shard out of range": ({b"v": E(1, (4,), shard=1, size=16)}, "data file 1 of 1"),
    "negative shard": ({b"v": E(1, (4,), shard=-1, size=16)}, "data file -1"),
    "overlapping entries": (
        {f"v{i:04}".encode(): E(1, (16,), size=64) for i in range(1000)},
        "overlaps the bytes of another",
    ),
    "partly overlapping entries": (
        {b"u": E(1, (4,), size=16), b"v": E(1, (4,), offset=15, size=16)},
        "overlaps the bytes of another",
    ),
    "a name that is not UTF-8": ({b"\xff\xfe": E(1, (4,), size=16)}, "not UTF-8"),
    "a number in place of a shape": ({b"v": writer.message((1, 1), (2, 4))}, "not its own"),
    "a shape in place of a number": ({b"v": writer.message((1, b"1"))}, "not its own"),
    "a message that ends early": ({b"v": E(1, (4,), size=16)[:-1]}, "ends before"),
    "a group": ({b"v": writer.varint(9 << 3 | 3)}, "wire type 3"),
    "an endless number": ({b"v": b"\x08" + b"\xff" * 20}, "more than 64 bits"),
    "a number of 70 bits": ({b"v": b"\x08" + b"\xff" * 9 + b"\x7f"}, "more than 64 bits"),
    "a field number of 40 bits": ({b"v": writer.varint(1 << 40) + b"\0"}, "more than 32 bits"),
    "negative extent start": ({b"v": E(1, (4,), slices=[((-2, 4),)])}, "outside the shape"),
    "extent end overflow": (
        {b"v": E(1, (4,), slices=[((2**63 - 1, 2**63 - 1),)])},
        "outside the shape",
    ),
    "extent past the end": ({b"v": E(1, (4,), slices=[((2, 3),)])}, "outside the shape"),
    "missing extent length": (
        {b"v": E(1, (4,), slices=[((2, None),), ((0, 2),)])},
        "outside the shape",
    ),
    "negative extent length": ({b"v": E(1, (4,), slices=[((0, -1),)])}, "outside the shape"),
    "empty extent": ({b"v": E(1, (4,), slices=[((0, 4),), ((2, 0),)])}, "outside the shape"),
    "too few extents": ({b"v": E(1, (4, 1), slices=[((0, 4),)])}, "1 dimensions, the variable 2"),
    "a gap": (sliced((4,), ((0, 1),), ((2, 2),)), "overlap or leave gaps"),
    "an overlap": (sliced((4,), ((0, 3),), ((2, 2),)), "overlap or leave gaps"),
    "a gap as large as an overlap": (
        sliced((2, 2), ((0, 2), (0, 1)), ((0, 1), (0, 2))),
        "overlap or leave gaps",
    ),
    "a slice twice": (
        {b"v": E(1, (4,), slices=[((0, 2),), ((0, 2),)]), CUT("v", [(0, 2)]): E(1, (2,), size=8)},
        "overlap or leave gaps",
    ),
    "a slice without an entry": ({b"v": E(1, (4,), slices=[((0, 4),)])}, "lacks its slice"),
    "a slice of another shape": (
        {b"v": E(1, (4,), slices=[((0, 4),)]), CUT("v", [(0, 4)]): E(1, (2,), size=8)},
        "another dtype or shape",
    ),
    "a slice of another dtype": (
        {b"v": E(1, (4,), slices=[((0, 4),)]), CUT("v", [(0, 4)]): E(3, (4,), size=16)},
        "another dtype or shape",
    ),
    "a slice of nothing": (
        {b"v": E(1, (4,), size=16), CUT("w", [(0, 4)]): E(1, (4,), offset=16, size=16)},
        "belongs to no variable",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_impossible_entry_is_refused_when_the_checkpoint_is_opened(
    tmp_path: Path, lie: str
) -> None:
    items, message = LIES[lie]
    with pytest.raises(CheckpointFormatError, match=message):
        TensorBundle(writer.write_files(tmp_path / "x", items, [bytes(64)]))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (writer.header(0), "0 data files"),
        (writer.header(10**9), "1,000,000,000 data files"),
        (writer.header(-1), "-1 data files"),
        (writer.header(1, (2, 1)), "big-endian"),
        (writer.header(1, version=[(1, 2), (2, 2)]), "newer TensorFlow"),
        (writer.header(1, version=[(1, 2), (3, 5), (3, 1)]), "newer TensorFlow"),
        (writer.header(1, version=[(1, 2), (3, b"\x05\x01")]), "newer TensorFlow"),
        (writer.message((1, b"\x0a\x01v")), "first format"),
        (b"\x08", "ends before"),
    ],
)
def test_a_header_of_another_kind_is_refused_by_its_name(
    tmp_path: Path, head: bytes, message: str
) -> None:
    with pytest.raises(CheckpointFormatError, match=message):
        TensorBundle(
            writer.write_files(tmp_path / "x", {b"v": E(1, (4,), size=16)}, [bytes(16)], head=head)
        )


def raw_index(tmp_path: Path, index: bytes) -> Path:
    (tmp_path / "x.index").write_bytes(index)
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(64))
    return tmp_path / "x"


HEAD = (b"", writer.header())
GOOD = E(1, (4,), size=16, crc=writer.masked_crc(bytes(16)))


def one_block(content: bytes, compression: int = 0) -> bytes:
    return writer.table_of_blocks([(b"zz", content, compression)])


def spelled_out(unshared: int, entries: int) -> bytes:
    """Return a block whose keys repeat the previous one and add a byte: small, but expanding."""
    value = E(1, (0,))
    first = (
        writer.varint(0)
        + writer.varint(unshared)
        + writer.varint(len(value))
        + b"k" * unshared
        + value
    )
    rest = b"".join(
        writer.varint(unshared + i) + b"\1" + writer.varint(len(value)) + b"k" + value
        for i in range(entries)
    )
    return writer.block([HEAD])[:-8] + first + rest + writer.EMPTY_BLOCK[-8:]


TABLES: dict[str, tuple[bytes, str]] = {
    "no header": (writer.table([(b"v", GOOD)]), "no header"),
    "nothing at all": (writer.table([]), "no header"),
    "unsorted keys": (writer.table([HEAD, (b"w", GOOD), (b"v", GOOD)]), "not sorted"),
    "a key twice": (writer.table([HEAD, (b"v", GOOD), (b"v", GOOD)]), "not sorted"),
    "keys unsorted over blocks": (
        writer.table([HEAD, (b"w", GOOD), (b"v", GOOD)], items_per_block=2),
        "not sorted",
    ),
    "a key that shares too much": (
        one_block(writer.block([HEAD])[:-8] + b"\1\1\0k" + writer.EMPTY_BLOCK[-8:]),
        "which has fewer",
    ),
    "a value past the end": (one_block(b"\0\0\x7f" + writer.EMPTY_BLOCK[-8:]), "ends before"),
    "too many restarts": (one_block(struct.pack("<I", 2**32 - 1)), "4,294,967,295 restarts"),
    "a block too short for its restarts": (one_block(b"\1"), "restarts"),
    "an unknown compression": (one_block(writer.block([HEAD]), 2), "unknown way"),
    "a key without end": (one_block(spelled_out(2**17, 1)), "a key has"),
    "keys that add up": (one_block(spelled_out(2**15, 2100)), "expand to more than"),
    "a bomb by its size": (one_block(writer.varint(2**31) + b"\0a" * 1000, 1), "expand to"),
    "a bomb of 4 GiB": (one_block(writer.varint(2**32 - 1) + b"\0a", 1), "expand to"),
    "a bomb that says that it is small": (
        one_block(b"\x05\0a" + b"\xfe\1\0" * 1000, 1),
        "longer than it says",
    ),
    "compressed nonsense": (one_block(b"\x05\x01\xff", 1), "before its beginning"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_breaks_the_format_is_refused_in_little_memory(
    tmp_path: Path, kind: str
) -> None:
    index, message = TABLES[kind]
    prefix = raw_index(tmp_path, index)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointFormatError, match=message):
            TensorBundle(prefix)
        assert (
            tracemalloc.get_traced_memory()[1] < (100 if kind == "keys that add up" else 4) * 2**20
        )
    finally:
        tracemalloc.stop()


def test_a_block_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    content = writer.block([HEAD, (b"v", GOOD)])
    stored = content + b"\0" + struct.pack("<I", writer.masked_crc(content + b"\0"))
    handle = writer.varint(0) + writer.varint(len(content))
    index = writer.block([(b"w", handle), (b"x", handle)], restart_interval=1)
    footer = (
        writer.varint(0)
        + writer.varint(len(content))
        + writer.varint(len(stored))
        + writer.varint(len(index))
    )
    tail = index + b"\0" + struct.pack("<I", writer.masked_crc(index + b"\0"))
    with pytest.raises(CheckpointFormatError, match="overlaps another"):
        TensorBundle(raw_index(tmp_path, stored + tail + footer.ljust(40, b"\0") + writer.MAGIC))


def test_huge_declared_sizes_allocate_nothing(tmp_path: Path) -> None:
    prefix = writer.write_files(tmp_path / "x", {b"v": E(1, (2**40,), size=2**42)}, [bytes(64)])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointFormatError, match="the index needs"):
            TensorBundle(prefix)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# Files that are something else.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (
            b'\n  <?xml version="1.0"?><Error><Code>BlobNotFound</Code></Error>' + b" " * 100,
            "web page",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5215\n",
            "git-lfs pointer",
        ),
        (b"", "0 bytes"),
        (bytes(1000), "not a TensorFlow index"),
    ],
)
def test_a_failed_download_is_recognized(tmp_path: Path, content: bytes, message: str) -> None:
    prefix = small_bundle(tmp_path)
    Path(f"{prefix}.index").write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=message):
        TensorBundle(prefix)
    if message != "not a TensorFlow index":
        prefix = small_bundle(tmp_path)
        Path(f"{prefix}.data-00000-of-00001").write_bytes(content)
        with pytest.raises(CheckpointFormatError, match=message):
            TensorBundle(prefix)


def test_an_index_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    prefix = small_bundle(tmp_path)
    os.truncate(f"{prefix}.index", 2**30)
    with pytest.raises(CheckpointFormatError, match="no index needs more"):
        TensorBundle(prefix)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointNotFoundError, match=r"model\.ckpt\.index: no such file"
    ) as nothing:
        TensorBundle(tmp_path / "model.ckpt")
    assert nothing.value.missing == ["model.ckpt.index"]
    prefix = copy_of("micro-sharded", tmp_path)
    Path(f"{prefix}.data-00001-of-00003").unlink()
    with pytest.raises(CheckpointNotFoundError, match="1 of 3 data files missing") as one:
        TensorBundle(prefix)
    assert one.value.missing == ["model.ckpt.data-00001-of-00003"]


@pytest.fixture
def alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError("it waits for the other end of a pipe")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)],
    ids=["pipe", "folder", "broken link"],
)
def test_what_is_not_a_file_is_refused_at_once(
    tmp_path: Path, suffix: str, make: Callable[[str], None], alarm: None
) -> None:
    prefix = small_bundle(tmp_path)
    os.unlink(f"{prefix}{suffix}")
    make(f"{prefix}{suffix}")
    with pytest.raises(CheckpointError, match=suffix):
        TensorBundle(prefix)


def test_a_checkpoint_of_the_first_format_is_named(tmp_path: Path) -> None:
    table = writer.table([(b"", writer.message((1, writer.message((1, b"v"))))), (b"v", b"\x12\0")])
    (tmp_path / "old.ckpt").write_bytes(table)
    with pytest.raises(CheckpointFormatError, match="first format") as caught:
        TensorBundle(tmp_path / "old.ckpt")
    assert caught.value.path == tmp_path / "old.ckpt"


def test_an_object_based_checkpoint_is_named(tmp_path: Path) -> None:
    items = {
        b"_CHECKPOINTABLE_OBJECT_GRAPH": E(7, (), size=9),
        b"wte/.ATTRIBUTES/VARIABLE_VALUE": E(1, (4,), offset=9, size=16),
    }
    with pytest.raises(CheckpointFormatError, match="object-based TensorFlow 2"):
        TensorBundle(writer.write_files(tmp_path / "x", items, [bytes(25)]))


def test_strings_are_listed_but_not_read(tmp_path: Path) -> None:
    items = {
        b"names": E(7, (2,), size=9),
        b"v": E(4, (2,), offset=9, size=2, crc=writer.masked_crc(b"ab")),
    }
    bundle = TensorBundle(writer.write_files(tmp_path / "x", items, [bytes(9) + b"ab"]))
    assert {name: entry.dtype for name, entry in bundle.entries.items()} == {
        "names": "string",
        "v": "uint8",
    }
    assert bundle.read("v").tobytes() == b"ab"
    for read in (bundle.read, lambda name: bundle.read_into(name, np.empty(9, np.uint8))):
        with pytest.raises(CheckpointFormatError, match="'names' is a string"):
            read("names")


# Chance.


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    prefix = small_bundle(tmp_path, items_per_block=4)
    path = Path(f"{prefix}.index")
    good, expected, generator = path.read_bytes(), read_all(prefix), random.Random(3)
    for _ in range(1000):
        path.write_bytes(mutate(good, generator))
        with contextlib.suppress(CheckpointError):
            assert read_all(prefix) == expected


@pytest.mark.parametrize("compress", [False, True])
def test_random_damage_behind_right_checksums_raises_only_our_errors(
    tmp_path: Path, compress: bool
) -> None:
    prefix = small_bundle(tmp_path)
    path = Path(f"{prefix}.index")
    index = path.read_bytes()
    offset, size = writer.block_positions(index)[0]
    content = index[offset : offset + size]
    data = Path(f"{prefix}.data-00000-of-00001").stat().st_size
    generator = random.Random(4 + compress)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1500):
        block = mutate(writer.snappy(content) if compress else content, generator)
        path.write_bytes(writer.table_of_blocks([(b"~", block, int(compress))]))
        try:
            bundle = TensorBundle(prefix)
            assert sum(entry.nbytes for entry in bundle.entries.values()) <= data
            for name in bundle.entries:
                bundle.read(name)
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10  # damage got past the checksum, and some of it was no damage


# Snappy.


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        (b"\x08abc", b"abc"),
        (b"\xf0\x3c" + b"x" * 61, b"x" * 61),
        (b"\xf4\x3c\x01" + b"y" * 317, b"y" * 317),
        (b"\x00a" + b"\x0d\x01", b"a" * 8),  # a copy that reads what it writes
        (b"\x08abc" + b"\x1e\x03\x00", b"abcabcabcab"),
        (b"\x0cabcd" + b"\x0b\x04\0\0\0", b"abcdabc"),
        (b"", b""),
    ],
)
def test_snappy_elements_are_decoded(elements: bytes, expected: bytes) -> None:
    assert snappy.decompress(elements, len(expected)) == expected


@pytest.mark.parametrize(
    "elements",
    [
        b"\x08ab",
        b"\xf0",
        b"\xfc\xff\xff\xff\xff",
        b"\x00a\x01",
        b"\x00a\x01\x00",
        b"\x00a\x02\x02\x00",
        b"\x00a\x0e\x01",
        b"\x00a",
    ],
)
def test_broken_snappy_is_refused(elements: bytes) -> None:
    with pytest.raises(ValueError, match="compressed data"):
        snappy.decompress(elements, 5)


def test_snappy_gives_back_what_was_compressed() -> None:
    generator = random.Random(6)
    for _ in range(200):
        data = bytes(
            generator.choice(b"abc") for _ in range(generator.randrange(400))
        ) + generator.randbytes(generator.randrange(80))
        stream = writer.snappy(data)
        assert snappy.decompress(stream[len(writer.varint(len(data))) :], len(data)) == data
