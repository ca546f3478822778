"""The files of a byte-level BPE vocabulary: OpenAI's pair, the Hub's pair, and tokenizer.json.

    vocab.json, merges.txt     the Hub's names for OpenAI's encoder.json and vocab.bpe: tokens with
                               their ids, and the merges in the order of their priority
    added_tokens.json          tokens that were added later, with their ids
    tokenizer.json             everything in one file, as tokenizers and transformers 5 save it

Beside one of the pairs, tokenizer.json is read only for its added tokens. The end-of-text token is
the one that config.json names.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.errors import Gpt2KitWarning, TokenizerError
from gpt2kit.files import read_json, read_text

_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_ADDED = "added_tokens.json"
WHOLE = "tokenizer.json"
_LARGEST = 2**26  # bytes of a vocabulary file
# What a BPE model of tokenizer.json says if it makes its tokens otherwise than GPT-2.
_OTHERWISE = ("ignore_merges", "end_of_word_suffix", "continuing_subword_prefix")
MOST_TOKENS = 10**6  # as of a model; ids may have gaps, and some callers go through all of them


@dataclass(frozen=True)
class BPEFiles:
    """What the files of a vocabulary say, not checked against each other yet."""

    vocab: Mapping[str, int]
    merges: Sequence[str]  # "FIRST SECOND"
    added: Mapping[str, int]
    stop_id: int | None


def read_vocabulary(folder: Path) -> BPEFiles | None:
    """Read the vocabulary in a folder, or return None if there is none.

    Raises TokenizerError for half a pair or a damaged file; a link that leads nowhere is damage,
    too.
    """
    try:
        pair = _find_pair(folder)
        is_whole = is_there(folder / WHOLE)
        if pair is None and not is_whole:
            return None
        stop_id = read_stop_id(folder)
        whole = _read(folder / WHOLE) if is_whole else {}
        if pair is None:
            vocab, merges = _model(folder / WHOLE, whole)
        else:
            vocab, merges = _ids(pair[0], _read(pair[0])), _merges(pair[1])
        added = _ids(folder / _ADDED, _read(folder / _ADDED)) if is_there(folder / _ADDED) else {}
        return BPEFiles(vocab, merges, _join(folder, vocab, added, _added(folder, whole)), stop_id)
    except (AttributeError, KeyError, TypeError, UnicodeError) as error:  # JSON of another shape
        kind = type(error).__name__
        detail = f"the vocabulary is not as tokenizers writes it ({kind}: {error})"
        raise TokenizerError(f"{folder}: {detail}") from error


def is_there(path: Path) -> bool:
    """Whether a name is taken, also by a link that leads nowhere: reading that is an error."""
    return os.path.lexists(path)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, largest=_LARGEST, unique=False, error=TokenizerError)


def _find_pair(folder: Path) -> tuple[Path, Path] | None:
    """Return the two files of a vocabulary; raise TokenizerError if only one is there."""
    for names in _PAIRS:
        present = [name for name in names if is_there(folder / name)]
        if len(present) == 1:
            (missing,) = set(names) - set(present)
            raise TokenizerError(f"{folder}: {present[0]} is here, but {missing} is missing")
        if present:
            return folder / names[0], folder / names[1]
    return None


def _model(path: Path, whole: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Return the tokens and merges of a tokenizer.json."""
    model = whole.get("model") or {}
    if not _is_gpt2s(whole):
        expected = (
            "pre_tokenizer ByteLevel with use_regex and without add_prefix_space, no normalizer, "
            f"no {', '.join(_OTHERWISE)}"
        )
        raise TokenizerError(f"{path}: expected GPT-2's byte-level BPE ({expected})")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return _ids(path, model.get("vocab")), merges


def _is_gpt2s(whole: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json describes a byte-level BPE that makes its tokens as GPT-2 does."""
    model, cut = whole.get("model") or {}, whole.get("pre_tokenizer") or {}
    return (
        model.get("type", "BPE") == "BPE"
        and cut.get("type") == "ByteLevel"
        and not cut.get("add_prefix_space")
        and cut.get("use_regex", True)
        and not whole.get("normalizer")
        and not any(map(model.get, _OTHERWISE))
    )


def is_byte_level(folder: Path) -> bool:
    """Whether the vocabulary in a folder is GPT-2's byte-level BPE.

    Its two files decide, if they are there, and tokenizer.json otherwise. Raises TokenizerError for
    damage.
    """
    if any(is_there(folder / name) for names in _PAIRS for name in names):
        return True
    if not is_there(folder / WHOLE):
        return False
    try:
        return _is_gpt2s(_read(folder / WHOLE))
    except AttributeError:  # JSON of another shape, which is refused with the reason later
        return True


def _added(folder: Path, whole: dict[str, Any]) -> dict[str, int]:
    """Return the added tokens of a tokenizer.json."""
    added = {token["content"]: token["id"] for token in whole.get("added_tokens") or ()}
    return _ids(folder / WHOLE, added)


def _join(folder: Path, vocab: Mapping[str, int], *tables: Mapping[str, int]) -> dict[str, int]:
    """Return the added tokens of all files, which must agree on every id."""
    added: dict[str, int] = {}
    for table in tables:
        for token, number in table.items():
            other = vocab.get(token, added.get(token, number))
            if other != number:
                detail = f"the token {token[:40]!r} has the ids {other} and {number}"
                raise TokenizerError(f"{folder}: {detail}; are the files of one model?")
        added |= table
    return added


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
    if table and not 0 <= min(table.values()) <= max(table.values()) < MOST_TOKENS:
        raise TokenizerError(f"{path}: an id is negative, or not below {MOST_TOKENS:,}")
    return table


def _merges(path: Path) -> list[str]:
    text = read_text(path, largest=_LARGEST, error=TokenizerError)
    lines = text.replace("\r\n", "\n").split("\n")
    return [line for line in lines[lines[0].startswith("#version") :] if line]


def read_stop_id(folder: Path) -> int | None:
    """Return the end-of-text id in config.json, which a fine-tuned model may have changed."""
    path = folder / "config.json"
    if not is_there(path):
        return None
    stop_id = read_json(path, error=TokenizerError).get("eos_token_id")
    if isinstance(stop_id, list) and stop_id:
        if len(stop_id) > 1:
            message = f"{folder}: config.json names {len(stop_id)} end markers; the first is used"
            warnings.warn(message, Gpt2KitWarning, stacklevel=2)
        stop_id = stop_id[0]
    return stop_id if type(stop_id) is int else None


def vocabulary_files(
    vocab: Mapping[str, int], merges: Sequence[str], added: Mapping[str, int]
) -> dict[str, bytes]:
    """Return vocab.json, merges.txt and, if there are added tokens, added_tokens.json.

    They equal OpenAI's files byte for byte if the vocabulary is theirs.
    """
    files = {
        "vocab.json": json.dumps(vocab).encode(),
        "merges.txt": ("\n".join(["#version: 0.2", *merges]) + "\n").encode(),
    }
    return files | ({_ADDED: json.dumps(added).encode()} if added else {})


def tokenizer_json(
    vocab: Mapping[str, int], merges: Sequence[str], special: Mapping[str, int]
) -> bytes:
    """Return tokenizer.json as transformers 5 writes it for GPT-2, without its indentation."""
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    a, b = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **flags, "special": True}
            for token, number in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "add_prefix_space": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [a],
            "pair": [a, b],
            "special_tokens": {},
        },
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in merges],
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
