"""Text files of any kind as documents, and what is odd about their characters.

Nothing is dropped or changed on the way in: bytes that are not of the encoding are an error that says where they are and what the file
probably is, and line ends stay as they are. What looks wrong but can be read is counted, for the reader to judge.
"""

from __future__ import annotations

import codecs
import glob
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.errors import CorpusError
from gpt2kit.files import impostor, read_bytes
from gpt2kit.tokenizers import END_OF_TEXT

Source = str | Path | Sequence[str | Path]

# What people take for a text file, by its first bytes.
_PACKED = {
    b"%PDF": "a PDF; save its text as .txt first",
    b"PK\x03\x04": "a zip archive, as .docx, .odt and .epub are; save its text as .txt first",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"{\\rtf": "rich text; save it as plain text first",
    b"\xd0\xcf\x11\xe0": "an old Word file; save it as plain text first",
}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SINGLE_BYTE = (
    "cp1252",
    "mac_roman",
    "cp850",
    "cp1251",
    "koi8_r",
)  # what old texts are in, most common first


@dataclass(frozen=True)
class Text:
    """Documents in their order, and the files they came from."""

    documents: tuple[str, ...]
    files: tuple[Path, ...]
    n_bytes: int  # of the files

    @property
    def joined(self) -> str:
        """Return all documents as one text with the separator between them."""
        return END_OF_TEXT.join(self.documents)


def read_texts(source: Source, *, encoding: str = "utf-8", text_field: str = "text") -> Text:
    """Read a text file, a .jsonl file with a text in each object's `text_field`, a folder or glob of them, or a list of all these.

    Every file, every line of a .jsonl file, and what <|endoftext|> separates inside them is a document of its own; empty ones are
    left out. A byte order mark is no part of the text. Raises CorpusError for what cannot be read, or holds no text.
    """
    documents: list[str] = []
    files = find_files(source)
    n_bytes = 0
    for path in files:
        data = _read(path)
        n_bytes += len(data)
        text = decode(data, path, encoding)
        parts = _json_texts(text, path, text_field) if path.suffix == ".jsonl" else [text]
        documents += [
            document for part in parts for document in part.split(END_OF_TEXT) if document.strip()
        ]
    if not documents:
        what = files[0] if len(files) == 1 else f"the {len(files)} files of {source}"
        raise CorpusError(
            f"{what}: {'nothing but white space' if n_bytes else 'empty'}; expected a text",
            path=files[0],
        )
    return Text(tuple(documents), tuple(files), n_bytes)


def read_file(path: Path, *, encoding: str = "utf-8") -> str:
    """Read one file as it is, whatever is in it, without a byte order mark. Raises CorpusError for what cannot be read."""
    return decode(_read(path), path, encoding)


def find_files(source: Source) -> list[Path]:
    """Return the files that a path, folder, glob or list of these means, those of a folder or glob in the order of their names."""
    if not isinstance(source, str | Path):
        return [file for item in source for file in find_files(item)]
    path = Path(source)
    if path.is_dir():
        files = sorted(
            file for file in path.rglob("*") if file.suffix in (".txt", ".jsonl") and file.is_file()
        )
        if not files:
            raise CorpusError(f"{path}: no .txt or .jsonl file in this folder", path=path)
        return files
    if not path.exists() and glob.has_magic(str(source)):
        files = sorted(
            file for file in map(Path, glob.glob(str(source), recursive=True)) if file.is_file()
        )
        if not files:
            raise CorpusError(f"{source}: no file has such a name", path=path)
        return files
    return [path]


def _read(path: Path) -> bytes:
    data = read_bytes(path, error=CorpusError)
    if what := next((what for start, what in _PACKED.items() if data.startswith(start)), None):
        raise CorpusError(f"{path}: expected plain text, but this is {what}", path=path)
    if data.startswith(b"version ") and (what := impostor(data[:64])):
        raise CorpusError(f"{path}: {what}", path=path)
    return data


def decode(data: bytes, path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a file's bytes without a byte order mark, its line ends as they are.

    Raises CorpusError with the place of the first bad byte and what the file probably is.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise CorpusError(
            f"no encoding is called {encoding!r}; try utf-8, cp1252, latin-1 or utf-16", path=path
        ) from None
    if name == "utf-8" and (likely := _wide(data)):
        raise CorpusError(
            f"{path}: this is not UTF-8 but looks like {likely}; add --encoding {likely}", path=path
        )
    try:
        return data.decode("utf-8-sig" if name == "utf-8" else name)
    except UnicodeDecodeError as error:
        offset = error.start + (
            len(codecs.BOM_UTF8) if name == "utf-8" and data.startswith(codecs.BOM_UTF8) else 0
        )
        line = data.count(b"\n", 0, offset) + 1
        raise CorpusError(
            f"{path}: byte {offset:,} (line {line:,}) is 0x{data[offset]:02x}, which is not {encoding}; {_advice(data, name)}",
            path=path,
            offset=offset,
        ) from None


def _wide(data: bytes) -> str | None:
    """Name the encoding of two or four bytes per character that a file's start shows, if it does."""
    if marked := next((name for mark, name in _MARKS.items() if data.startswith(mark)), None):
        return marked
    start = data[:1000]
    odd, even = start[1::2].count(0), start[::2].count(0)
    if max(odd, even) > 0.3 * len(start) and min(odd, even) == 0:
        return "utf-16-le" if odd else "utf-16-be"
    return None


def _advice(data: bytes, name: str) -> str:
    """Say what to do about bytes that are not of an encoding."""
    data = data.removeprefix(codecs.BOM_UTF8)
    damaged = len(data) - len(
        data.decode("utf-8", errors="ignore").encode()
    )  # bytes that are not UTF-8
    if name != "utf-8" and not damaged:
        return "add --encoding utf-8"
    if name == "utf-8" and sum(byte >= 0x80 for byte in data) > 2 * damaged:
        return "the rest is UTF-8, so the file is damaged there, or was joined from two of different encodings; mend that place"
    likely = _single_byte(data)
    return f"the file looks like {likely}; add --encoding {likely}"


def _single_byte(data: bytes) -> str:
    """Name the encoding in which the bytes above ASCII, and the letters beside them, look most like what people write."""
    found = re.findall(rb"[A-Za-z]?[\x80-\xff]+[A-Za-z]?", data[: 2**20])
    return max(
        _SINGLE_BYTE,
        key=lambda name: sum(_plausible(piece.decode(name, errors="replace")) for piece in found),
    )


def _plausible(piece: str) -> int:
    """Rate characters: letters and quotes count for them, symbols, capitals after small letters, and many accents in a row against."""
    marks = sum(character in "‘’“”«»–—…°" for character in piece)
    latin = sum("À" <= character <= "ÿ" for character in piece)
    cyrillic = sum("А" <= character <= "ё" for character in piece)
    strange = sum(
        character > "\x7f" and not character.isalpha() and character not in "‘’“”«»–—…°§©\xa0"
        for character in piece
    )
    swapped = sum(a.islower() and b.isupper() for a, b in itertools.pairwise(piece))
    return marks + latin + cyrillic - 2 * strange - 2 * swapped - 3 * max(0, latin - 2)


def json_objects(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number, from 1 on, and the object of each line of a .jsonl file that is not blank; CorpusError for any other line."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(
                f"{path}: line {number:,} is not valid JSON: {error}", path=path
            ) from error
        if not isinstance(value, dict):
            raise CorpusError(
                f"{path}: line {number:,} is no JSON object: found {line.strip()[:40]!r}", path=path
            )
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise CorpusError(
                f"{path}: line {number:,} has half a surrogate pair, which is no character",
                path=path,
            ) from None
        yield number, value


def _json_texts(text: str, path: Path, field: str) -> Iterator[str]:
    """Yield the text of each object of a .jsonl file."""
    for number, value in json_objects(text, path):
        if not isinstance(value.get(field), str):
            keys = f"it has {', '.join(map(repr, value))[:80]}" if value else "it is empty"
            raise CorpusError(
                f"{path}: line {number:,} has no text under {field!r}: {keys}; --text_field names another key",
                path=path,
            )
        yield value[field]


# --- what is odd -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Oddities:
    """Counts of what a text has when something went wrong on its way; all zero for most texts."""

    crlf: int  # lines that end as on Windows: the \r costs a token each, and is learned
    mojibake: int  # characters that are UTF-8 read as another encoding: Ã¨ for è
    mojibake_example: str | None
    replacements: int  # U+FFFD: what some program could not read
    not_nfc: int  # documents with letters and accents apart, so that the same word is spelled in two ways
    controls: dict[str, int]  # such as U+0000 and U+000C, all but tab and line ends

    @property
    def notes(self) -> list[str]:
        """Return a sentence on each thing that is odd."""
        found = []
        if self.crlf:
            found.append(
                f"{self.crlf:,} lines end with \\r\\n; the model will learn the \\r too (tr -d '\\r' removes them)"
            )
        if self.mojibake:
            found.append(
                f"{self.mojibake:,} times UTF-8 was read as something else before ({self.mojibake_example}); mend it first"
            )
        if self.replacements:
            found.append(
                f"{self.replacements:,} characters are U+FFFD: some program could not read them before"
            )
        if self.not_nfc:
            found.append(
                f"{self.not_nfc:,} documents are not in Unicode's composed form (NFC): letters and accents may be apart"
            )
        if self.controls:
            shown = ", ".join(
                f"{name} ({count:,})" for name, count in sorted(self.controls.items())[:5]
            )
            found.append(f"{sum(self.controls.values()):,} control characters: {shown}")
        return found


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_TWICE = re.compile(r"(?=([ÂÃÄÅÐÑâ][^\x00-\x7f]{1,2}))")  # how UTF-8's first bytes look in cp1252


def examine(documents: Sequence[str]) -> Oddities:
    """Count what is odd in some documents."""
    controls: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    for document in documents:
        controls.update(_CONTROL.findall(document))
        mended.update(fix for found in _TWICE.findall(document) if (fix := _mend(found)))
    example = mended.most_common(1)[0][0] if mended else None
    return Oddities(
        crlf=sum(document.count("\r\n") for document in documents),
        mojibake=mended.total(),
        mojibake_example=example,
        replacements=sum(document.count("\ufffd") for document in documents),
        not_nfc=sum(not unicodedata.is_normalized("NFC", document) for document in documents),
        controls={f"U+{ord(character):04X}": count for character, count in controls.items()},
    )


def _mend(found: str) -> str | None:
    """Return "Ã¨ for è" if characters are UTF-8 read as cp1252, else None."""
    for length in (3, 2):
        try:
            right = b"".join(map(_cp1252, found[:length])).decode("utf-8")
        except UnicodeError:
            continue
        if len(right) == 1:
            return f"{found[:length]} for {right}"
    return None


def _cp1252(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")  # the five bytes that cp1252 leaves out
