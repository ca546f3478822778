"""Damage to files, by seed: blind, or made for a format, so that it gets past the first check."""

from __future__ import annotations

import copy
import gzip
import io
import json
import pickletools
import random
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any

from tf_bundle_writer import block_positions, repair

Damage = Callable[[bytes, random.Random], bytes]

_SIZES = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
)
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "0", "\0", "\ud800", "é", "../../etc/passwd", "a" * 70000, [], {}, [[]], [0] * 5000,
    {"": 0},
)  # fmt: skip


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Damage a file at random, as transfers, disks and people do."""
    out = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 8))):
        at = generator.randrange(len(out))
        match generator.randrange(6):
            case 0:
                out[at] ^= 1 << generator.randrange(8)
            case 1:
                out[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                out[at : at + generator.randrange(1, 12)] = (
                    generator.randbytes(generator.randrange(12)) or b"\0"
                )
            case 3:
                out[at : at + 10] = b"\xff" * 9 + b"\1"
            case 4:
                other = generator.randrange(len(out))
                out[at : at + 20] = out[other : other + 20]
            case 5:
                del out[at : at + generator.randrange(1, 6)]
                out = out or bytearray(b"\0")
    return bytes(out)


def blind(data: bytes, draw: random.Random) -> bytes:
    """Flip, insert, repeat or remove bytes anywhere, or cut the file short."""
    match draw.randrange(12):
        case 0:
            return data[: draw.randrange(len(data) + 1)]
        case 1:
            return data + draw.randbytes(draw.randrange(1, 100))
        case _:
            return mutate(data, draw) if data else b"\0"


def sizes(data: bytes, draw: random.Random) -> bytes:
    """Put large, small or negative integers where a binary header has its own."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        width = draw.choice((1, 2, 4, 8))
        offset = draw.randrange(max(1, min(len(out) - width, draw.choice((64, 2048, len(out))))))
        number = draw.choice(_SIZES) & (2 ** (8 * width) - 1)
        out[offset : offset + width] = number.to_bytes(width, "little")
    return bytes(out)


def json_values(data: bytes, draw: random.Random) -> bytes:
    """Replace, remove, rename or repeat values of a JSON document."""
    try:
        content = json.loads(data)
    except ValueError:
        return blind(data, draw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        content = _changed(content, draw)
    text = json.dumps(content, ensure_ascii=draw.random() < 0.5)
    if draw.random() < 0.05:  # deeper than a parser follows
        text = text.replace("0", "[" * 100000 + "]" * 100000, 1)
    return text.encode("utf-8", "surrogatepass")


def _changed(content: Any, draw: random.Random) -> Any:
    """Return a JSON value of which one part, at any depth, is another."""
    if not isinstance(content, dict | list) or not content or draw.random() < 0.2:
        return draw.choice(_VALUES)
    if isinstance(content, list):
        index = draw.randrange(len(content))
        match draw.randrange(4):
            case 0:
                return content[:index] + content[index + 1 :]
            case 1:
                return content[: index + 1] + content[index:]
            case _:
                part = _changed(content[index], draw)
                return [*content[:index], part, *content[index + 1 :]]
    key = draw.choice(list(content))
    match draw.randrange(5):
        case 0:
            return {name: value for name, value in content.items() if name != key}
        case 1:
            other = draw.choice([*content, "", "unheard_of", "\0"])
            return {other if name == key else name: value for name, value in content.items()}
        case _:
            return {**content, key: _changed(content[key], draw)}


def safetensors_header(data: bytes, draw: random.Random) -> bytes:
    """Change the header of a safetensors file, and its length with it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json_values(data[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def pickle_program(data: bytes, draw: random.Random) -> bytes:
    """Change opcodes of the pickle in torch's zip archive, whose checksums are right again."""
    source = zipfile.ZipFile(io.BytesIO(data))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = _program(content, draw)
            if draw.random() < 0.02:
                name = draw.choice((name + "x", "../" + name, name.upper()))
            target.writestr(name, content)
    return out.getvalue()


def _program(content: bytes, draw: random.Random) -> bytes:
    """Change a pickle at the borders of its opcodes."""
    starts = [offset for _, _, offset in pickletools.genops(content) if offset is not None]
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(starts) - 1)
        begin, end = starts[at], starts[at + 1]
        match draw.randrange(5):
            case 0:
                out[begin:end] = b""
            case 1:
                out[begin:begin] = out[begin:end]
            case 2:
                out[begin:begin] = draw.choice(
                    (
                        b"cos\nsystem\n",
                        b"(",
                        b"t",
                        b"R",
                        b"0",
                        b"Q",
                        b"}",
                        b"\x8a\x08" + b"\xff" * 8,
                    )
                )
            case 3:
                other = draw.randrange(len(starts) - 1)
                out[begin:end] = content[starts[other] : starts[other + 1]]
            case _:
                out[begin : begin + 1] = bytes([draw.randrange(256)])  # after a cut, at the end
    return bytes(out)


def tf_index(data: bytes, draw: random.Random) -> bytes:
    """Change blocks of an index of TensorFlow, whose checksums are right again."""
    out = bytearray(data)
    positions = block_positions(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        offset, size = draw.choice(positions)
        at = offset + draw.randrange(max(size, 1))
        out[at] = draw.choice((out[at] ^ 1 << draw.randrange(8), draw.randrange(256)))
    return repair(bytes(out), positions)


def protobuf_fields(data: bytes, draw: random.Random) -> bytes:
    """Remove, repeat, exchange or change fields of a protobuf message, whose lengths are right."""
    fields = _fields(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not fields:
            break
        at, other = draw.randrange(len(fields)), draw.randrange(len(fields))
        tag, content = fields[at]
        match draw.randrange(6):
            case 0:
                del fields[at]
            case 1:
                fields.insert(other, fields[at])
            case 2:
                fields[at], fields[other] = fields[other], fields[at]
            case 3:
                fields[at] = (draw.choice((tag, draw.randrange(256) & ~7 | 2)), content[:-1])
            case _:
                changed = draw.choice((blind, sizes, protobuf_fields))(content, draw)
                fields[at] = (tag, changed)
    return b"".join(bytes([tag]) + _varint(len(each)) + each for tag, each in fields)


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """Return the tags and contents of the fields of a message, up to one that has no length."""
    found, at = [], 0
    while at < len(data) and data[at] & 7 == 2:
        tag, length, shift = data[at], 0, 0
        at += 1
        while at < len(data):
            length |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                break
        found.append((tag, data[at : at + length]))
        at += length
    return found


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def table_text(data: bytes, draw: random.Random) -> bytes:
    """Insert what breaks tables: quotes, line ends, NUL, other encodings, long cells."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 2, 5))):
        at = draw.randrange(len(out) + 1)
        out[at:at] = draw.choice(
            (b'"', b'""', b"\r", b"\n", b"\r\n", b",", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff\xfe",
             b"\xed\xa0\x80", b"{", b"}", b"[", b"\\", b"\\ud800", b"1e999", b"NaN", b"=1+1",
             "\u2028\u200b".encode(), b"x" * 200000)
        )  # fmt: skip
    return bytes(out)


# What a row, line, cell or number is blown up with; JSON takes most memory for empty objects.
_FILLERS = (
    *(b"x", b'"', b",", b"[", b"[],", b'{"":0},'),
    *(b"9", b" ", b"\0", b"\\u0000", b"\xff"),
)
_PIECE = 2**20


def bomb(pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]) -> Damage:
    """Return a damage to what a compressed file holds: up to 100 MB more inside."""

    def bomb(data: bytes, draw: random.Random) -> bytes:
        content = unpack(data)
        at = draw.randrange(len(content) + 1)
        filler = draw.choice(_FILLERS)
        piece = pack(filler * (_PIECE // len(filler)))
        times = draw.choice((1, 2, 15, 16, 17, 100))
        return pack(content[:at]) + piece * times + pack(content[at:])

    return bomb


_ABSURD: tuple[Any, ...] = (
    10**6, 2**16, 2**31 - 1, 2**53, 10**4299, -(10**4299), [2**62] * 8, [2**63] * 300, [0, 2**63],
    [10**4299] * 2, 1e308, 5e-324, {str(n): n for n in range(10_000)}, ["x"] * 10_000,
)  # fmt: skip


def absurd(data: bytes, draw: random.Random) -> bytes:
    """Put sizes that no machine has, and numbers of thousands of digits, in a JSON document."""
    content = json.loads(data)
    for _ in range(draw.choice((1, 1, 2, 6))):
        parent: Any = None
        key: Any = None
        part = content
        while isinstance(part, dict | list) and part and (parent is None or draw.random() < 0.8):
            parent = part
            key = draw.choice(list(part) if isinstance(part, dict) else range(len(part)))
            part = part[key]
        if parent is not None:
            parent[key] = copy.deepcopy(draw.choice(_ABSURD))
    sys.set_int_max_str_digits(0)  # to write what the program has to refuse to read
    try:
        return json.dumps(content).encode()
    finally:
        sys.set_int_max_str_digits(4300)


def absurd_header(data: bytes, draw: random.Random) -> bytes:
    """Do the same to the header of a safetensors file, and to its length."""
    (length,) = struct.unpack("<Q", data[:8])
    header = absurd(data[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def zip_entries(data: bytes, draw: random.Random) -> bytes:
    """Change the sizes, offsets, kinds and names in the directory of a zip archive."""
    out = bytearray(data)
    entries = [found.start() for found in re.finditer(b"PK\x01\x02", data)]
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.choice(entries)
        offset, width = draw.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2),
                                     (32, 2), (42, 4), (46, 4)))  # fmt: skip
        other = draw.choice(entries)
        number = draw.choice((draw.choice(_SIZES), int.from_bytes(data[other + offset :][:width])))
        if offset == 10:
            number = draw.choice((8, 12, 14, 93, 99))  # deflate and others
        out[at + offset : at + offset + width] = (number & (2 ** (8 * width) - 1)).to_bytes(
            width, "little"
        )
    if draw.random() < 0.2:  # the same records, compressed, and a megabyte of zeros more
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
            for name in source.namelist():
                kind = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
                content = source.read(name) + bytes(draw.choice((0, 2**20)))
                archive.writestr(name, content, compress_type=kind, compresslevel=1)
        return target.getvalue()
    return bytes(out)


def inside_gzip(damage: Damage) -> Damage:
    """Return a damage to what a gzip file holds; the file itself is whole."""

    def inside(data: bytes, draw: random.Random) -> bytes:
        return gzip.compress(damage(gzip.decompress(data), draw), 1)

    return inside
