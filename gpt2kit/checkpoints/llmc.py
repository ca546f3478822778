"""llm.c's files: a header of 256 integers, then the tensors of all layers together, in and out.

header     int32: magic, version (3: float32, 5: bfloat16), n_ctx, n_vocab, n_layer, n_head, n_embd,
           rows of the token embedding: n_vocab rounded up to a multiple of 128
tensors    in the order of TENSORS; matrices are (out, in), as ours are

The function is GPT-2's own: a tied head, epsilon 1e-5, tanh GELU, an MLP of 4 * n_embd. The
vocabulary is another file, from which texts can be decoded but not encoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gpt2kit.checkpoints.gguf.numbers import BF16, F32
from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    ConfigError,
    TokenizerError,
)
from gpt2kit.files import check_regular, read_start
from gpt2kit.tokenizers import Tokenizer

TOKENIZER_FILE = "gpt2_tokenizer.bin"  # the name that llm.c opens

# What a model must be for llm.c, whose files do not say it.
NEEDED: dict[str, Any] = {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, "n_inner": None}
DTYPES = {3: torch.float32, 5: torch.bfloat16}  # by the file's version
NUMBERS = {torch.float32: F32, torch.bfloat16: BF16}

TENSORS = (
    "wte.weight",
    "wpe.weight",
    *(
        f"h.{{layer}}.{part}.{kind}"
        for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    ),
    "ln_f.weight",
    "ln_f.bias",
)

MAGIC = struct.pack("<i", 20240326)
_TOKENIZER_MAGIC = 20240328
_INTEGERS = 256  # of a header
_HEADER = 4 * _INTEGERS  # bytes
_TOKENIZER_VERSION = 2
_MULTIPLE = 128  # of the rows of the token embedding
_LONGEST_TOKEN = 255  # bytes


# --- in -------------------------------------------------------------------------------------------


def is_llmc(start: bytes) -> bool:
    """Whether a file begins as llm.c's do."""
    return start.startswith(MAGIC)


def open_file(path: Path) -> Checkpoint:
    """Open a file of llm.c; it has no vocabulary.

    Raises CheckpointFormatError for another version or size, ConfigError for a wrong shape.
    """
    start = read_start(path, _HEADER, error=CheckpointError)
    if len(start) < _HEADER:
        raise CheckpointFormatError(path, "ends inside its header; get it again")
    _, version, *sizes, rows = struct.unpack_from("<8i", start)
    if version not in DTYPES:
        detail = f"llm.c's version {version}; expected 3 (float32) or 5 (bfloat16)"
        raise CheckpointFormatError(path, detail)
    names = ("n_ctx", "n_vocab", "n_layer", "n_head", "n_embd")
    try:
        config = GPT2Config(**dict(zip(names, sizes, strict=True)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not config.n_vocab <= rows <= config.n_vocab + 2**16:
        detail = f"{rows:,} rows of the token embedding for {config.n_vocab:,} tokens"
        raise CheckpointFormatError(path, detail)
    dtype, shapes, tensors, offset = DTYPES[version], config.shapes(), {}, _HEADER
    for name in _in_order(config):
        tensors[name] = StoredTensor.at(path, name, offset, shapes[name], dtype)
        offset += _nbytes(shapes[name], dtype, rows if name == "wte.weight" else None)
    if (size := check_regular(path, error=CheckpointError)) != offset:
        raise CheckpointFormatError(
            path, f"has {size:,} bytes, expected {offset:,} for this shape; get it again"
        )
    return Checkpoint(path, f"llm.c, version {version}", config, tensors, is_alone=True)


def _in_order(config: GPT2Config) -> Iterator[str]:
    """Yield the names of the tensors in the order of the file."""
    for name in TENSORS:
        layers = range(config.n_layer if "{layer}" in name else 1)
        yield from (name.format(layer=layer) for layer in layers)


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype, rows: int | None = None) -> int:
    """Return the bytes of a tensor, which may have more rows in the file."""
    shape = shape if rows is None else (rows, *shape[1:])
    return torch.Size(shape).numel() * dtype.itemsize


# --- out ------------------------------------------------------------------------------------------


def write_llmc(
    file: BinaryIO,
    config: GPT2Config,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
) -> None:
    """Write a model of GPT-2's own architecture, one tensor in memory at a time.

    Raises CheckpointError for a number that the dtype cannot hold.
    """
    versions = {dtype: version for version, dtype in DTYPES.items()}
    rows = -(-config.n_vocab // _MULTIPLE) * _MULTIPLE
    sizes = (config.n_ctx, config.n_vocab, config.n_layer, config.n_head, config.n_embd, rows)
    file.write((MAGIC + struct.pack("<7i", versions[dtype], *sizes)).ljust(_HEADER, b"\0"))
    for name in _in_order(config):
        try:
            for chunk in NUMBERS[dtype].chunks(tensors[name].read()):
                file.write(chunk)
        except OverflowError:
            message = f"{name} holds numbers that are too large for {dtype}"
            raise CheckpointError(message) from None
        if name == "wte.weight":
            file.write(bytes((rows - config.n_vocab) * config.n_embd * dtype.itemsize))


def tokenizer_file(tokenizer: Tokenizer) -> bytes:
    """Return the vocabulary as llm.c reads it: an end token, and the bytes of each token.

    Raises TokenizerError for a token of no bytes, or of too many.
    """
    end = tokenizer.n_vocab if tokenizer.stop_id is None else tokenizer.stop_id
    header = (_TOKENIZER_MAGIC, _TOKENIZER_VERSION, tokenizer.n_vocab, end)
    data = [struct.pack("<4I", *header).ljust(_HEADER, b"\0")]
    for number in range(tokenizer.n_vocab):
        token = tokenizer.token_bytes(number)
        if not 0 < len(token) <= _LONGEST_TOKEN:
            raise TokenizerError(
                f"token {number} has {len(token):,} bytes; llm.c takes 1 to {_LONGEST_TOKEN}"
            )
        data.append(bytes([len(token)]) + token)
    return b"".join(data)
