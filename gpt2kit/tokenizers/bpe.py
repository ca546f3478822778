"""GPT-2's byte-level BPE, computed by tiktoken, without the network.

tiktoken's own way to GPT-2's encoding downloads files, and caches them by path, not by content.
Here it gets ranks that this module has checked, because it panics over a wrong table instead of
raising an exception.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import tiktoken

from gpt2kit.errors import TokenizerError
from gpt2kit.tokenizers.bpe_files import read_vocabulary, tokenizer_json, vocabulary_files
from gpt2kit.tokenizers.protocol import END_OF_TEXT

# How GPT-2 cuts text into words before it merges. The quantifiers are possessive: that saves the
# regex engine from backtracking and changes no cut.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

# White space as that pattern knows it; four characters more are white space for Python.
_WHITE_SPACE = re.compile(r"[^\S\x1c-\x1f]+")
_PART = 2**19  # characters after which a text is cut at the next white space

# What a marker looks like, a token that no merge makes: <|endoftext|>, <s>, [PAD].
_MARKER = re.compile(r"<.*>|\[.*\]", re.DOTALL)


class BPETokenizer:
    """A byte-level BPE tokenizer: it can encode any text, and decoding returns it.

    `vocab` maps tokens to ids; `merges` lists pairs as "FIRST SECOND" in the order of their
    priority. Both spell bytes as printable characters, as GPT-2's files do. Tokens of `vocab` or
    `added` that no merge makes are markers such as <|endoftext|>, which ends texts unless `stop_id`
    is another token. Raises TokenizerError for tables that do not fit together.

    >>> from gpt2kit.tokenizers.learn import learn_bpe
    >>> learn_bpe(["low low lower lowest"], n_vocab=261)
    BPETokenizer(n_vocab=261, stop_id=260)
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[str],
        *,
        added: Mapping[str, int] | None = None,
        stop_id: int | None = None,
    ) -> None:
        self._vocab, self._merges = dict(vocab), list(merges)
        ranks = _ranks(self._vocab, self._merges)
        everything = self._vocab | dict(added or {})
        if len(set(everything.values())) != len(everything):
            raise TokenizerError("two tokens of the vocabulary have the same id")
        self.special = {token: everything[token] for token in everything.keys() - ranks.keys()}
        # What vocab.json tells by itself need not be repeated among the added tokens.
        self._added = {
            token: number
            for token, number in (added or {}).items()
            if token not in vocab or not (token in ranks or _MARKER.fullmatch(token))
        }
        if unmade := [
            token
            for token in self.special.keys() - self._added.keys()
            if not _MARKER.fullmatch(token)
        ]:
            example = f"{len(unmade):,} tokens of the vocabulary, for example {min(unmade)[:40]!r}"
            raise TokenizerError(
                f"{example}, are made by no merge; the merges are cut short, or another model's"
            )
        self.n_vocab = max(everything.values()) + 1
        self.stop_id = stop_id if stop_id in everything.values() else self.special.get(END_OF_TEXT)
        mergeable = dict(zip(_to_bytes(ranks), ranks.values(), strict=True))
        self._encoding = tiktoken.Encoding(
            "gpt2kit", pat_str=PATTERN, mergeable_ranks=mergeable, special_tokens=self.special
        )

    def __repr__(self) -> str:
        return f"BPETokenizer(n_vocab={self.n_vocab}, stop_id={self.stop_id})"

    @classmethod
    def from_folder(cls, folder: Path) -> BPETokenizer | None:
        """Read the vocabulary in a folder, or return None if there is none.

        `bpe_files` lists its forms.

        Raises TokenizerError for a damaged or incomplete vocabulary.
        """
        files = read_vocabulary(folder)
        if files is None:
            return None
        try:
            return cls(files.vocab, files.merges, added=files.added, stop_id=files.stop_id)
        except TokenizerError as error:
            raise TokenizerError(f"{folder}: {error}") from error
        except UnicodeError as error:  # half a surrogate pair
            detail = f"the vocabulary is not as tokenizers writes it ({error})"
            raise TokenizerError(f"{folder}: {detail}") from error

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; markers such as <|endoftext|> are plain text unless `special`.

        >>> from gpt2kit.tokenizers.learn import learn_bpe
        >>> tokenizer = learn_bpe(["low low lower lowest"], n_vocab=261)
        >>> tokenizer.encode("low low")
        [257, 258]
        >>> tokenizer.encode("low<|endoftext|>", special=True)
        [257, 260]
        """
        if not special or not self.special:
            return list(chain.from_iterable(map(self._encoding.encode_ordinary, _parts(text))))
        between = enumerate(self._at_markers.split(text))
        ids = ([self.special[part]] if index % 2 else self.encode(part) for index, part in between)
        return list(chain.from_iterable(ids))

    @functools.cached_property
    def _at_markers(self) -> re.Pattern[str]:
        """Finds markers in a text, the longest one where several begin."""
        markers = sorted(self.special, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, markers))})")

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD.

        >>> from gpt2kit.tokenizers.learn import learn_bpe
        >>> learn_bpe(["low low lower lowest"], n_vocab=261).decode([257, 258])
        'low low'
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token; raises TokenizerError for an id outside the vocabulary.

        >>> from gpt2kit.tokenizers.learn import learn_bpe
        >>> learn_bpe(["low low lower lowest"], n_vocab=261).token_bytes(258)
        b' low'
        """
        try:
            return self._encoding.decode_single_token_bytes(token)
        except (KeyError, OverflowError):
            if 0 <= token < self.n_vocab:
                return "\ufffd".encode()  # a gap in the ids, which a model may sample all the same
            message = f"id {token} is not in the vocabulary of {self.n_vocab:,}"
            raise TokenizerError(message) from None

    def gaps(self) -> set[int]:
        """Return the ids below n_vocab that no token has, since the files skip them."""
        used = {*self._vocab.values(), *self._added.values()}
        return set(range(self.n_vocab)) - used

    def files(self) -> dict[str, bytes]:
        """Return the files that define the vocabulary, by name: vocab.json and merges.txt."""
        return vocabulary_files(self._vocab, self._merges, self._added)

    def save(self, folder: Path) -> None:
        """Write `files()`, and tokenizer.json for programs that read nothing else."""
        whole = tokenizer_json(self._vocab, self._merges, self.special)
        for name, content in {**self.files(), "tokenizer.json": whole}.items():
            (folder / name).write_bytes(content)


def _parts(text: str) -> Iterator[str]:
    """Yield a text in parts that have the tokens of the whole.

    tiktoken panics over a million white spaces before a word. The last of them is never in one
    token with the others, so a text may be cut there.
    """
    start = 0
    while (run := _WHITE_SPACE.search(text, start + _PART)) and run.end() < len(text):
        yield text[start : run.end() - 1]
        start = run.end() - 1
    yield text[start:]


# --- bytes as printable characters ----------------------------------------------------------------


def byte_characters() -> dict[int, str]:
    """Return the character for each byte: its own if printable, else one from U+0100 on."""
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    table = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}


_CHARACTER = byte_characters()
_LATIN_1 = {ord(character): chr(byte) for byte, character in _CHARACTER.items()}


def _to_bytes(tokens: Iterable[str]) -> list[bytes]:
    """Return the bytes that tokens spell, all at once: there are fifty thousand at every start."""
    separator = "\uffff"  # stands for no byte
    spelled = separator.join(tokens).translate(_LATIN_1).split(separator)
    return [token.encode("latin-1") for token in spelled]


# --- tables ---------------------------------------------------------------------------------------


def _ranks(vocab: Mapping[str, int], merges: Iterable[str]) -> dict[str, int]:
    """Return the id of every single byte and every merge; tiktoken takes ids for priorities."""
    # Merges stay strings: fifty thousand tuples would make Python's garbage collector visit all of
    # them.
    if missing := [character for character in _CHARACTER.values() if character not in vocab]:
        count = len(missing)
        raise TokenizerError(
            f"the vocabulary lacks {count} of the 256 single bytes; is it GPT-2's?"
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
    """Return the message for a merge that does not fit the vocabulary or the merges before it."""
    if not second or " " in second:
        return f"a merge is {f'{first} {second}'[:40]!r}, expected two tokens"
    merge = f"the merge of {first[:40]!r} and {second[:40]!r}"
    if first + second not in vocab:
        return f"{merge} is not in the vocabulary; are the two files of one model?"
    if first not in ranks or second not in ranks:
        return f"{merge} comes before the merges of its halves; they are damaged or out of order"
    found = vocab[first + second]
    return f"{merge} has id {found}, expected more than {last}: ids rise in the order of the merges"
