"""Decode raw snappy, a compression that TensorFlow's index files may use.

    stream    varint: size of the output, then elements until the input ends
    element   one tag byte, whose two low bits say what follows
      00      literal: length - 1 in the six high bits (60…63: in the next 1…4 bytes), then bytes
      01      copy: 3 bits of length - 4, offset in 3 bits and one byte
      10, 11  copy: 6 bits of length - 1, offset in the next 2 or 4 bytes

A copy repeats `length` bytes of the output from `offset` bytes back. It may overlap its own result.
"""

from __future__ import annotations


def decompress(elements: bytes, size: int) -> bytes:
    """Return the `size` bytes that the elements (the stream without its leading varint) stand for.

    Raises ValueError for a damaged stream. Never holds more than `size` bytes, so the caller
    decides what is too much.
    """
    out = bytearray()
    at = 0
    while at < len(elements):
        tag = elements[at]
        at += 1
        kind, high = tag & 3, tag >> 2
        # How many bytes follow the tag before the literal, or as the low part of the offset.
        extra = (max(0, high - 59), 1, 2, 4)[kind]
        number = int.from_bytes(elements[at : at + extra], "little")
        if at + extra > len(elements):
            raise ValueError("compressed data ends inside an element")
        at += extra
        if kind == 0:  # a literal
            length = 1 + (number if extra else high)
            if length > len(elements) - at:
                raise ValueError("compressed data ends inside a literal")
            piece = elements[at : at + length]
            at += length
        else:  # a copy; the short kind has 3 bits of length and 11 of offset
            length = 4 + (high & 7) if kind == 1 else 1 + high
            offset = (high >> 3) << 8 | number if kind == 1 else number
            if not 1 <= offset <= len(out):
                raise ValueError("compressed data copies from before its beginning")
            start = len(out) - offset
            piece = bytes(out[start : start + length])
            # A copy that overlaps its own result repeats the last `offset` bytes.
            piece = (piece * (-(-length // offset)))[:length]
        # Checked before the bytes are appended, so that memory stays bounded.
        if len(out) + length > size:
            raise ValueError("compressed data is longer than it says")
        out += piece
    if len(out) != size:
        raise ValueError("compressed data is shorter than it says")
    return bytes(out)
