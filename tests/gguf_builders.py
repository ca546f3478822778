"""Write GGUF files by hand, right or damaged, and ask for what a reader makes of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from gpt2kit.checkpoints.exports import export_gguf
from gpt2kit.checkpoints.load import open_checkpoint, write_model
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import CharTokenizer, Tokenizer

ALPHABET = "\n abcdefghijklmnopqrstuvwxyzàèò’"


def characters(n: int) -> CharTokenizer:
    """Return a vocabulary of n characters, some of them of several bytes."""
    return CharTokenizer([*ALPHABET, *map(chr, range(0x400, 0x400 + n))][:n])


def write_file(
    folder: Path, model: GPT2, tokenizer: Tokenizer | None = None, **options: Any
) -> Path:
    """Write a model as a GGUF file, with a vocabulary of characters unless one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source"
    source.mkdir()
    tokenizer = tokenizer or characters(model.config.n_vocab)
    write_model(source, model, tokenizer)
    return export_gguf(folder / "model.gguf", open_checkpoint(source), tokenizer, **options).path


def text(value: str | bytes) -> bytes:
    """Return a text as the format has it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, value: str | int) -> bytes:
    """Return a key with a text or a 32-bit number."""
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    return text(name) + struct.pack("<II", 4, value)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """Return the description of a tensor, its axes as NumPy has them."""
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def gguf(
    keys: list[bytes], tensors: list[bytes], data: bytes = bytes(256), version: int = 3
) -> bytes:
    """Return a file with these keys and tensors."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    header += b"".join(keys) + b"".join(tensors)
    return header.ljust(-(-len(header) // 32) * 32, b"\0") + data
