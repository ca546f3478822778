"""Drafts: a smaller model, or the text itself, proposes tokens that the model checks at once.

Reading eight tokens costs a large model little more than reading one, because its weights have to
be fetched from memory either way. So someone quick proposes what may come next, the model reads
all of it in one step, and keeps what it would have written itself. This can cost time, but it
never makes a text worse:

- A proposal that was not drawn at random (from `Lookup`, or from a model at temperature 0) is
  compared: the model chooses each token as it would without a draft, and goes on as long as the
  proposal says the same. The text for a seed stays the same.
- A token drawn from the draft model's distribution q, while the large model has p, is kept with
  probability min(1, p / q), and otherwise replaced by a draw from max(0, p - q). So each token has
  exactly the distribution p (Leviathan et al. 2023). The text for a seed is another one than
  without the draft, and just as likely.

"The same" is as exact as the logits. The native step gives a token the same logits, bit for bit,
alone or among several. With torch they differ by rounding, which matters only where two tokens
are equally likely up to that rounding.

    B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpt2kit.engine.decoder import Decoder
from gpt2kit.errors import ConfigError
from gpt2kit.generation.prompts import refill
from gpt2kit.generation.request import DRAFT_TOKENS
from gpt2kit.generation.row import Row, choose, distributions
from gpt2kit.generation.sampling import draw, uniform
from gpt2kit.generation.slots import common_length
from gpt2kit.model import GPT2

Draft = GPT2 | Literal["lookup"]

# Lookup searches for the last tokens of the text, at most LONGEST and at least SHORTEST of them.
LONGEST, SHORTEST = 8, 2
_FEW = 16  # tokens that a draft reads together with its first proposal


class Proposal(NamedTuple):
    """What may come next in one row."""

    tokens: list[int]
    drawn_from: Sequence[Tensor] = ()  # the distribution (V,) of each token; none if not drawn


class Drafter:
    """Proposes tokens for a batch of rows, for each row as if it were alone.

    How many depends on how well the row's last proposal did.
    """

    def __init__(self, most: int) -> None:
        self.most = most  # tokens proposed at once

    def propose(self, rows: Sequence[Row], room: Sequence[int]) -> list[Proposal]:
        """Return a proposal of at most room[i] tokens, perhaps none, for each row."""
        counts = [
            max(0, min(row.ahead or self.most, self.most, fits))
            for row, fits in zip(rows, room, strict=True)
        ]
        return self._propose(rows, counts)

    def learn(self, rows: Sequence[Row]) -> None:
        """Take note of what became of each row's proposal (`row.checked`).

        Where all of it was accepted, twice as much is proposed next; elsewhere, one token more
        than was accepted.
        """
        for row in rows:
            if row.checked and row.checked.proposed:
                proposed, accepted = row.checked
                doubled = 2 * (row.ahead or self.most)
                row.ahead = min(self.most, doubled if accepted == proposed else accepted + 1)

    def _propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[Proposal]:
        raise NotImplementedError


class Lookup(Drafter):
    """Proposes what followed the last occurrence of the words that the text ends with."""

    def _propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[Proposal]:
        return [
            Proposal(look_up(row.history, count)) for row, count in zip(rows, counts, strict=True)
        ]


def look_up(history: Sequence[int], n: int) -> list[int]:
    """Return the n tokens that followed the same tokens earlier in the text, or none.

    Searches for the longest end of the text that occurs earlier, and takes its latest occurrence.
    If that overlaps with the end, what lies between repeats itself.
    """
    numbers = array("i", history)
    text, width = numbers.tobytes(), numbers.itemsize  # bytes.rfind is far quicker than a loop
    for size in range(min(LONGEST, len(history) - 1), SHORTEST - 1, -1):
        pattern = text[-size * width :]
        start = text.rfind(pattern, 0, len(text) - width)
        while start >= 0 and start % width:  # a match that begins in the middle of a token
            start = text.rfind(pattern, 0, start + len(pattern) - 1)
        if start >= 0:
            found = history[start // width + size :]
            return [found[i % len(found)] for i in range(n)]
    return []


class SmallModel(Drafter):
    """Proposes what a smaller model of the same vocabulary would write, sampled the same way.

    It proposes only for the rows that it was made for.
    It has a cache of its own. A text longer than its window is read from an offset that is a
    multiple of half the window, so that it is seldom read again.
    """

    def __init__(self, model: GPT2, rows: Sequence[Row], most: int, *, n_vocab: int) -> None:
        self._n_ctx = model.config.n_ctx
        self._stride = max(1, self._n_ctx // 2)
        super().__init__(min(most, max(1, self._n_ctx - self._stride)))
        self._decoder = Decoder(model)
        capacity = max(row.longest for row in rows) + most
        self._cache = model.new_cache(len(rows), capacity=capacity)
        self._slots = {row: slot for slot, row in enumerate(rows)}
        self._read: list[list[int]] = [[] for _ in rows]  # the tokens in each slot of the cache
        self._n_vocab = n_vocab

    def _propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[Proposal]:
        drafts = [row.copy() for row in rows]  # the rows with what is proposed
        drawn_from: list[list[Tensor]] = [[] for _ in rows]
        slots = [self._slots[row] for row in rows]
        unread = self._catch_up(rows, counts)
        for i in range(max(counts)):
            going = [b for b, count in enumerate(counts) if count > i]
            found = self._decoder.read_each(unread, self._cache, slots=slots)
            for slot, new in zip(slots, unread, strict=True):
                self._read[slot] += new
            with self._decoder.quiet():
                logits = torch.stack([found[b][-1, : self._n_vocab] for b in going])
                tokens, drawn = _draw([drafts[b] for b in going], logits)
            unread = [[] for _ in rows]
            for b, token, distribution in zip(going, tokens, drawn, strict=True):
                drafts[b].add(token)
                drawn_from[b] += distribution
                if counts[b] > i + 1:
                    unread[b] = [token]
        return [
            Proposal(draft.history[len(row.history) :], own)
            for draft, row, own in zip(drafts, rows, drawn_from, strict=True)
        ]

    def _catch_up(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        """Bring the cache up to the texts, but for a few of their last tokens; return those.

        A row for which nothing is to be proposed stays as it is.
        """
        unread: list[list[int]] = [[] for _ in rows]
        lengths = list(self._cache.lengths)
        refills: dict[int, list[int]] = {}
        for b, row in enumerate(rows):
            if not counts[b]:
                continue
            slot, window = self._slots[row], self._window(row.history)
            known = min(common_length(self._read[slot], window), len(window) - 1)
            if len(window) - known > _FEW:  # read as a prompt is, without logits
                refills[slot] = window[:-1]
                lengths[slot], known = 0, len(window) - 1
            else:
                lengths[slot] = known
            self._read[slot], unread[b] = window[:known], window[known:]
        self._cache.truncate(lengths)
        refill(self._decoder, self._cache, refills)
        return unread

    def _window(self, history: list[int]) -> list[int]:
        """Return the end of a text that the model reads, with room for what it proposes."""
        excess = len(history) + self.most - 1 - self._n_ctx
        strides = -(-excess // self._stride)  # rounded up
        return history[max(0, strides * self._stride) :]


def _draw(rows: Sequence[Row], logits: Tensor) -> tuple[list[int], list[list[Tensor]]]:
    """Choose a token for each row from logits (B, V); return with each the distribution (V,).

    The distributions are lists of one; of none at temperature 0, where nothing is drawn.
    """
    if all(row.request.sampling.temperature == 0 for row in rows):
        return choose(rows, logits), [[] for _ in rows]
    probabilities = distributions(rows, logits)  # (B, V)
    tokens = draw(probabilities, [row.generator for row in rows])
    return tokens, [[distribution] for distribution in probabilities]


def drafter_for(
    rows: Sequence[Row], draft: Draft, draft_tokens: int | None, *, n_vocab: int
) -> Drafter:
    """Return who proposes up to draft_tokens at once for these rows.

    Only the first n_vocab ids are proposed, those of the text's vocabulary: both models may have
    more rows in their embedding, as padding. Raises ConfigError for a model with fewer.
    """
    most = draft_tokens or DRAFT_TOKENS
    if draft == "lookup":
        return Lookup(most)
    if isinstance(draft, str):
        raise ConfigError(f"draft is {draft!r}, expected a model or 'lookup'")
    if draft.config.n_vocab < n_vocab:
        raise ConfigError(
            f"the draft model has a vocabulary of {draft.config.n_vocab:,} tokens, "
            f"expected the {n_vocab:,} of the model; use one of its family"
        )
    return SmallModel(draft, rows, most, n_vocab=n_vocab)


def keep_or_replace(
    p: Tensor, q: Tensor, tokens: Sequence[int], generators: Sequence[torch.Generator]
) -> list[int]:
    """Turn tokens that were drawn from q (B, V) into draws from p (B, V).

    Each token is kept or replaced as the module's docstring says.
    """
    proposed = torch.tensor(tokens, device=p.device)[:, None]  # (B, 1)
    ratios = (p.gather(1, proposed) / q.gather(1, proposed))[:, 0].tolist()  # q > 0: it was drawn
    kept = [point < ratio for point, ratio in zip(uniform(generators), ratios, strict=True)]
    rest = (p - q).clamp(min=0)  # (B, V)
    # If p and q differ by rounding only, nothing may be left to draw from.
    rest = rest.where(rest.sum(dim=1, keepdim=True) > 0, p)  # (B, V)
    replacements = draw(rest, generators)
    return [
        token if keep else other
        for token, keep, other in zip(tokens, kept, replacements, strict=True)
    ]
