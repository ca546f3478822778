"""The vocabulary of a checkpoint: beside its weights, in another program's file, or GPT-2's own.

A file of weights alone has no vocabulary in it. nanoGPT keeps its characters in meta.pkl; the other
courses make theirs anew from the corpus, sorted(set(text)), or use GPT-2's.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2kit import store
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.checkpoints.unpickle import Unreadable, unpickle
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointNotFoundError, Gpt2KitError, TokenizerError
from gpt2kit.files import read_bytes, read_start
from gpt2kit.store.catalogue import MERGES_SHA256
from gpt2kit.tokenizers import CharTokenizer, Tokenizer, load_tokenizer

META_FILE = "meta.pkl"
_LARGEST_META = 2**22  # bytes; 4 MB hold 100,000 characters
_LARGEST_TEXT = 2**31  # bytes of a corpus
_N_VOCAB = GPT2Config().n_vocab
# Rows of a model with GPT-2's vocabulary; nanoGPT pads it to a multiple of 64.
GPT2_ROWS = (_N_VOCAB, 50304)


def load_vocabulary(
    checkpoint: Checkpoint,
    source: Path | None = None,
    *,
    fetch: Callable[[], Path] | None = None,
) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint, or None: `where_to_look` has advice then.

    `source` is a file or folder of another vocabulary: see `read_vocabulary`. `fetch` gives the
    folder of GPT-2's vocabulary if the model needs it and no model on this machine has it. Raises
    TokenizerError for damage, and for a vocabulary with more tokens than the model.
    """
    n_vocab = checkpoint.config.n_vocab
    if source is not None:
        tokenizer: Tokenizer | None = read_vocabulary(source, n_vocab)
        where = source
    elif checkpoint.own_vocabulary is not None:
        tokenizer, where = checkpoint.own_vocabulary(), checkpoint.path
    else:
        tokenizer, where = load_tokenizer(checkpoint.folder), checkpoint.folder
        if tokenizer is None and checkpoint.is_alone:
            tokenizer = _of_program(checkpoint, fetch)
    if tokenizer is not None and tokenizer.n_vocab > n_vocab:
        counts = f"{tokenizer.n_vocab:,} tokens, but the model only {n_vocab:,}"
        advice = "put the model's own vocab.json and merges.txt there"
        raise TokenizerError(f"{where}: the vocabulary has {counts}; {advice}")
    return tokenizer


def _of_program(checkpoint: Checkpoint, fetch: Callable[[], Path] | None) -> Tokenizer | None:
    """Return the vocabulary that the program which saved the weights would use."""
    paths = [checkpoint.folder / META_FILE]
    if checkpoint.dataset is not None:  # nanoGPT's folders out-NAME and data/NAME lie side by side
        paths.append(checkpoint.folder.absolute().parent / "data" / checkpoint.dataset / META_FILE)
    for path in paths:
        if path.is_file():
            return read_vocabulary(path, checkpoint.config.n_vocab)
    if checkpoint.config.n_vocab not in GPT2_ROWS:
        return None
    return gpt2_vocabulary() or (None if fetch is None else load_tokenizer(fetch()))


def where_to_look(checkpoint: Checkpoint) -> str | None:
    """Say where the vocabulary is of a file of weights alone that came without; else None."""
    if not checkpoint.is_alone:
        return None
    if checkpoint.config.n_vocab in GPT2_ROWS:
        return "GPT-2's vocabulary is not on this machine; run: gpt2kit download 124M"
    if checkpoint.dataset is not None:
        return (
            f"nanoGPT keeps it in data/{checkpoint.dataset}/{META_FILE}: copy that beside the "
            "checkpoint, or add --vocabulary FILE"
        )
    return (
        f"the vocabulary of {checkpoint.config.n_vocab:,} tokens is not in the file; add "
        f"--vocabulary FILE: {META_FILE}, a list of characters, or the text it was trained on"
    )


def none_found(checkpoint: Checkpoint) -> str:
    """Say that a checkpoint was written without a vocabulary, and how to give it one."""
    advice = where_to_look(checkpoint) or "--vocabulary MODEL takes it from another model"
    return f"no vocabulary was found, so none was written; {advice}"


def gpt2_vocabulary() -> Tokenizer | None:
    """Return GPT-2's vocabulary from any model on this machine, or None."""
    if store.vocabulary_dir().is_dir():
        return load_tokenizer(store.vocabulary_dir())
    for model in store.installed():
        try:
            tokenizer = load_tokenizer(model.path)
        except (OSError, Gpt2KitError):  # another model's vocabulary is no reason to fail
            continue
        if tokenizer is not None and _is_gpt2s(tokenizer):
            return tokenizer
    return None


def _is_gpt2s(tokenizer: Tokenizer) -> bool:
    """Whether the merges are GPT-2's: other languages have vocabularies of the same size."""
    merges = tokenizer.files().get("merges.txt", b"")
    return tokenizer.n_vocab == _N_VOCAB and hashlib.sha256(merges).hexdigest() == MERGES_SHA256


def find_vocabulary(source: str | Path) -> Path:
    """Return the path of a vocabulary, a file or a model; raise TokenizerError if there is none."""
    try:
        return store.find(source)
    except CheckpointNotFoundError as error:
        expected = "a file such as meta.pkl, the text of the training, or a model on this machine"
        raise TokenizerError(f"there is no vocabulary {source}; expected {expected}") from error


# --- files of other programs ----------------------------------------------------------------------


def read_vocabulary(path: Path, n_vocab: int) -> Tokenizer:
    """Read the vocabulary of a model with that many tokens from a file or folder of any kind.

    - a folder or one of the files of a vocabulary of ours or the Hub's, such as vocab.json
    - nanoGPT's meta.pkl, which is not run
    - JSON: a list of characters, or an object from characters to ids
    - the text that the model was trained on, whose sorted characters have the ids from 0 on

    Raises TokenizerError for anything else, and for a text with another number of characters.
    """
    if not path.is_file():
        return _beside(path if path.is_dir() else path.parent)
    start = read_start(path, error=TokenizerError)
    if start.startswith(b"\x80"):
        return _from_meta(path)
    if b"\0" in start:  # weights: safetensors or a zip archive
        return _beside(path.parent)
    try:
        text = read_bytes(path, largest=_LARGEST_TEXT, error=TokenizerError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: neither UTF-8 text nor a vocabulary") from error
    if text[:1] in ("{", "["):
        try:
            return _from_json(path, json.loads(text))
        except (ValueError, RecursionError):
            pass  # a text that begins like this
    return _from_text(path, text, n_vocab)


def _beside(folder: Path) -> Tokenizer:
    """Return the vocabulary in a folder, which must have one."""
    if (tokenizer := load_tokenizer(folder)) is not None:
        return tokenizer
    if (folder / META_FILE).is_file():
        return _from_meta(folder / META_FILE)
    detail = f"no vocabulary; expected vocab.json and merges.txt, or {META_FILE}"
    raise TokenizerError(f"{folder}: {detail}")


def _from_text(path: Path, text: str, n_vocab: int) -> CharTokenizer:
    """Return the sorted characters of a corpus, which must be as many as the model has tokens."""
    # As Python reads text files, and so every course: each kind of line end is one \n.
    characters = sorted(set(text.replace("\r\n", "\n").replace("\r", "\n")))
    if len(characters) != n_vocab:
        raise TokenizerError(
            f"{path}: its text has {len(characters):,} different characters, and the model "
            f"{n_vocab:,} tokens; expected the very text that the model was trained on"
        )
    return CharTokenizer(characters)


def _from_meta(path: Path) -> CharTokenizer:
    """Read nanoGPT's meta.pkl: {"vocab_size": …, "itos": {id: character}, "stoi": …}."""
    data = read_bytes(path, largest=_LARGEST_META, error=TokenizerError)
    try:
        content, _ = unpickle(io.BytesIO(data))
    except Unreadable as reason:
        raise TokenizerError(f"{path}: {reason}; expected nanoGPT's meta.pkl") from reason
    itos = content.get("itos") if isinstance(content, dict) else None
    stoi = content.get("stoi") if isinstance(content, dict) else None
    if not isinstance(itos, dict | list) or not isinstance(stoi, dict):
        raise TokenizerError(f'{path}: expected nanoGPT\'s meta.pkl, with "itos" and "stoi"')
    tokenizer = _characters(path, stoi)
    pairs = enumerate(itos) if isinstance(itos, list) else itos.items()
    if dict(pairs) != dict(enumerate(tokenizer.tokens)):
        raise TokenizerError(f'{path}: "itos" and "stoi" disagree; make the file again')
    return tokenizer


def _from_json(path: Path, content: Any) -> Tokenizer:
    """Return a vocabulary in JSON: a list of characters, or an object from them to their ids."""
    if isinstance(content, list):
        content = {token: index for index, token in enumerate(content) if isinstance(token, str)}
    content = stoi if isinstance(stoi := content.get("stoi"), dict) else content
    is_words = any(isinstance(token, str) and len(token) > 1 for token in content)
    if is_words and (tokenizer := load_tokenizer(path.parent)) is not None:
        return tokenizer  # one file of several that belong together
    return _characters(path, content)


def _characters(path: Path, ids: dict[Any, Any]) -> CharTokenizer:
    """Return the tokenizer of characters with these ids, which must be 0, 1, 2, …"""
    tokens = sorted(ids, key=lambda token: ids[token] if type(ids[token]) is int else -1)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise TokenizerError(f"{path}: expected characters with the ids 0, 1, 2, …")
    if not all(isinstance(token, str) and len(token) == 1 for token in tokens):
        odd = next(token for token in tokens if not isinstance(token, str) or len(token) != 1)
        raise TokenizerError(f"{path}: {ascii(odd)[:60]} is not one character")
    try:
        return CharTokenizer(tokens)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
