"""Who proposes tokens ahead, so that a model can check several at once: a smaller model, or the text itself.

Reading eight tokens costs a large model little more than reading one, for its weights are what takes time. So someone quick
proposes what may come next, the model reads all of it in one step, and keeps what it would have written itself. A proposal can
cost time but changes no text:

- What is not drawn at random (every proposal of `Lookup`, and of a model at temperature 0) is compared: the model chooses each
  token as it would without, and goes on as long as the proposal says the same. The text is the same, for the same seed.
- What was drawn from a model's distribution q, where the large one has p, is kept with probability min(1, p / q), and else replaced
  by a draw from what p has more than q, max(0, p - q): each token then has exactly the distribution p (Leviathan et al. 2023). The
  text for a seed is another one than without, just as likely.

"The same" is as exact as the logits: the native step gives a token the same ones, bit for bit, read alone or among several;
with torch they differ by rounding, which decides between tokens only where two are equally likely up to that.

    B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpt2kit.engine.decoder import MOST_TOKENS, Decoder
from gpt2kit.errors import ConfigError
from gpt2kit.generation.prompts import common_length, refill
from gpt2kit.generation.sampling import (
    Sampling,
    draw,
    full_distribution,
    sample,
    seen_tokens,
    uniform,
)
from gpt2kit.model import GPT2

Draft = GPT2 | Literal["lookup"]

DRAFT_TOKENS = 7  # proposed at once unless told; with the newest token the model reads eight, for little more than one
MOST_DRAFT_TOKENS = 64

# Lookup takes the longest end of the text that has occurred before, of so many tokens.
LONGEST, SHORTEST = 8, 2


class Proposal(NamedTuple):
    """What may come next in one row."""

    tokens: list[int]
    drawn_from: list[Tensor] | None = (
        None  # the distribution (V,) of each; None where nothing was drawn
    )

    def at(self, i: int) -> tuple[int, Tensor]:
        """Return a drawn token and the distribution (V,) that it comes from."""
        assert self.drawn_from is not None
        return self.tokens[i], self.drawn_from[i]


class Checked(NamedTuple):
    """What became of a row's proposal in one step."""

    proposed: int
    accepted: int


class Drafter:
    """Proposes tokens for a batch of rows, for each as if it were alone; fewer where the last ones were not taken."""

    def __init__(self, batch_size: int, most: int) -> None:
        self.most = most  # tokens proposed at once
        self._ahead = [most] * batch_size

    def propose(
        self,
        histories: Sequence[list[int]],
        room: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> list[Proposal]:
        """Return a proposal for each row, given all of its tokens, of at most room[b] tokens and perhaps none."""
        counts = [max(0, min(ahead, fits)) for ahead, fits in zip(self._ahead, room, strict=True)]
        return self._propose(histories, counts, generators)

    def learn(self, checked: Sequence[Checked]) -> None:
        """Propose twice as much where everything was taken, and elsewhere one more than what was."""
        for place, (proposed, accepted) in enumerate(checked):
            if proposed:
                self._ahead[place] = min(
                    self.most, 2 * self._ahead[place] if accepted == proposed else accepted + 1
                )

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self._ahead = [self._ahead[place] for place in places]

    def _propose(
        self,
        histories: Sequence[list[int]],
        counts: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> list[Proposal]:
        raise NotImplementedError


class Lookup(Drafter):
    """Proposes what followed the last time that the text had the words it ends with."""

    def _propose(
        self,
        histories: Sequence[list[int]],
        counts: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> list[Proposal]:
        return [
            Proposal(look_up(history, count))
            for history, count in zip(histories, counts, strict=True)
        ]


def look_up(history: Sequence[int], n: int) -> list[int]:
    """Return the n tokens that followed the latest earlier occurrence of the longest possible end of the history; [] for none."""
    numbers = array("i", history)
    text, width = numbers.tobytes(), numbers.itemsize
    for size in range(min(LONGEST, len(history) - 1), SHORTEST - 1, -1):
        pattern = text[-size * width :]
        place = text.rfind(pattern, 0, len(text) - width)
        while place % width and place >= 0:  # bytes of two tokens
            place = text.rfind(pattern, 0, place + len(pattern) - 1)
        if place >= 0:
            found = list(history[place // width + size :])
            return [
                found[i % len(found)] for i in range(n)
            ]  # where the end overlaps with its occurrence, it repeats itself
    return []


class SmallModel(Drafter):
    """Proposes what a smaller model of the same vocabulary would write, with the same options of sampling."""

    def __init__(
        self,
        model: GPT2,
        batch_size: int,
        most: int,
        *,
        sampling: Sampling,
        n_vocab: int,
        capacity: int,
    ) -> None:
        self._n_ctx = model.config.n_ctx
        self._stride = max(1, self._n_ctx // 2)
        super().__init__(batch_size, min(most, max(1, self._n_ctx - self._stride)))
        self._decoder = Decoder(model)
        self._cache = model.new_cache(batch_size, capacity=capacity)
        self._read: list[list[int]] = [
            [] for _ in range(batch_size)
        ]  # what each row of the cache holds
        self._sampling = sampling
        self._n_vocab = n_vocab

    def keep(self, places: Sequence[int]) -> None:
        super().keep(places)
        self._cache.keep(places)
        self._read = [self._read[place] for place in places]

    def _propose(
        self,
        histories: Sequence[list[int]],
        counts: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> list[Proposal]:
        unread = self._catch_up(histories, counts)
        tokens: list[list[int]] = [[] for _ in counts]
        drawn_from: list[list[Tensor]] = [[] for _ in counts]
        for i in range(max(counts)):
            places = [place for place, count in enumerate(counts) if count > i]
            found = self._decoder.read_each(unread, self._cache)
            for read, new in zip(self._read, unread, strict=True):
                read += new
            with self._decoder.quiet():
                logits = torch.stack(
                    [found[place][-1, : self._n_vocab] for place in places]
                )  # (places, V)
                seen = seen_tokens(
                    [histories[place] + tokens[place] for place in places], logits, self._sampling
                )
                theirs = [generators[place] for place in places]
                if self._sampling.temperature == 0:
                    chosen = sample(logits, self._sampling, theirs, seen)
                else:
                    probabilities = full_distribution(logits, self._sampling, seen)
                    chosen = draw(probabilities, theirs)
                    for place, row in zip(places, probabilities, strict=True):
                        drawn_from[place].append(row)
            unread = [[] for _ in counts]
            for place, token in zip(places, chosen, strict=True):
                tokens[place].append(token)
                unread[place] = [token] if counts[place] > i + 1 else []
        return [Proposal(some, rows or None) for some, rows in zip(tokens, drawn_from, strict=True)]

    def _catch_up(self, histories: Sequence[list[int]], counts: Sequence[int]) -> list[list[int]]:
        """Bring the cache up to where the texts are now, all but a few of their last tokens, and return those.

        The model sees the end of a text that is too long for it. That end begins at a multiple of half its window, so that it is
        seldom read again.
        """
        missing: list[list[int]] = []
        lengths = list(self._cache.lengths)
        refills: dict[int, list[int]] = {}
        for place, history in enumerate(histories):
            if not counts[place]:
                missing.append([])
                continue
            excess = len(history) + self.most - 1 - self._n_ctx
            window = history[max(0, -(-excess // self._stride) * self._stride) :]
            lengths[place] = min(common_length(self._read[place], window), len(window) - 1)
            if len(window) - lengths[place] > MOST_TOKENS:
                refills[place] = window[:-1]
                lengths[place] = 0
            self._read[place] = list(refills.get(place, window[: lengths[place]]))
            missing.append(window[len(self._read[place]) :])
        self._cache.truncate(lengths)
        refill(self._decoder, self._cache, refills)
        return missing


def drafter_for(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    draft: Draft,
    draft_tokens: int,
    *,
    max_tokens: int,
    sampling: Sampling,
    n_vocab: int,
) -> Drafter:
    """Return who proposes up to draft_tokens at once for continuations of these prompts.

    Only the first n_vocab ids are proposed, those of the text's vocabulary: either model may have more rows, as padding. Raises
    ConfigError for a model with fewer.
    """
    if draft == "lookup":
        return Lookup(len(prompts), draft_tokens)
    if draft.config.n_vocab < n_vocab:
        raise ConfigError(
            f"the draft model has a vocabulary of {draft.config.n_vocab:,} tokens, expected the {n_vocab:,} of the model; "
            "use one of its family"
        )
    capacity = max(map(len, prompts)) + max_tokens + draft_tokens
    return SmallModel(
        draft, len(prompts), draft_tokens, sampling=sampling, n_vocab=n_vocab, capacity=capacity
    )


def keep_or_replace(
    p: Tensor, q: Tensor, tokens: Sequence[int], generators: Sequence[torch.Generator]
) -> list[int]:
    """Return the tokens, drawn from the distributions q (B, V), or others in their place, so that they are draws from p (B, V)."""
    proposed = torch.tensor(tokens, device=p.device)[:, None]  # (B, 1)
    ratios = (p.gather(1, proposed) / q.gather(1, proposed))[
        :, 0
    ].tolist()  # what was drawn has q > 0
    kept = [point < ratio for point, ratio in zip(uniform(generators), ratios, strict=True)]
    rest = (p - q).clamp(min=0)  # (B, V)
    rest = rest.where(
        rest.sum(dim=1, keepdim=True) > 0, p
    )  # where p and q differ by rounding only, nothing may be left
    return [
        token if keep else other
        for token, keep, other in zip(tokens, kept, draw(rest, generators), strict=True)
    ]
