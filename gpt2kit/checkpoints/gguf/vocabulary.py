"""The vocabulary in a GGUF file, in and out: tokens in printable characters, and merges.

llama.cpp has one tokenizer for GPT-2: byte-level BPE behind GPT-2's cut into words. A vocabulary of
characters becomes one, too: a character of several bytes is made of them by a chain of merges.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import regex

from gpt2kit.checkpoints.gguf.header import GGUFFile
from gpt2kit.errors import TokenizerError
from gpt2kit.tokenizers import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    LibraryTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from gpt2kit.tokenizers.bpe import PATTERN, byte_characters

NORMAL, CONTROL, UNUSED = 1, 3, 5  # types of tokens
TOKENS, TYPES, MERGES, MODEL, CUT, BOS, EOS = (
    f"tokenizer.ggml.{name}"
    for name in ("tokens", "token_type", "merges", "model", "pre", "bos_token_id", "eos_token_id")
)
_ADD_BOS = "tokenizer.ggml.add_bos_token"
# Our own key: false if the end token is one only because llama.cpp must have one.
HAS_END = "gpt2kit.has_end_token"

_TO_CHARACTER = byte_characters()
_TO_BYTE = {character: byte for byte, character in _TO_CHARACTER.items()}
_SAMPLE = 4000  # tokens of a large vocabulary that are tried
_TOGETHER = 64  # of them in one text
_ADVICE = "--vocabulary MODEL takes another model's"


# --- in -------------------------------------------------------------------------------------------


def read_vocabulary(file: GGUFFile) -> Tokenizer | None:
    """Return the vocabulary of a file, or None if it has none.

    Raises TokenizerError for one of another kind, and for tables that do not fit together.
    """
    model, cut = file.value(MODEL, str, "none"), file.value(CUT, str, "gpt-2")
    if model in ("none", "no_vocab"):
        return None
    if (model, cut) != ("gpt2", "gpt-2"):
        found = f"{model[:40]!a} with cut {cut[:40]!a}"
        expected = "expected 'gpt2' with cut 'gpt-2'"
        raise TokenizerError(f"{file.path}: a vocabulary of kind {found}, {expected}; {_ADVICE}")
    tokens = file.texts(TOKENS)
    types = file.value(TYPES, list, [NORMAL] * len(tokens))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        counts = f"{len(tokens):,} tokens, {len(set(tokens)):,} different, {len(types):,} types"
        raise TokenizerError(f"{file.path}: the vocabulary has {counts}; expected each once")
    used = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != UNUSED
    }
    try:
        return _characters(used) or BPETokenizer(
            used, file.texts(MERGES), added=_added(used, types), stop_id=_stop_id(file)
        )
    except TokenizerError as error:
        raise TokenizerError(f"{file.path}: {error}") from error


def _added(used: Mapping[str, int], types: list[Any]) -> dict[str, int]:
    """Return the tokens that no merge makes."""
    return {token: number for token, number in used.items() if types[number] != NORMAL}


def _stop_id(file: GGUFFile) -> int | None:
    """Return the end token's id, unless it is one only because llama.cpp must have one."""
    if not file.value(HAS_END, bool, True) or EOS not in file.keys:
        return None
    return file.value(EOS, int)


def _characters(used: Mapping[str, int]) -> CharTokenizer | None:
    """Return a vocabulary of characters; None if a token is not one, or every byte is a token."""
    if all(character in used for character in _TO_BYTE) or [*used.values()] != [*range(len(used))]:
        return None
    found = []
    for token in used:
        try:
            text = bytes(_TO_BYTE[character] for character in token).decode()
        except (KeyError, UnicodeDecodeError):
            return None
        if len(text) != 1 and text != END_OF_TEXT:
            return None
        found.append(text)
    return CharTokenizer(found) if found else None


# --- out ------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """A vocabulary as GGUF has it."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    stop_id: int | None  # None if there is no end token

    def keys(self, stand_in: int) -> dict[str, Any]:
        """Return the keys of the file; `stand_in` is the end token of a model without one.

        llama.cpp takes the token 11 as the end if none is named.
        """
        end = stand_in if self.stop_id is None else self.stop_id
        own = {} if self.stop_id is not None else {HAS_END: False}
        return {
            MODEL: "gpt2",
            CUT: "gpt-2",
            TOKENS: self.tokens,
            TYPES: self.types,
            MERGES: self.merges,
            BOS: end,
            EOS: end,
            _ADD_BOS: False,
            **own,
        }


def written(tokenizer: Tokenizer, n_vocab: int) -> Written:
    """Return a vocabulary for a model with `n_vocab` rows.

    Raises TokenizerError for one that llama.cpp's byte-level BPE cannot express, such as words, and
    for one that it would read differently.
    """
    if isinstance(tokenizer, BPETokenizer):
        files = tokenizer.files()
        ids = json.loads(files["vocab.json"]) | json.loads(files.get("added_tokens.json", "{}"))
        merges = [line for line in files["merges.txt"].decode().split("\n")[1:] if line]
        special = tokenizer.special
    elif isinstance(tokenizer, CharTokenizer):
        ids = {_spelled(token): number for number, token in enumerate(tokenizer.tokens)}
        merges = [
            merge
            for token in tokenizer.tokens
            if len(token) == 1
            for merge in _chain(token.encode())
        ]
        merges, special = list(dict.fromkeys(merges)), tokenizer.special
    elif isinstance(tokenizer, LibraryTokenizer | SentencePieceTokenizer):
        raise TokenizerError(
            f"the vocabulary is a {tokenizer.description}, and gpt2kit writes "
            "GGUF with byte-level BPE or characters; --format hf keeps it"
        )
    else:
        raise TokenizerError(
            "GGUF has no vocabulary of words: llama.cpp cuts a text into words before it looks "
            "for tokens; --format hf keeps it"
        )
    _check(tokenizer, ids, merges)
    by_id = {number: token for token, number in ids.items()}
    names = [by_id.get(number, f"[PAD{number}]") for number in range(n_vocab)]
    control = {*special.values()}
    types = [
        UNUSED if number not in by_id else CONTROL if number in control else NORMAL
        for number in range(n_vocab)
    ]
    if len(set(names)) != n_vocab:
        raise TokenizerError("the vocabulary has tokens called [PAD…], which stand for no token")
    return Written(names, types, merges, tokenizer.stop_id)


def _spelled(token: str) -> str:
    """Return a token's bytes in printable characters."""
    return "".join(_TO_CHARACTER[byte] for byte in token.encode())


def _chain(data: bytes) -> list[str]:
    """Return the merges that make one character of its bytes: "Ã ł", …"""
    spelled = [_TO_CHARACTER[byte] for byte in data]
    return [f"{''.join(spelled[:end])} {spelled[end]}" for end in range(1, len(spelled))]


def _check(tokenizer: Tokenizer, ids: Mapping[str, int], merges: Iterable[str]) -> None:
    """Raise TokenizerError unless llama.cpp's way to encode gives the tokenizer's own ids.

    The sample is made of tokens that are text, forwards and backwards: every character of an
    alphabet, or tokens from everywhere in a larger vocabulary.
    """
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    texts = [tokenizer.token_bytes(number).decode(errors="replace") for number in ids.values()]
    known = [text for text in texts if "\ufffd" not in text and text != END_OF_TEXT]
    between = "" if isinstance(tokenizer, CharTokenizer) else " "
    step = 1 if isinstance(tokenizer, CharTokenizer) else max(1, len(known) // _SAMPLE)
    for start in range(0, len(known), step * _TOGETHER):
        some = known[start : start + step * _TOGETHER : step]
        for sample in (between.join(some), between.join(reversed(some))):
            expected = tokenizer.encode(sample)
            found = [ids.get(piece, -1) for piece in _pieces(sample, ranks)]
            if found != expected:
                raise TokenizerError(
                    f"llama.cpp would read this vocabulary differently, for example in "
                    f"{sample[:20]!r}; --format hf keeps it"
                )


def _pieces(text: str, ranks: Mapping[str, int]) -> Iterable[str]:
    """Yield the tokens of a text as llama.cpp makes them: words, bytes, merges by their rank."""
    last = len(ranks)
    for word in regex.findall(PATTERN, text):
        parts = [_TO_CHARACTER[byte] for byte in word.encode()]
        while len(parts) > 1:
            found = [ranks.get(f"{a} {b}", last) for a, b in itertools.pairwise(parts)]
            best = min(found)
            if best == last:
                break
            at = found.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        yield from parts
