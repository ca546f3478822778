"""From a checkpoint to a GGUF file that llama.cpp runs."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from gpt2kit.checkpoints.gguf.header import ALIGNMENT, ARRAY, MAGIC, SCALARS, TEXT
from gpt2kit.checkpoints.gguf.numbers import F16, F32, Q4_0, Q8_0, NumberType
from gpt2kit.checkpoints.gguf.reading import EPSILON, NAMES, SIZES
from gpt2kit.checkpoints.layouts import Layout
from gpt2kit.checkpoints.stored import StoredTensor
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError

_CODES = {form: code for code, form in SCALARS.items()}
_VERSION = 3
_QUANTIZATION_VERSION = 2  # of ggml's blocks


def number_types(config: GPT2Config, chosen: NumberType) -> dict[str, NumberType]:
    """Return the type that each tensor is written with, by our names.

    Vectors and positions stay float32, which llama.cpp needs. Rows that cannot be cut into blocks
    become float16. Beside Q4_0 the head is Q8_0, as llama-quantize keeps it more exact, too.
    """
    found = {}
    for name, shape in config.shapes().items():
        is_head = name == ("lm_head.weight" if config.has_own_head else "wte.weight")
        kind = Q8_0 if is_head and chosen is Q4_0 else chosen
        if len(shape) == 1 or name == "wpe.weight":
            kind = F32
        found[name] = kind if kind.fits(shape) else F16
    return found


def write_gguf(
    file: BinaryIO,
    config: GPT2Config,
    tensors: Mapping[str, StoredTensor],
    vocabulary: Mapping[str, Any],
    *,
    name: str,
    chosen: NumberType,
    untie: bool = False,
) -> None:
    """Write a model of GPT-2's own architecture, one tensor in memory at a time.

    `vocabulary` has the keys of the vocabulary. `untie` writes a tied head as a tensor of its own.
    Raises CheckpointError for a number that the type cannot hold.
    """
    types = number_types(config, chosen)
    theirs = {ours: name for name, (ours, _) in Layout("llama.cpp", NAMES).expected(config).items()}
    written = [(theirs[ours], ours) for ours in config.shapes()]
    if untie and config.tie_word_embeddings:
        written.append(("output.weight", "wte.weight"))
    keys = {**_keys(config, name, chosen), **vocabulary}
    header = [MAGIC, struct.pack("<IQQ", _VERSION, len(written), len(keys))]
    for key, value in keys.items():
        header += [_text(key), *_value(value)]
    offset = 0
    for in_file, ours in written:
        shape = config.shapes()[ours]
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += [_text(in_file), axes, struct.pack("<IQ", types[ours].code, offset)]
        offset += _padded(types[ours].nbytes(shape))
    data = b"".join(header)
    file.write(data.ljust(_padded(len(data)), b"\0"))
    for _, ours in written:
        size = 0
        for chunk in _chunks(ours, tensors[ours], types[ours]):
            size += file.write(chunk)
        file.write(bytes(_padded(size) - size))


def _chunks(name: str, stored: StoredTensor, kind: NumberType) -> Iterator[memoryview]:
    try:
        yield from kind.chunks(stored.read())
    except OverflowError:
        raise CheckpointError(
            f"{name} holds numbers that are too large for {kind.name}; take a wider --dtype"
        ) from None


def _keys(config: GPT2Config, name: str, chosen: NumberType) -> dict[str, Any]:
    """Return the keys of a model, without those of its vocabulary."""
    version = {"general.quantization_version": _QUANTIZATION_VERSION} if chosen.block_bytes else {}
    sizes = {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    return {
        "general.architecture": "gpt2",
        "general.name": name,
        "general.file_type": chosen.file_type,
        **version,
        **sizes,
        "gpt2.feed_forward_length": config.inner_size,
        EPSILON: float(config.layer_norm_epsilon),
    }


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> Iterator[bytes]:
    """Yield the type and the bytes of a key's value; a list has values of one type."""
    if isinstance(value, list):
        is_text = not value or isinstance(value[0], str)  # a vocabulary may have no merges
        yield struct.pack("<IIQ", ARRAY, TEXT if is_text else _CODES["i"], len(value))
        yield from map(_text, value) if is_text else [struct.pack(f"<{len(value)}i", *value)]
    elif isinstance(value, str):
        yield struct.pack("<I", TEXT) + _text(value)
    else:
        form = {bool: "?", int: "I", float: "f"}[type(value)]
        yield struct.pack(f"<I{form}", _CODES[form], value)
