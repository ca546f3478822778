"""The interpreter of pickles: plain values and descriptions of tensors, and nothing is called."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest
import torch

from gpt2kit.checkpoints.unpickle import PickledTensor, Storage, Unreadable, unpickle


def pickled(value: Any) -> io.BytesIO:
    """Return the pickle that torch.save writes of a value; the numbers of tensors are not in it."""
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as archive:
        return io.BytesIO(archive.read("archive/data.pkl"))


VALUES = {
    "numbers": [0, 1, 255, 256, 65_536, -1, 2**31, 2**70, 0.5, True, False, None],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "texts": ["", "è", "x" * 1000],
    "containers": {"a": [], "b": {}, 3: {"c": [[1]]}},
}


@pytest.mark.parametrize("name", VALUES)
def test_plain_values_are_what_python_reads(name: str) -> None:
    assert unpickle(pickled(VALUES[name])) == (VALUES[name], {})


def test_a_container_that_is_used_twice_is_one_object() -> None:
    shared = [1]
    (first, second), _ = unpickle(pickled((shared, shared)))
    assert first is second


def test_a_container_that_holds_itself_is_read() -> None:
    loop: list[Any] = []
    loop.append(loop)
    found, _ = unpickle(pickled(loop))
    assert found[0] is found


def test_a_deeply_nested_value_needs_no_deep_recursion() -> None:
    nested = b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."
    found, _ = unpickle(io.BytesIO(nested))
    depth = 1
    while found:
        (found,) = found
        depth += 1
    assert depth == 100_000


def test_a_tensor_is_described_and_not_read() -> None:
    tensor = torch.zeros(20)[3:15].view(3, 4).t()
    found, storages = unpickle(pickled({"w": tensor}))
    storage = Storage("0", torch.float32, 20)
    assert found == {"w": PickledTensor(storage, 3, (4, 3), (1, 4))}
    assert storages == {"0": storage}


def test_the_position_is_left_at_the_end_of_the_pickle() -> None:
    file = io.BytesIO(pickled([1]).getvalue() + b"the rest")
    unpickle(file)
    assert file.read() == b"the rest"


SIZE = b"\x80\x02ctorch\nSize\n"
ORDERED = b"\x80\x02ccollections\nOrderedDict\nq\0"


def test_a_list_of_pairs_becomes_a_dictionary_once() -> None:
    """It was copied as often as a hostile pickle asked."""
    program = ORDERED + b"](K\0K\1\x86eq\1\x85q\2Rh\0h\2R\x86."
    assert unpickle(io.BytesIO(program))[0] == ({0: 1}, {})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cos\nsystem\n(X\x02\x00\x00\x00lstR.", r"refers to 'os\.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"refers to 'os\.system'"),
        (b"\x80\x04]\x8f.", "uses EMPTY_SET, which plain values do not need"),
        (b"\x80\x02}(G?\xe0\x00\x00\x00\x00\x00\x00K\x01u.", "keys that are neither texts nor"),
        (b"\x80\x02K\x01K\x02e.", "damaged"),  # APPENDS without a MARK
        (b"\x80\x02a.", "damaged"),  # APPEND to an empty stack
        (b"\x80\x02K\x01)R.", "damaged"),  # a call of the number 1
        (b"\x80\x02K\x01Q.", "damaged"),  # a persistent id that is a number
        (b"\x80\x02](K\x01", "damaged"),  # no end
        # Calls that copied long containers, repeated, took gigabytes from a file of kilobytes.
        (SIZE + b"](" + b"K\0" * 65 + b"e\x85R.", "too many axes"),
        (SIZE + b"(" + b"K\0" * 17 + b"tR.", "too many arguments"),
        (ORDERED + b"(K\0K\1\x86t\x85R.", "damaged"),  # pairs in a tuple, which stays as it is
        (b"", "damaged"),
    ],
)
def test_any_other_program_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        unpickle(io.BytesIO(data))
