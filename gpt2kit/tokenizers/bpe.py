"""GPT-2's byte-level BPE, from the files that come with the weights, through tiktoken and without the network.

tiktoken's own way of building GPT-2's encoding downloads files, and its cache answers by path, not by content; here it is
handed ranks that were read and checked by us, since it panics over a wrong table instead of raising.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from gpt2kit.errors import Gpt2KitWarning, TokenizerError
from gpt2kit.files import read_json, read_text

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 cuts text before merging; possessive quantifiers spare the engine backtracking and change no cut.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_PAIRS = (
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
)  # the Hub's names and OpenAI's, the same contents
_LARGEST = 2**26  # bytes of a vocabulary file

# How markers look that are in the vocabulary and made by no merge: <|endoftext|>, <s>, [PAD].
_MARKER = re.compile(r"<.*>|\[.*\]", re.DOTALL)


class BPETokenizer:
    """A byte-level BPE tokenizer: any text can be encoded, and decoding gives it back.

    `vocab` maps tokens to ids and `merges` lists pairs as "FIRST SECOND", first merged first, both in GPT-2's spelling of bytes as
    printable characters. What is in `vocab` or `added` and is no merge is a marker such as <|endoftext|>, which ends texts unless `stop_id`
    is another token. Raises TokenizerError for tables that do not fit together.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[str],
        *,
        added: Mapping[str, int] | None = None,
        stop_id: int | None = None,
    ) -> None:
        self._vocab, self._merges, self._added = dict(vocab), list(merges), dict(added or {})
        ranks = _ranks(self._vocab, self._merges)
        everything = self._vocab | self._added
        if len(set(everything.values())) != len(everything):
            raise TokenizerError("two tokens of the vocabulary have the same id")
        self.special = {token: everything[token] for token in everything.keys() - ranks.keys()}
        if unmade := [
            token
            for token in self._vocab.keys() - ranks.keys() - self._added.keys()
            if not _MARKER.fullmatch(token)
        ]:
            example = f"{len(unmade):,} tokens of the vocabulary, {min(unmade)[:40]!r} for one, are made by no merge"
            raise TokenizerError(f"{example}; the list of merges is cut short, or another model's")
        self.n_vocab = max(everything.values()) + 1
        self.stop_id = stop_id if stop_id in everything.values() else self.special.get(END_OF_TEXT)
        mergeable = dict(zip(_unspell(ranks), ranks.values(), strict=True))
        self._encoding = tiktoken.Encoding(
            "gpt2kit", pat_str=PATTERN, mergeable_ranks=mergeable, special_tokens=self.special
        )

    @classmethod
    def find(cls, folder: Path) -> BPETokenizer | None:
        """Read the vocabulary in a folder: vocab.json and merges.txt, encoder.json and vocab.bpe, or tokenizer.json.

        Returns None where there is none of them, and raises TokenizerError for half a pair or damage.
        """
        try:
            stop_id = _stop_id(folder)
            added = (
                read_json(folder / "added_tokens.json", error=TokenizerError)
                if (folder / "added_tokens.json").exists()
                else {}
            )
            for vocab, merges in _PAIRS:
                present = [name for name in (vocab, merges) if (folder / name).exists()]
                if len(present) == 1:
                    raise TokenizerError(
                        f"{folder}: {present[0]} is here, but {vocab if present[0] == merges else merges} is missing"
                    )
                if present:
                    table = _ids(
                        folder / vocab,
                        read_json(
                            folder / vocab, largest=_LARGEST, unique=False, error=TokenizerError
                        ),
                    )
                    return cls(
                        table,
                        _merges(folder / merges),
                        added=_ids(folder / "added_tokens.json", added),
                        stop_id=stop_id,
                    )
            if (folder / "tokenizer.json").exists():
                return cls._from_tokenizer_json(folder / "tokenizer.json", stop_id)
        except TokenizerError as error:
            raise (
                error if str(folder) in str(error) else TokenizerError(f"{folder}: {error}")
            ) from error
        except (
            AttributeError,
            KeyError,
            TypeError,
            UnicodeError,
        ) as error:  # JSON of other shapes, surrogates
            raise TokenizerError(
                f"{folder}: the vocabulary is not as tokenizers writes it ({type(error).__name__}: {error})"
            ) from error
        return None

    @classmethod
    def _from_tokenizer_json(cls, path: Path, stop_id: int | None) -> BPETokenizer:
        """Read the one file that recent versions of transformers save."""
        content = read_json(path, largest=_LARGEST, unique=False, error=TokenizerError)
        model, cut = content.get("model") or {}, content.get("pre_tokenizer") or {}
        if (
            model.get("type", "BPE") != "BPE"
            or cut.get("type") != "ByteLevel"
            or cut.get("add_prefix_space")
            or content.get("normalizer")
        ):
            raise TokenizerError(
                f"{path}: expected GPT-2's byte-level BPE (pre_tokenizer ByteLevel without add_prefix_space, no normalizer)"
            )
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
        return cls(_ids(path, model.get("vocab")), merges, added=_ids(path, added), stop_id=stop_id)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; <|endoftext|> and its like are plain text unless `special`."""
        return (
            self._encoding.encode(text, allowed_special="all")
            if special
            else self._encoding.encode_ordinary(text)
        )

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one id; raises TokenizerError for an id that the vocabulary does not have."""
        try:
            return self._encoding.decode_single_token_bytes(token)
        except (KeyError, OverflowError):
            if 0 <= token < self.n_vocab:
                return "\ufffd".encode()  # a gap in the numbering, which a model may still sample
            raise TokenizerError(
                f"id {token} is not in the vocabulary of {self.n_vocab:,}"
            ) from None

    def save(self, folder: Path) -> None:
        """Write vocab.json and merges.txt, byte for byte OpenAI's where the vocabulary is theirs."""
        (folder / "vocab.json").write_text(json.dumps(self._vocab), encoding="utf-8")
        (folder / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *self._merges]) + "\n", encoding="utf-8"
        )
        if self._added:
            (folder / "added_tokens.json").write_text(json.dumps(self._added), encoding="utf-8")


# --- GPT-2's spelling of bytes ---------------------------------------------------------------------------------------


def byte_characters() -> dict[int, str]:
    """Return the character that stands for each byte: itself where it prints, else one from U+0100 on."""
    table = {
        byte: chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    }
    hidden = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}


_CHARACTER = byte_characters()
_LATIN_1 = {ord(character): chr(byte) for byte, character in _CHARACTER.items()}


def _unspell(tokens: Iterable[str]) -> list[bytes]:
    """Return the bytes of tokens; all at once, for there are fifty thousand at every start."""
    apart = "\uffff"  # stands for no byte
    return [
        token.encode("latin-1") for token in apart.join(tokens).translate(_LATIN_1).split(apart)
    ]


# --- tables ----------------------------------------------------------------------------------------------------------


def _ranks(vocab: Mapping[str, int], merges: Iterable[str]) -> dict[str, int]:
    """Return token -> id for the single bytes and every merge, in the order that tiktoken takes for their priority."""
    # Merges stay strings, not pairs: fifty thousand tuples would send Python's garbage collector over all that is loaded.
    if missing := [character for character in _CHARACTER.values() if character not in vocab]:
        raise TokenizerError(
            f"the vocabulary lacks {len(missing)} of the 256 single bytes; is it GPT-2's?"
        )
    ranks = {character: vocab[character] for character in _CHARACTER.values()}
    last = -1
    for merge in merges:
        first, _, second = merge.partition(" ")
        token = first + second
        number = vocab.get(token, -1)
        if number <= last or first not in ranks or second not in ranks:
            raise TokenizerError(_what_is_wrong(first, second, vocab, ranks, last))
        ranks[token] = last = number
    return ranks


def _what_is_wrong(
    first: str, second: str, vocab: Mapping[str, int], ranks: Mapping[str, int], last: int
) -> str:
    if not second or " " in second:
        return f"a merge is {f'{first} {second}'[:40]!r}, expected two tokens"
    merge = f"the merge of {first[:40]!r} and {second[:40]!r}"
    if first + second not in vocab:
        return f"{merge} is not in the vocabulary; are the two files of one model?"
    if first not in ranks or second not in ranks:
        return f"{merge} comes before its halves were made; the merges are damaged or out of order"
    return f"{merge} has id {vocab[first + second]}, expected more than {last}: ids must rise in the order of the merges"


def _ids(path: Path, table: Any) -> dict[str, int]:
    """Return the table if it maps strings to ids."""
    if (
        not isinstance(table, dict)
        or {*map(type, table)} - {str}
        or {*map(type, table.values())} - {int}
    ):
        raise TokenizerError(f"{path}: expected an object from tokens to ids")
    if "" in table:
        raise TokenizerError(f"{path}: a token is empty")
    if table and not 0 <= min(table.values()) <= max(table.values()) < 2**31:
        raise TokenizerError(f"{path}: an id is negative or beyond 2^31")
    return table


def _merges(path: Path) -> list[str]:
    lines = (
        read_text(path, largest=_LARGEST, error=TokenizerError).replace("\r\n", "\n").split("\n")
    )
    return [line for line in lines[lines[0].startswith("#version") :] if line]


def _stop_id(folder: Path) -> int | None:
    """Return the end marker that config.json names, which a fine-tuned model may have changed."""
    config = (
        read_json(folder / "config.json", error=TokenizerError)
        if (folder / "config.json").exists()
        else {}
    )
    stop_id = config.get("eos_token_id")
    if isinstance(stop_id, list) and stop_id:
        if len(stop_id) > 1:
            warnings.warn(
                f"{folder}: config.json names {len(stop_id)} end markers; the first is used",
                Gpt2KitWarning,
                stacklevel=2,
            )
        stop_id = stop_id[0]
    return stop_id if type(stop_id) is int else None
