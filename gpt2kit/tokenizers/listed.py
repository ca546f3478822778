"""What tokenizers with a list of pieces have in common; char and word define how text is cut."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from gpt2kit.errors import TokenizerError
from gpt2kit.files import read_json
from gpt2kit.tokenizers.protocol import END_OF_TEXT, Tokenizer

FILE = "gpt2kit_tokenizer.json"  # {"kind": "char", "tokens": ["\n", " ", …]}
_LARGEST = 2**28  # bytes of that file

Unknown = Literal["error", "skip"]


class ListedTokenizer:
    """A tokenizer whose vocabulary is the pieces of one text; it cannot encode others.

    An id is an index in `tokens`. If the text had <|endoftext|>, it is one of the tokens, and ends
    texts. `unknown` says what happens to a piece that is not in the vocabulary: `error` raises
    TokenizerError, `skip` leaves it out. It may be changed at any time.
    """

    kind: ClassVar[str]
    what: ClassVar[str]  # what messages call a piece

    # What a vocabulary may have beside its pieces; WordTokenizer says more.
    markers: tuple[str, ...] = ()
    before: Sequence[int] = ()  # ids that begin each document of a training text
    after: Sequence[int] = ()  # ids that end each
    unknown_id: int | None = None  # the id of every piece that is not in the vocabulary
    needs_whole_text = False  # whether two halves of a text may have other tokens than the whole

    def __init__(self, tokens: Sequence[str], *, unknown: Unknown = "error") -> None:
        self.tokens = list(tokens)
        self.unknown: Unknown = unknown
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        if not self.tokens or len(self._ids) != len(self.tokens):
            counts = f"{len(self.tokens)} tokens, {len(self._ids)} of them different"
            raise TokenizerError(f"the vocabulary has {counts}; expected each once")
        names = (END_OF_TEXT, *self.markers)
        self.special = {name: self._ids.pop(name) for name in names if name in self._ids}
        for token in self._ids:
            if self.cut(token) != [token]:
                raise TokenizerError(f"{token!r} in the vocabulary is not one {self.what}")
        try:
            self._bytes = [token.encode() for token in self.tokens]
        except UnicodeEncodeError as error:
            code = f"U+{ord(error.object[error.start]):04X}"
            message = f"{code} in the vocabulary is half a surrogate pair, which is no character"
            raise TokenizerError(message) from None
        self.n_vocab = len(self.tokens)
        self.stop_id = self.special.get(END_OF_TEXT)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_vocab={self.n_vocab}, stop_id={self.stop_id})"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Make the vocabulary of a text: its sorted pieces, then <|endoftext|> if it occurs."""
        documents = text.split(END_OF_TEXT)
        pieces = sorted({piece for document in documents for piece in cls.cut(document)})
        if not pieces:
            raise TokenizerError("an empty text has no vocabulary")
        return cls(pieces + [END_OF_TEXT] * (len(documents) > 1))

    @classmethod
    def cut(cls, text: str) -> list[str]:
        """Return the pieces of a text; joined, they are the text."""
        raise NotImplementedError

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of a text, each of which becomes one token."""
        return self.cut(text)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; <|endoftext|> and markers are plain text unless `special`.

        Raises TokenizerError for a piece that is not in the vocabulary, unless `unknown` is "skip"
        or the vocabulary has a marker for such pieces.
        """
        if not special or not self.special:
            return self._encode(text)
        names = {END_OF_TEXT: self.stop_id, **self.special}
        known = {name: [token] for name, token in names.items() if token is not None}
        parts = re.split(f"({'|'.join(map(re.escape, known))})", text)
        encoded = [
            known[part] if index % 2 else self._encode(part) for index, part in enumerate(parts)
        ]
        return [token for ids in encoded for token in ids]

    def _encode(self, text: str) -> list[int]:
        if self.unknown not in ("error", "skip"):
            raise TokenizerError(f"unknown is {self.unknown!r}, expected error or skip")
        pieces = self.pieces(text)
        try:
            return [self._ids[piece] for piece in pieces]
        except KeyError:
            ids = [self._id_or_raise(pieces, index) for index in range(len(pieces))]
            return [token for token in ids if token is not None]

    def _id_or_raise(self, pieces: list[str], index: int) -> int | None:
        """Return the id of a piece of a text, or None for one to skip."""
        token = self.id_of(pieces[index])
        if token is None and self.unknown == "error":
            if self.unknown_id is not None:
                return self.unknown_id
            offset = sum(map(len, pieces[:index]))
            nearest = ", ".join(map(repr, self.nearest(pieces[index])))
            raise TokenizerError(
                f"the {self.what} {pieces[index]!r} at offset {offset:,} is not among the"
                f" {self.n_vocab:,} that the model knows;"
                f" {f'the nearest are {nearest}' if nearest else 'none is near'}."
                " Write it differently",
                option="--unknown skip",
            )
        return token

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece, or of an equivalent spelling of it, or None."""
        return self._ids.get(piece)

    def nearest(self, piece: str) -> list[str]:
        """Return at most three pieces of the vocabulary that may have been meant."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""
        return b"".join(map(self.token_bytes, ids)).decode()

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token; raises TokenizerError for an id outside the vocabulary."""
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"id {token} is not in the vocabulary of {self.n_vocab:,}")
        return self._bytes[token]

    def files(self) -> dict[str, bytes]:
        """Return the file that defines the vocabulary: gpt2kit_tokenizer.json."""
        return {FILE: json.dumps(self.content(), ensure_ascii=False).encode()}

    def content(self) -> dict[str, Any]:
        """Return the object that is written to gpt2kit_tokenizer.json."""
        return {"kind": self.kind, "tokens": self.tokens}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        """Return the tokenizer that the object in gpt2kit_tokenizer.json describes."""
        return cls(content["tokens"])

    def save(self, folder: Path) -> None:
        """Write gpt2kit_tokenizer.json.

        There is no tokenizer.json: transformers reads any in a GPT-2 folder as a byte-level BPE,
        and would silently leave out what that lacks.
        """
        for name, content in self.files().items():
            (folder / name).write_bytes(content)


def read_listed(folder: Path, kinds: Mapping[str, type[ListedTokenizer]]) -> ListedTokenizer | None:
    """Read gpt2kit_tokenizer.json in a folder, or return None if there is none.

    Raises TokenizerError for a damaged file, also for a link that leads nowhere.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    content = read_json(path, largest=_LARGEST, error=TokenizerError)
    kind, tokens = content.get("kind"), content.get("tokens")
    if (
        not isinstance(kind, str)
        or kind not in kinds
        or not isinstance(tokens, list)
        or not all(isinstance(token, str) for token in tokens)
    ):
        expected = f'{{"kind": {" or ".join(map(repr, kinds))}, "tokens": [texts]}}'
        raise TokenizerError(f"{path}: expected {expected}")
    try:
        return kinds[kind].from_content(content)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def start_of_text(tokenizer: Tokenizer) -> list[int]:
    """Return the ids after which a new text begins: <BOS>, else what ends texts, else none."""
    if isinstance(tokenizer, ListedTokenizer) and tokenizer.before:
        return [*tokenizer.before]
    return [] if tokenizer.stop_id is None else [tokenizer.stop_id]


def boundaries(tokenizer: Tokenizer) -> set[int]:
    """Return the ids that begin and end documents, and are no part of them."""
    ids = set() if tokenizer.stop_id is None else {tokenizer.stop_id}
    if isinstance(tokenizer, ListedTokenizer):
        ids |= {*tokenizer.before, *tokenizer.after}
    return ids
