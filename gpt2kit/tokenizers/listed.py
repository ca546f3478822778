"""What tokenizers whose vocabulary is a list of pieces of text have in common; char and word say how text is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from gpt2kit.errors import TokenizerError
from gpt2kit.files import read_json
from gpt2kit.tokenizers.bpe import END_OF_TEXT

FILE = "gpt2kit_tokenizer.json"  # {"kind": "char", "tokens": ["\n", " ", …]}
_LARGEST = 2**28  # bytes of that file

Unknown = Literal["error", "skip"]


class ListedTokenizer:
    """A tokenizer for the pieces of one text: exact both ways, but what the text did not have cannot be encoded.

    Ids are places in `tokens`. <|endoftext|> is among them where the text had it, and ends texts. `unknown` may be changed at any
    time: `error` raises TokenizerError for a piece that is not in the vocabulary, `skip` leaves it out.
    """

    kind: ClassVar[str]
    what: ClassVar[str]  # a piece is called so in messages

    def __init__(self, tokens: Sequence[str], *, unknown: Unknown = "error") -> None:
        self.tokens = list(tokens)
        self.unknown: Unknown = unknown
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        if not self.tokens or len(self._ids) != len(self.tokens):
            raise TokenizerError(
                f"a vocabulary of {len(self.tokens)} with {len(self._ids)} different tokens; expected each once"
            )
        for token in self.tokens:
            if token != END_OF_TEXT and self.cut(token) != [token]:
                raise TokenizerError(f"{token!r} in the vocabulary is not one {self.what}")
        try:
            self._bytes = [token.encode() for token in self.tokens]
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"half a surrogate pair, U+{ord(error.object[error.start]):04X}, is no character"
            ) from None
        self.n_vocab = len(self.tokens)
        self.stop_id = self._ids.get(END_OF_TEXT)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Make the vocabulary of a text: its pieces in the order of Unicode, then <|endoftext|> if it is there."""
        documents = text.split(END_OF_TEXT)
        pieces = sorted({piece for document in documents for piece in cls.cut(document)})
        if not pieces:
            raise TokenizerError("an empty text has no vocabulary")
        return cls(pieces + [END_OF_TEXT] * (len(documents) > 1))

    @classmethod
    def cut(cls, text: str) -> list[str]:
        """Return the pieces of a text, which joined are the text."""
        raise NotImplementedError

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; <|endoftext|> is plain text unless `special`.

        Raises TokenizerError for what is not in the vocabulary, unless `unknown` is "skip".
        """
        if not special or self.stop_id is None:
            return self._encode(text)
        first, *rest = map(self._encode, text.split(END_OF_TEXT))
        return first + [token for ids in rest for token in (self.stop_id, *ids)]

    def _encode(self, text: str) -> list[int]:
        if self.unknown not in ("error", "skip"):
            raise TokenizerError(f"unknown is {self.unknown!r}, expected error or skip")
        pieces = self.cut(text)
        try:
            return [self._ids[piece] for piece in pieces]
        except KeyError:
            return [
                token
                for place, piece in enumerate(pieces)
                if (token := self._look_up(pieces, place, piece)) is not None
            ]

    def _look_up(self, pieces: list[str], place: int, piece: str) -> int | None:
        token = self.find(piece)
        if token is None and self.unknown == "error":
            nearest = ", ".join(map(repr, self.nearest(piece)))
            raise TokenizerError(
                f"the {self.what} {piece!r} at position {sum(map(len, pieces[:place])):,} is not among the {self.n_vocab:,} that the model "
                f"knows; {f'the nearest are {nearest}' if nearest else 'none is near'}. Write it otherwise, or add --unknown skip"
            )
        return token

    def find(self, piece: str) -> int | None:
        """Return the id of a piece, or of another spelling that does as well."""
        return self._ids.get(piece)

    def nearest(self, piece: str) -> list[str]:
        """Return at most three pieces of the vocabulary that someone may have meant."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""
        return b"".join(map(self.token_bytes, ids)).decode()

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one id; raises TokenizerError for an id that the vocabulary does not have."""
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"id {token} is not in the vocabulary of {self.n_vocab:,}")
        return self._bytes[token]

    def save(self, folder: Path) -> None:
        """Write the vocabulary as gpt2kit_tokenizer.json."""
        content = json.dumps({"kind": self.kind, "tokens": self.tokens}, ensure_ascii=False)
        (folder / FILE).write_bytes(content.encode())


def find_listed(
    folder: Path, kinds: Mapping[str, Callable[[Sequence[str]], ListedTokenizer]]
) -> ListedTokenizer | None:
    """Read gpt2kit_tokenizer.json in a folder, or return None where there is none; raises TokenizerError for damage."""
    path = folder / FILE
    if not path.exists():
        return None
    content = read_json(path, largest=_LARGEST, error=TokenizerError)
    kind, tokens = content.get("kind"), content.get("tokens")
    if (
        not isinstance(kind, str)
        or kind not in kinds
        or not isinstance(tokens, list)
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise TokenizerError(
            f'{path}: expected {{"kind": {" or ".join(map(repr, kinds))}, "tokens": [texts]}}'
        )
    try:
        return kinds[kind](tokens)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
