"""Vocabularies that are a SentencePiece model alone, computed by its library (gpt2kit[tokenizers]).

    spiece.model, tokenizer.model, sentencepiece.bpe.model    the same format under three names
    tokenizer_config.json                                     how a text is prepared, and markers

The model is a protobuf that has its own rules for white space and for characters that it replaces.
A tokenizer.json made of it follows some of them only in part, so nothing is converted.
"""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2kit.errors import MissingDependencyError, TokenizerError
from gpt2kit.files import read_bytes, read_json
from gpt2kit.tokenizers.bpe_files import is_there, read_stop_id

FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_CONFIG = "tokenizer_config.json"
_MARKERS = "special_tokens_map.json"  # markers, as older versions of transformers write them
_ADDED = "added_tokens.json"
_LARGEST = 2**26  # bytes of a file
_SPACE = "\u2581"  # a piece has it for each space

# The class of transformers that gives SentencePiece's own ids, and one that prepares texts before.
_PLAIN, _SW3 = "BertGenerationTokenizer", "GPTSw3Tokenizer"
# What GPT-SW3's training text was freed of, and its kinds of spaces that became plain ones.
_SW3_CHARACTERS = {
    **dict.fromkeys(map(ord, "\u2002\u2003\u2005\u2008\u2009\u200a\u202f\u3000\ufffc"), " "),
    **dict.fromkeys((*range(9), *range(11, 32), *range(127, 161), 0xAD, 0x200B)),
}


class SentencePieceTokenizer:
    """A tokenizer that the sentencepiece library computes; its texts may lose what it normalizes.

    `content` is that of a spiece.model. `stop_id` ends texts, or else the token `end`, or what the
    model says. `markers` are further tokens that are special. With `is_sw3` a text is prepared as
    for GPT-SW3, and with `lowercase` it is in small letters before it is encoded. Nothing is added
    around a text. Raises TokenizerError for a damaged model, and MissingDependencyError without the
    library.
    """

    needs_whole_text = True  # two halves of a text may have other tokens than the whole
    description = "model of SentencePiece"

    def __init__(
        self,
        content: bytes,
        *,
        stop_id: int | None = None,
        end: str | None = None,
        markers: Iterable[str] = (),
        is_sw3: bool = False,
        lowercase: bool = False,
    ) -> None:
        self._content, self._is_sw3, self._lowercase = content, is_sw3, lowercase
        with _as_errors():
            self._library = _loaded(content)
            numbers = list(range(self._library.get_piece_size()))
            self._pieces: list[str] = self._library.id_to_piece(numbers)
            is_control: list[bool] = self._library.is_control(numbers)
            self._is_byte: list[bool] = self._library.is_byte(numbers)
            self._unknown: int = self._library.unk_id()
            own_end: int = self._library.eos_id()
            self._bytes = [self._bytes_of(number, is_control[number]) for number in numbers]
        self.n_vocab = len(numbers)
        known = range(self.n_vocab)
        ids = {piece: number for number, piece in enumerate(self._pieces)}
        named = ids.get(end or "", self._unknown)
        ends = (stop_id, None if named == self._unknown else named, own_end)
        self.stop_id = next((each for each in ends if each in known), None)
        special = {number for number in known if is_control[number]} | {self._unknown}
        special |= {ids[marker] for marker in markers if marker in ids}
        special |= {self.stop_id} if self.stop_id is not None else set()
        self.special = {self._pieces[number]: number for number in sorted(special)}
        # The longest first: one marker may begin with another.
        names = sorted(self.special, key=len, reverse=True)
        self._markers = re.compile(f"({'|'.join(map(re.escape, names))})")

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer(n_vocab={self.n_vocab}, stop_id={self.stop_id})"

    @classmethod
    def from_folder(cls, folder: Path) -> SentencePieceTokenizer | None:
        """Read the vocabulary in a folder, or return None if it has none of this kind.

        Raises TokenizerError for damage, and for tokens that were added to those of the model.
        """
        found = next((folder / name for name in FILES if is_there(folder / name)), None)
        if found is None:
            return None
        content = read_bytes(found, largest=_LARGEST, error=TokenizerError)
        older, config = _read(folder / _MARKERS), _read(folder / _CONFIG)
        named = {name: _text(value) for name, value in (older | config).items()}
        markers = {text for name, text in named.items() if name.endswith("_token") and text}
        markers |= {*_listed(older), *_listed(config)}
        try:
            tokenizer = cls(
                content,
                stop_id=read_stop_id(folder),
                end=named.get("eos_token"),
                markers=sorted(markers),
                is_sw3=config.get("tokenizer_class") == _SW3,
                lowercase=config.get("do_lower_case") is True,
            )
        except TokenizerError as error:
            raise TokenizerError(f"{found}: {error}") from error
        added = _read(folder / _ADDED)
        if beyond := [token for token in added if token not in tokenizer._pieces]:
            raise TokenizerError(
                f"{folder / _ADDED} adds {len(beyond):,} tokens to those of {found.name}, such as "
                f"{beyond[0][:40]!r}, and gpt2kit reads such a vocabulary as tokenizer.json only"
            )
        return tokenizer

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; markers such as </s> are plain text unless `special`."""
        if not special:
            return self._encode(text)
        parts = self._markers.split(text)
        encoded = [
            [self.special[part]] if index % 2 else self._encode(part)
            for index, part in enumerate(parts)
        ]
        return [token for ids in encoded for token in ids]

    def _encode(self, text: str) -> list[int]:
        if self._is_sw3:
            text = unicodedata.normalize("NFC", text.translate(_SW3_CHARACTERS))
        try:
            text.encode()
        except UnicodeEncodeError:
            message = "the text has half of a surrogate pair, which is no character"
            raise TokenizerError(message) from None
        with _as_errors():
            ids: list[int] = self._library.encode(text.lower() if self._lowercase else text)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds in the middle of a text.

        Raises TokenizerError for an id outside the vocabulary.
        """
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"id {token} is not in the vocabulary of {self.n_vocab:,}")
        return self._bytes[token]

    def _bytes_of(self, token: int, is_control: bool) -> bytes:
        piece = self._pieces[token]
        if token == self._unknown:
            return str(self._library.decode([token])).encode()  # what the model shows for it
        if self._is_byte[token]:
            return bytes.fromhex(piece[3:5])  # <0x0A>
        return piece.encode() if is_control else piece.replace(_SPACE, " ").encode()

    def files(self) -> dict[str, bytes]:
        """Return the files that define the vocabulary, by which transformers has the same ids."""
        stop = None if self.stop_id is None else self._pieces[self.stop_id]
        unknown = self._pieces[self._unknown]
        # transformers adds tokens under the names of its classes for markers that are left out.
        none = unknown if self._is_sw3 else None
        begins = self._library.bos_id()
        config = {
            "tokenizer_class": _SW3 if self._is_sw3 else _PLAIN,
            "bos_token": self._pieces[begins] if begins in range(self.n_vocab) else none,
            "eos_token": stop or none,
            "unk_token": unknown,
            "pad_token": none,
            "sep_token": None,
            "additional_special_tokens": list(self.special),
            **({"do_lower_case": True} if self._lowercase else {}),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        return {FILES[0]: self._content, _CONFIG: text.encode()}

    def save(self, folder: Path) -> None:
        """Write `files()` into a folder."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)


def _loaded(content: bytes) -> Any:
    """Return the library's processor of a model."""
    try:
        import sentencepiece
    except ImportError:
        raise MissingDependencyError("sentencepiece", extra="tokenizers") from None
    if not content:
        raise TokenizerError("the file is empty")  # which the library takes for no model at all
    return sentencepiece.SentencePieceProcessor(model_proto=content)


@contextlib.contextmanager
def _as_errors() -> Iterator[None]:
    """Raise TokenizerError for any failure of the library."""
    try:
        yield
    except (TokenizerError, MissingDependencyError):
        raise
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise TokenizerError(f"the sentencepiece library cannot use it: {detail}") from None


def _read(path: Path) -> dict[str, Any]:
    if not is_there(path):
        return {}
    return read_json(path, largest=_LARGEST, error=TokenizerError)


def _text(value: Any) -> str | None:
    """Return the text of a marker, which may be an object with further properties."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _listed(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the markers that have no name of their own."""
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = content.get(name)
        for each in value if isinstance(value, list) else ():
            if text := _text(each):
                yield text
