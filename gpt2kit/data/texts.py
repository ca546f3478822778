"""Text files as documents: plain text, .jsonl, folders and globs of them.

Nothing is dropped or changed: line ends stay as they are, and a byte that is not valid in the
encoding is an error that says where it is and which encoding the file probably has.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.data.encodings import decode
from gpt2kit.errors import CorpusError
from gpt2kit.files import impostor, read_bytes
from gpt2kit.tokenizers import END_OF_TEXT

Source = str | Path | Sequence[str | Path]

# Files that are often taken for text files, by their first bytes.
_PACKED = {
    b"%PDF": "a PDF; save its text as .txt first",
    b"PK\x03\x04": "a zip archive, as .docx, .odt and .epub are; save its text as .txt first",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"{\\rtf": "rich text; save it as plain text first",
    b"\xd0\xcf\x11\xe0": "an old Word file; save it as plain text first",
}

_MOST_CONTAINERS = 10**6  # lists and objects in one document of JSON, such as a row


@dataclass(frozen=True)
class Text:
    """Documents in their order, and the files they came from."""

    documents: tuple[str, ...]
    files: tuple[Path, ...]
    n_bytes: int  # of the files

    @property
    def joined(self) -> str:
        """Return all documents as one text, separated by <|endoftext|>."""
        return END_OF_TEXT.join(self.documents)


def read_texts(source: Source, *, encoding: str = "utf-8", text_field: str = "text") -> Text:
    """Read a text file, a .jsonl file, a folder or glob of them, or a list of all these.

    Every file is a document, every line of a .jsonl file (its object's `text_field`) is one, and
    <|endoftext|> separates documents inside of them. Documents of white space alone are left out,
    and so is a byte order mark. Raises CorpusError for a file that cannot be read, and if there is
    no text at all.
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
            f"{what}: {'nothing but white space' if n_bytes else 'empty'}, expected a text",
            path=files[0],
        )
    return Text(tuple(documents), tuple(files), n_bytes)


def split_documents(documents: Sequence[str], val_fraction: float) -> tuple[list[str], list[str]]:
    """Return documents up to the last `val_fraction` of their characters, and from there on.

    The cut is moved on, by at most a quarter of the held-out part, to the next end of a document,
    otherwise of a line, otherwise of a word.
    """
    total = sum(map(len, documents))
    cut = int(total * (1 - val_fraction))
    reach = cut + (total - cut) // 4
    before = 0  # characters of the documents before
    for number, document in enumerate(documents):
        if before + len(document) > cut:
            offset = _good_cut(document, cut - before, reach - before)
            train = [*documents[:number], document[:offset]]
            val = [document[offset:], *documents[number + 1 :]]
            return [part for part in train if part], [part for part in val if part]
        before += len(document)
    return list(documents), []


def _good_cut(document: str, cut: int, reach: int) -> int:
    """Return the offset of the best cut from `cut` on, before `reach`."""
    if cut == 0 or len(document) <= reach:
        return 0 if cut == 0 else len(document)
    if (newline := document.find("\n", cut - 1, reach)) >= 0:
        return newline + 1
    space = document.find(" ", cut, reach)
    return space if space >= 0 else cut


def text_of_bytes(data: bytes, path: Path, *, encoding: str = "utf-8") -> Text:
    """Return the documents in the bytes of a text file; `path` names it in messages.

    Raises CorpusError if they cannot be decoded, and if there is no text.
    """
    text = decode(data, path, encoding)
    documents = tuple(document for document in text.split(END_OF_TEXT) if document.strip())
    if not documents:
        found = "nothing but white space" if data else "empty"
        raise CorpusError(f"{path}: {found}, expected a text", path=path)
    return Text(documents, (path,), len(data))


def read_file(path: Path, *, encoding: str = "utf-8") -> str:
    """Return the text of one file, without a byte order mark.

    Raises CorpusError if the file cannot be read or decoded.
    """
    return decode(_read(path), path, encoding)


def find_files(source: Source) -> list[Path]:
    """Return the files that a path, folder, glob or list of these stands for.

    The files of a folder or glob are sorted by name. Raises CorpusError if there are none.
    """
    if not isinstance(source, str | Path):
        return [file for item in source for file in find_files(item)]
    path = Path(source)
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.suffix in (".txt", ".jsonl")]
        problem = f"{path}: no .txt or .jsonl file in this folder"
    elif not path.exists() and glob.has_magic(str(source)):
        found = [Path(name) for name in glob.glob(str(source), recursive=True)]
        problem = f"{source}: no file matches"
    else:
        return [path]
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise CorpusError(problem, path=path)
    return files


def _read(path: Path) -> bytes:
    """Return the bytes of a file, unless they are those of something else than a text."""
    data = read_bytes(path, error=CorpusError)
    if what := next((what for start, what in _PACKED.items() if data.startswith(start)), None):
        raise CorpusError(f"{path}: expected plain text, but this is {what}", path=path)
    if data.startswith(b"version ") and (what := impostor(data[:64])):
        raise CorpusError(f"{path}: {what}", path=path)
    return data


def json_objects(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number, from 1, and the object of each line of a .jsonl file.

    Blank lines are skipped; any other line raises CorpusError.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, json_object(line, path, number)


def json_value(text: str) -> Any:
    """Return the value that a text is in JSON.

    Raises ValueError for any other text, for numbers of more than 4,300 digits, and for lists and
    objects that are too deep, or too many: an empty one takes some 25 times its three characters.
    """
    if (found := text.count("[") + text.count("{")) > _MOST_CONTAINERS:
        raise ValueError(f"{found:,} brackets and braces, expected at most {_MOST_CONTAINERS:,}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"too deep: {error}") from error


def json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    """Return the object on a line of a .jsonl file; raises CorpusError if it is none."""
    try:
        value = json_value(line)
    except ValueError as error:
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
        problem = "has half a surrogate pair, which is no character"
        if any("\udc80" <= character <= "\udcff" for character in line):
            problem = "has bytes that are not valid in its encoding"
        raise CorpusError(f"{path}: line {number:,} {problem}", path=path) from None
    return value


def _json_texts(text: str, path: Path, field: str) -> Iterator[str]:
    """Yield the text of each object of a .jsonl file."""
    for number, value in json_objects(text, path):
        if not isinstance(value.get(field), str):
            keys = f"it has {', '.join(map(repr, value))[:80]}" if value else "it is empty"
            raise CorpusError(
                f"{path}: line {number:,} has no text under {field!r}: {keys}; "
                "--text_field names another key",
                path=path,
            )
        yield value[field]
