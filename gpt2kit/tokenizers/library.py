"""Vocabularies of other kinds, computed by the tokenizers library (needs gpt2kit[tokenizers]).

    tokenizer.json    any that the library reads: Unigram (SentencePiece), WordPiece, …
    vocab.txt         BERT's WordPiece, one token on each line; tokenizer_config.json says its case

Such a library joins tokens with rules of its own: where a word begins there is a space, and none at
the beginning of a text. Here each token has the bytes that it adds in the middle of a text, so that
a text can be shown as it is written. A text decoded from its first token may begin with a space.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gpt2kit.errors import MissingDependencyError, TokenizerError, is_failure
from gpt2kit.files import read_bytes, read_json
from gpt2kit.tokenizers.bpe import byte_characters
from gpt2kit.tokenizers.bpe_files import (
    MOST_TOKENS,
    WHOLE,
    is_byte_level,
    is_there,
    read_stop_id,
)
from gpt2kit.tokenizers.protocol import END_OF_TEXT

_WORDPIECE = "vocab.txt"
_CONFIG = "tokenizer_config.json"
_LARGEST = 2**26  # bytes of a file
_ENDS = (END_OF_TEXT, "</s>", "[SEP]")  # what ends a text, unless config.json names a token
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = {character: byte for byte, character in byte_characters().items()}
_TRIED = 2000  # tokens, to find one that stands well beside others
_UNKNOWN = "\ufffd".encode()


class LibraryTokenizer:
    """A tokenizer that the tokenizers library computes; its texts may lose what it normalizes.

    `content` is that of a tokenizer.json; `stop_id` ends texts if a token has it. Nothing is added
    around a text, no [CLS] and no [SEP]. Raises TokenizerError for a content that the library does
    not read, and MissingDependencyError without the library.
    """

    needs_whole_text = True  # two halves of a text may have other tokens than the whole

    def __init__(self, content: bytes, *, stop_id: int | None = None) -> None:
        self._content = content
        self._plain, self._special = _loaded(content), _loaded(content)
        self._plain.encode_special_tokens = True  # <|endoftext|> in a text is plain characters
        with _as_errors():
            ids: dict[str, int] = self._plain.get_vocab(with_added_tokens=True)
            added = self._plain.get_added_tokens_decoder()
        self._pieces = {number: piece for piece, number in ids.items()}
        self.special = {token.content: number for number, token in added.items() if token.special}
        self._added = set(added)
        if not self._pieces:
            raise TokenizerError("the vocabulary has no tokens")
        self.n_vocab = max(self._pieces) + 1
        if self.n_vocab > MOST_TOKENS:
            raise TokenizerError(
                f"an id is {self.n_vocab - 1:,}, expected less than {MOST_TOKENS:,}"
            )
        known = [ids[end] for end in _ENDS if end in ids]
        self.stop_id = stop_id if stop_id in self._pieces else next(iter(known), None)
        described = json.loads(content)
        kind = (described.get("model") or {}).get("type") or "unknown kind"
        self.description = f"{kind} of the tokenizers library"
        decoder = json.dumps(described.get("decoder"))
        self._is_byte_level = '"ByteLevel"' in decoder
        self._falls_back = '"ByteFallback"' in decoder
        self._bytes: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"LibraryTokenizer(n_vocab={self.n_vocab}, stop_id={self.stop_id})"

    @classmethod
    def from_folder(cls, folder: Path) -> LibraryTokenizer | None:
        """Read the vocabulary in a folder, or return None if it has none of these kinds.

        Raises TokenizerError for damage.
        """
        if is_byte_level(folder):
            return None
        try:
            if is_there(folder / WHOLE):
                content = read_bytes(folder / WHOLE, largest=_LARGEST, error=TokenizerError)
                return cls(content, stop_id=read_stop_id(folder))
            if is_there(folder / _WORDPIECE):
                return cls(_wordpiece(folder), stop_id=read_stop_id(folder))
        except TokenizerError as error:
            prefix = "" if str(error).startswith(str(folder)) else f"{folder}: "
            raise TokenizerError(f"{prefix}{error}") from error
        return None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; markers such as </s> are plain text unless `special`."""
        tokenizer = self._special if special else self._plain
        with _as_errors():
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds in the middle of a text.

        Raises TokenizerError for an id outside the vocabulary.
        """
        if token not in self._bytes:
            if not 0 <= token < self.n_vocab:
                raise TokenizerError(f"id {token} is not in the vocabulary of {self.n_vocab:,}")
            self._bytes[token] = self._bytes_of(token)
        return self._bytes[token]

    def _bytes_of(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            return _UNKNOWN  # a gap in the ids, which a model may sample all the same
        if self._is_byte_level and token in self._added:
            return piece.encode()
        if self._is_byte_level and all(character in _BYTES for character in piece):
            return bytes(_BYTES[character] for character in piece)
        if self._falls_back and (byte := _BYTE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        # What comes between two tokens: their own text, and the space before the second one, go.
        before, after = self._between
        return self._decoded([self._anchor, token, self._anchor])[before : after or None].encode()

    @functools.cached_property
    def _anchor(self) -> int:
        """A plain token to decode others beside it: if there is one, without spaces around it."""
        plain = (number for number in sorted(self._pieces) if number not in self._added)
        words = [each for each in islice(plain, _TRIED) if self._decoded([each]).isalnum()]
        for each in words:
            if self._decoded([each, each]) == 2 * self._decoded([each]):
                return each
        return words[0] if words else min(self._pieces)

    @functools.cached_property
    def _between(self) -> tuple[int, int]:
        """The characters of the anchor before a token, and after it, the latter counted back."""
        alone, twice = self._decoded([self._anchor]), self._decoded([self._anchor] * 2)
        return len(alone), -(len(twice) - len(alone))

    def _decoded(self, ids: list[int]) -> str:
        with _as_errors():
            return str(self._plain.decode(ids, skip_special_tokens=False))

    def gaps(self) -> set[int]:
        """Return the ids below n_vocab that no token has."""
        return set(range(self.n_vocab)) - self._pieces.keys()

    def files(self) -> dict[str, bytes]:
        """Return the file that defines the vocabulary: tokenizer.json."""
        return {WHOLE: self._content}

    def save(self, folder: Path) -> None:
        """Write `files()`, and tokenizer_config.json, by which transformers reads it as it is."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self.stop_id is not None:
            config["eos_token"] = self._pieces[self.stop_id]
        for name, content in {**self.files(), _CONFIG: json.dumps(config).encode()}.items():
            (folder / name).write_bytes(content)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingDependencyError("tokenizers", extra="tokenizers") from None
    return tokenizers


def _loaded(content: bytes) -> Any:
    """Return the library's tokenizer without truncation and padding."""
    library = _library()
    with _as_errors():
        tokenizer = library.Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


@contextlib.contextmanager
def _as_errors() -> Iterator[None]:
    """Raise TokenizerError for any failure of the library, whose panics are no Exceptions."""
    try:
        yield
    except BaseException as error:
        if is_failure(error):
            detail = " ".join(str(error).split())[:200]
            raise TokenizerError(f"the tokenizers library cannot use it: {detail}") from None
        raise


def _wordpiece(folder: Path) -> bytes:
    """Return the tokenizer.json of BERT's vocab.txt."""
    library = _library()
    text = read_bytes(folder / _WORDPIECE, largest=_LARGEST, error=TokenizerError)
    try:
        lines = text.decode("utf-8").replace("\r\n", "\n").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{folder / _WORDPIECE}: not UTF-8 text: {error}") from error
    ids = {line: number for number, line in enumerate(lines)}
    if "[UNK]" not in ids or len(ids) != len(lines):
        raise TokenizerError(
            f"{folder / _WORDPIECE}: expected BERT's WordPiece: each token once on a line, [UNK] "
            "among them"
        )
    config: dict[str, Any] = {}
    if is_there(folder / _CONFIG):
        config = read_json(folder / _CONFIG, largest=_LARGEST, error=TokenizerError)
    with _as_errors():
        tokenizer = library.Tokenizer(library.models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = library.normalizers.BertNormalizer(
            lowercase=bool(config.get("do_lower_case", True)),
            strip_accents=config.get("strip_accents"),
            handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        )
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = library.decoders.WordPiece()
        markers = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        tokenizer.add_special_tokens([marker for marker in markers if marker in ids])
        return str(tokenizer.to_str()).encode()
