"""Bytes to text: strict, with the probable encoding in the error."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpt2kit.errors import CorpusError

# Byte order marks of encodings with two or four bytes per character. UTF-32 stands first because
# its mark starts with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SINGLE_BYTE = ("cp1252", "mac_roman", "cp850", "cp1251", "koi8_r")  # of old texts, common first
_SURROGATE = re.compile("[\ud800-\udfff]")


def decode(data: bytes, path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a file's bytes without a byte order mark, its line ends as they are.

    Raises CorpusError with the offset and line of the first bad byte and the probable encoding, and
    for an encoding that Python does not know or that is not one of texts, such as base64.
    """
    name = _codec(encoding, path)
    if name == "utf-8" and (likely := _wide(data)):
        raise CorpusError(
            f"{path}: this is not UTF-8 but looks like {likely}; add --encoding {likely}", path=path
        )
    try:
        text = data.decode("utf-8-sig" if name == "utf-8" else name)
    except UnicodeDecodeError as error:
        raise _bad_byte(error, data, path, encoding, name) from None
    except UnicodeError as error:  # of codecs that decode whole names, such as punycode
        raise CorpusError(f"{path}: not {encoding}: {error}", path=path) from error
    if name != "utf-8" and _SURROGATE.search(text):  # UTF-8 has none
        raise CorpusError(
            f"{path}: decoded as {encoding} it has half a surrogate pair, which is no character",
            path=path,
        )
    return text


def decoded(
    blocks: Iterable[bytes], path: Path, encoding: str = "utf-8", *, lenient: bool = False
) -> Iterator[str]:
    """Yield the text of a file that is read in blocks, as `decode` returns that of a whole one.

    If `lenient`, a byte that is not valid becomes half a surrogate pair, for the reader to find.
    """
    name = _codec(encoding, path)
    errors = "surrogateescape" if lenient else "strict"
    decoder = codecs.getincrementaldecoder("utf-8-sig" if name == "utf-8" else name)(errors)
    n_bytes = n_lines = 0  # of the blocks before
    for number, block in enumerate(itertools.chain(blocks, [b""])):
        if number == 0 and name == "utf-8" and (likely := _wide(block)):
            raise CorpusError(
                f"{path}: this is not UTF-8 but looks like {likely}; add --encoding {likely}",
                path=path,
            )
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            start = n_bytes + len(block) - len(error.object)
            raise _bad_byte(error, error.object, path, encoding, name, start, n_lines) from None
        except UnicodeError as error:
            raise CorpusError(f"{path}: not {encoding}: {error}", path=path) from error
        if name != "utf-8" and _SURROGATE.search(text):
            raise CorpusError(
                f"{path}: decoded as {encoding} it has half a surrogate pair, "
                "which is no character",
                path=path,
            )
        n_bytes += len(block)
        n_lines += text.count("\n")
        if text:
            yield text


def _codec(encoding: str, path: Path) -> str:
    """Return Python's name of an encoding of texts."""
    try:
        codec = codecs.lookup(encoding)
        "".encode(encoding)  # refuses what is no encoding of texts, such as hex, rot13 and zip
    except (LookupError, ValueError):
        raise CorpusError(
            f"no encoding of texts is called {encoding!r}; try utf-8, cp1252, latin-1 or utf-16",
            path=path,
        ) from None
    return codec.name


def _bad_byte(
    error: UnicodeDecodeError,
    data: bytes,
    path: Path,
    encoding: str,
    name: str,
    n_bytes: int = 0,
    n_lines: int = 0,
) -> CorpusError:
    """Return the error that names the first byte that is not valid in the encoding.

    Before the data there were `n_bytes` bytes and `n_lines` whole lines.
    """
    skipped = name == "utf-8" and data.startswith(codecs.BOM_UTF8)
    offset = error.start + len(codecs.BOM_UTF8) * skipped
    line = n_lines + data.count(b"\n", 0, offset) + 1
    return CorpusError(
        f"{path}: byte {n_bytes + offset:,} (line {line:,}) is 0x{data[offset]:02x}, "
        f"which is not {encoding}; "
        f"{_advice(data, name)}",
        path=path,
        offset=n_bytes + offset,
    )


def _wide(data: bytes) -> str | None:
    """Name the encoding with two or four bytes per character that a file's start shows, if any."""
    if marked := next((name for mark, name in _MARKS.items() if data.startswith(mark)), None):
        return marked
    start = data[:1000]
    odd, even = start[1::2].count(0), start[::2].count(0)
    if max(odd, even) > 0.3 * len(start) and min(odd, even) == 0:
        return "utf-16-le" if odd else "utf-16-be"
    return None


def _advice(data: bytes, name: str) -> str:
    """Say what to do about bytes that are not valid in an encoding."""
    data = data.removeprefix(codecs.BOM_UTF8)
    valid = data.decode("utf-8", errors="ignore").encode()
    damaged = len(data) - len(valid)  # bytes that are not UTF-8
    if name != "utf-8" and not damaged:
        return "add --encoding utf-8"
    if name == "utf-8" and sum(byte >= 0x80 for byte in data) > 2 * damaged:
        return (
            "the rest is UTF-8, so the file is damaged there, or was joined from files of "
            "different encodings; correct it there"
        )
    likely = _single_byte(data)
    return f"the file looks like {likely}; add --encoding {likely}"


def _single_byte(data: bytes) -> str:
    """Name the encoding in which the bytes above ASCII look most like written language."""
    found = re.findall(rb"[A-Za-z]?[\x80-\xff]+[A-Za-z]?", data[: 2**20])
    return max(
        _SINGLE_BYTE,
        key=lambda name: sum(_plausible(piece.decode(name, errors="replace")) for piece in found),
    )


def _plausible(piece: str) -> int:
    """Rate how likely some characters are to stand beside each other.

    Letters and quotation marks count for them; symbols, capitals after small letters, and several
    accents in a row count against them.
    """
    marks = sum(character in "‘’“”«»–—…°" for character in piece)
    latin = sum("À" <= character <= "ÿ" for character in piece)
    cyrillic = sum("А" <= character <= "ё" for character in piece)
    strange = sum(
        character > "\x7f" and not character.isalpha() and character not in "‘’“”«»–—…°§©\xa0"
        for character in piece
    )
    swapped = sum(a.islower() and b.isupper() for a, b in itertools.pairwise(piece))
    return marks + latin + cyrillic - 2 * strange - 2 * swapped - 3 * max(0, latin - 2)
