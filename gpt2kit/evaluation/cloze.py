"""The likeliest next words of a text, each of one token or several, with its whole probability.

A word follows the text after one space. It ends before white space, before punctuation, or at the
end of the text. A search always extends the likeliest beginning, and what it has not read yet
bounds what it has not found.

    V vocabulary
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.distributions import word_beginnings
from gpt2kit.evaluation.passages import is_punctuation
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

_AT_ONCE = 16  # beginnings that are read together
_INSIDE = "'’-‐‑"  # punctuation that does not end a word: don't, well-known
_KEPT = 1024  # of the beginnings that one token more makes
_Path = tuple[int, ...]


@dataclass(frozen=True)
class NextWord:
    """A word that may come next."""

    text: str
    probability: float  # that exactly this word comes, given that a word begins
    cumulative: float  # with all likelier words
    n_tokens: int


@dataclass(frozen=True)
class Cloze:
    """The likeliest next words of a text, the likeliest first."""

    words: tuple[NextWord, ...]
    complete: bool  # whether no other word can be likelier than the last of them
    found: float  # probability of all words that were found, also of those beyond `words`
    read: int  # beginnings of words that the model has read
    entropy_at_least: float  # bits, over words: what was not found counts as few words
    entropy_at_most: float  # bits, if no word has more than `longest` tokens
    longest: int


def cloze(
    model: GPT2,
    tokenizer: Tokenizer | None,
    text: str,
    *,
    top: int = 20,
    most: int = 256,
    longest: int = 6,
    keep_punctuation: bool = False,
) -> Cloze:
    """Search the likeliest next words of a text.

    The search ends when the `top` likeliest words are certain, or after `most` beginnings were
    read. With `keep_punctuation` "tree." is another word than "tree", and a probability is that of
    `Word.surprisal_corrected`. Raises ConfigError for a text without tokens or without room.
    """
    search = _Search(model, require_tokenizer(tokenizer, "the model"), text, longest)
    search.begin(keep_punctuation)
    while search.read < most and search.heap and not search.is_certain(top):
        search.extend(min(_AT_ONCE, most - search.read))
    return search.result(top)


class _Search:
    """The words found so far, and the beginnings that were not read yet."""

    def __init__(self, model: GPT2, tokenizer: Tokenizer, text: str, longest: int) -> None:
        self.model, self.tokenizer, self.longest = model, tokenizer, longest
        text = text.rstrip(" \t\n\r\v\f")
        self.context = [*start_of_text(tokenizer), *tokenizer.encode(text)]
        room = model.config.n_ctx - longest
        if not 0 < len(self.context) <= room:
            raise ConfigError(
                f"the text has {len(self.context):,} tokens; expected from 1 to {room:,}, so that "
                f"a word of {longest} tokens fits into the model's window"
            )
        self.heap: list[tuple[float, _Path]] = []  # minus probability: the likeliest comes first
        self.words: dict[_Path, float] = {}
        self.read = 0
        self.likeliest_dropped = 0.0  # of the beginnings that `_push` did not keep

    def begin(self, keep_punctuation: bool) -> None:
        """Read the text, and take every token that begins a word after a space."""
        n_vocab = self.model.config.n_vocab
        begins = word_beginnings(self.tokenizer, n_vocab, "whitespace")  # (V,)
        first, self.ends = torch.zeros_like(begins), begins.clone()  # (V,) each
        for token in range(min(n_vocab, self.tokenizer.n_vocab)):
            piece = self.tokenizer.token_bytes(token).decode(errors="replace")
            mark = _ends_words(piece.removeprefix(" ")) and not keep_punctuation
            first[token] = piece.startswith(" ") and not mark
            self.ends[token] |= mark
        probabilities = self._next([()])[0]
        self._push((), probabilities / probabilities[begins].sum(), first)

    def is_certain(self, top: int) -> bool:
        """Whether no word that was not found can be among the `top` likeliest."""
        if len(self.words) < top:
            return False
        unread = max(-self.heap[0][0] if self.heap else 0.0, self.likeliest_dropped)
        return heapq.nlargest(top, self.words.values())[-1] >= unread

    def extend(self, n: int) -> None:
        """Read the n likeliest beginnings: each may end there, or go on with any token."""
        some = [heapq.heappop(self.heap) for _ in range(min(n, len(self.heap)))]
        rows = self._next([path for _, path in some])
        for (negative, path), row in zip(some, rows, strict=True):
            self.read += 1
            end = -negative * float(row[self.ends].sum())
            text = b"".join(map(self.tokenizer.token_bytes, path)).decode(errors="replace")
            blank = not text.strip()
            # Other tokens may spell the same word; only those that the text would have count.
            if not blank and self.tokenizer.encode(text) == [*path]:
                self.words[path] = end
            if len(path) < self.longest:
                self._push(path, -negative * row, ~self.ends)

    def _push(self, path: _Path, probabilities: Tensor, allowed: Tensor) -> None:
        """Keep the beginnings that a token makes of this one: (V,) probabilities, (V,) allowed."""
        indices = allowed.nonzero()[:, 0]
        values = probabilities[indices]
        best = values.topk(min(_KEPT, len(values)))
        if len(values) > _KEPT:
            self.likeliest_dropped = max(self.likeliest_dropped, float(best.values[-1]))
        for value, index in zip(best.values.tolist(), indices[best.indices].tolist(), strict=True):
            heapq.heappush(self.heap, (-value, (*path, index)))

    def _next(self, paths: Sequence[_Path]) -> Tensor:
        """Return the probabilities of the token after each path: (n, V) float64."""
        length = max(map(len, paths))
        ids = torch.tensor(
            [[*self.context, *path, *[0] * (length - len(path))] for path in paths],
            device=self.model.device,
        )  # (n, T), shorter ones padded at their end
        last = torch.tensor([len(self.context) + len(path) - 1 for path in paths])
        with torch.inference_mode():
            hidden = self.model.hidden(ids)[torch.arange(len(paths)), last]  # (n, C)
            return precise(self.model.head(hidden)).double().softmax(dim=-1).cpu()

    def result(self, top: int) -> Cloze:
        """Return the words found, and bounds on the entropy over all."""
        ranked = sorted(self.words.items(), key=lambda item: -item[1])
        total = list(accumulate(probability for _, probability in ranked))
        shown = tuple(
            NextWord(
                b"".join(map(self.tokenizer.token_bytes, path)).decode(errors="replace").strip(),
                probability,
                so_far,
                len(path),
            )
            for (path, probability), so_far in zip(ranked[:top], total[:top], strict=True)
        )
        found = total[-1] if total else 0.0
        rest = max(0.0, 1.0 - found)
        known = sum(map(_term, self.words.values()))
        choices = self.longest * math.log2(self.model.config.n_vocab + 1)  # bits, of one word
        return Cloze(
            words=shown,
            complete=self.is_certain(top),
            found=found,
            read=self.read,
            entropy_at_least=known + _term(rest),
            entropy_at_most=known + _term(rest) + rest * choices,
            longest=self.longest,
        )


def _term(probability: float) -> float:
    """Return -p log2 p."""
    return -probability * math.log2(probability) if probability > 0 else 0.0


def _ends_words(text: str) -> bool:
    """Whether a token's text begins with punctuation that ends a word."""
    return is_punctuation(text[0]) and text[0] not in _INSIDE if text else False
