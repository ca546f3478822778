"""Write an ONNX file one tensor at a time: protobuf whose lengths are known before its numbers.

    ModelProto     everything but the graph; then field 7, its length, and the graph:
    GraphProto     everything but the weights; then for each of them field 5, its length, and:
    TensorProto    type, shape and name; then field 9, its length, and the numbers

onnx's own writer has all weights in memory, twice. A protobuf message has at most 2 GB, and who
reads one has all of it in memory: the numbers of a model of more than 1 GB are in a second file
beside it, FILE_data, in which each tensor begins a page, so that it can be mapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import StringStringEntryProto, TensorProto

from gpt2kit.checkpoints.onnx.weights import Initializer, Weight
from gpt2kit.checkpoints.stored import StoredTensor

LARGEST = 10**9  # bytes of the weights in a file with the graph
DATA = "_data"  # ends the name of the second file

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # fields of the three messages
_BYTES = 2  # protobuf's type of a field with a length
_PAGE = 4096  # bytes


def write_onnx(
    path: Path, model: onnx.ModelProto, weights: list[Weight]
) -> dict[str, StoredTensor]:
    """Write a graph with its weights, and return the weights as they are in the file.

    Raises CheckpointError for a number that its type cannot hold.
    """
    total = sum(each.nbytes for weight in weights for each in weight.initializers)
    if total <= LARGEST:
        with path.open("wb") as file:
            offsets = _write_whole(file, model, weights)
        return _found(path, weights, offsets)
    data = path.with_name(path.name + DATA)
    with data.open("wb") as file:
        offsets = _write_data(file, weights)
    model.graph.initializer.extend(_elsewhere(data.name, weights, offsets))
    path.write_bytes(model.SerializeToString())
    return _found(data, weights, offsets)


def _write_whole(file: BinaryIO, model: onnx.ModelProto, weights: list[Weight]) -> dict[str, int]:
    """Write one file with everything, and return where the numbers of each initializer are."""
    graph = model.graph.SerializeToString()
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    initializers = [each for weight in weights for each in weight.initializers]
    length = len(graph) + sum(len(_prefix(each)) + each.nbytes for each in initializers)
    file.write(rest.SerializeToString() + _start(_GRAPH, length) + graph)
    offsets = {}
    for initializer, chunks in _data(weights):
        file.write(_prefix(initializer))
        offsets[initializer.name] = file.tell()
        for chunk in chunks:
            file.write(chunk)
    return offsets


def _prefix(initializer: Initializer) -> bytes:
    """Return what a graph has of a tensor before its numbers."""
    message = TensorProto(
        dims=initializer.shape, data_type=initializer.element, name=initializer.name
    )
    start: bytes = message.SerializeToString() + _start(_RAW_DATA, initializer.nbytes)
    return _start(_INITIALIZER, len(start) + initializer.nbytes) + start


def _start(field: int, length: int) -> bytes:
    """Return the tag of a field with a length, and the length."""
    return _varint(field << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    """Return an integer in groups of seven bits, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _write_data(file: BinaryIO, weights: list[Weight]) -> dict[str, int]:
    """Write the numbers alone, and return where those of each initializer are."""
    offsets = {}
    for initializer, chunks in _data(weights):
        file.write(bytes(-file.tell() % _PAGE))
        offsets[initializer.name] = file.tell()
        for chunk in chunks:
            file.write(chunk)
    return offsets


def _elsewhere(name: str, weights: list[Weight], offsets: dict[str, int]) -> Iterator[TensorProto]:
    """Yield initializers whose numbers are in another file of the same folder."""
    for weight in weights:
        for each in weight.initializers:
            where = {"location": name, "offset": offsets[each.name], "length": each.nbytes}
            yield TensorProto(
                dims=each.shape,
                data_type=each.element,
                name=each.name,
                data_location=TensorProto.EXTERNAL,
                external_data=[
                    StringStringEntryProto(key=key, value=str(value))
                    for key, value in where.items()
                ],
            )


def _data(weights: list[Weight]) -> Iterator[tuple[Initializer, Iterable[memoryview]]]:
    for weight in weights:
        yield from zip(weight.initializers, weight.data(), strict=True)


def _found(path: Path, weights: list[Weight], offsets: dict[str, int]) -> dict[str, StoredTensor]:
    """Return the weights as they are in a file."""
    return {
        weight.name: weight.found(
            [each.at(path, offsets[each.name]) for each in weight.initializers]
        )
        for weight in weights
    }
