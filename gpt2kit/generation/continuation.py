"""Token sequences being continued: a batch of rows, each as it would be alone.

This is the loop of generation, one step at a time: read what is new, choose a token. It knows ids only; generate.py gives it
prompts and makes text of what comes, speculate.py proposes tokens where several a step are wanted.

    B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gpt2kit.engine.decoder import Decoder
from gpt2kit.errors import ConfigError, ContextLengthError, Gpt2KitWarning, TokenizerError
from gpt2kit.generation.prompts import read_prompts, refill
from gpt2kit.generation.sampling import Sampling, full_distribution, sample, seen_tokens
from gpt2kit.generation.speculate import Checked, Drafter, Proposal, keep_or_replace
from gpt2kit.model import GPT2, precise

Overflow = Literal["slide", "stop", "error"]


class Continuation:
    """A batch of token sequences being continued: each row as it would be alone, whatever the others do.

    Each `step` reads the tokens chosen before and chooses one for every row that is still running; where a drafter proposes what
    may follow, it reads that too, and chooses as many tokens as hold (see speculate.py) and one more. Past the model's n_ctx
    positions, `overflow` decides: `slide` re-reads the last half of the window from position 0, for learned positions cannot be
    shifted inside a cache; `stop` ends the row; `error` raises ContextLengthError at once if prompt and max_tokens do not fit.
    `logprobs` are given only where they were asked for at the beginning.
    """

    def __init__(
        self,
        model: GPT2,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        overflow: Overflow = "slide",
        n_vocab: int | None = None,
        drafter: Drafter | None = None,
        logprobs: bool = False,
        compile: bool = False,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.n_vocab = (
            n_vocab or model.config.n_vocab
        )  # ids from here on are padding of the matrix, not tokens
        self.history = [
            self._fit(list(prompt), max_tokens, overflow) for prompt in prompts
        ]  # what each row's future depends on
        self.rows = list(range(len(prompts)))  # the rows still running, in the order of the cache
        self.decoder = Decoder(model, compile=compile)
        self.checked: list[
            Checked | None
        ] = []  # of each running row: what the last step made of its proposal, if it had one
        self._logits: list[
            Tensor
        ] = []  # (tokens of the last step, V) of each running row: what its tokens were chosen from
        self._generators = list(generators)
        self._slides = overflow == "slide"
        self._with_logprobs = logprobs
        padding = model.config.n_vocab - self.n_vocab
        self._most_likely = (
            0 if logprobs or not sampling.most_likely else sampling.most_likely + padding
        )
        self._drafter = drafter
        longest, ahead = max(map(len, self.history)), drafter.most if drafter else 0
        self._cache = self.decoder.new_cache(len(prompts), longest + max_tokens + ahead)

    def step(self) -> list[list[int]]:
        """Choose the next token of every running row, with a drafter perhaps several, and return them in the order of `rows`."""
        with torch.inference_mode():
            if not any(self._cache.lengths):
                logits = self._read_prompts()  # (running rows, V)
            else:
                self._make_room()
                if self._drafter:
                    return self._step_ahead(self._drafter)
                logits = self._read()
            self._logits = list(logits[:, None]) if self._with_logprobs else []
            self.checked = [None] * len(self.rows)
            with self.decoder.quiet():
                return [[token] for token in self._choose(self.rows, logits)]

    def logprobs(self) -> list[list[float]]:
        """Return the natural logarithms of the probabilities that the model itself gave to the tokens of the last step."""
        found = []
        with self.decoder.quiet():
            for row, logits in zip(self.rows, self._logits, strict=True):
                chosen = torch.tensor(self.history[row][-len(logits) :], device=logits.device)[
                    :, None
                ]
                logits = precise(logits)
                found.append((logits.gather(1, chosen)[:, 0] - logits.logsumexp(dim=-1)).tolist())
        return found

    def is_full(self, row: int) -> bool:
        """Whether a row has as many tokens as the model has positions, and must not slide."""
        return not self._slides and len(self.history[row]) >= self.model.config.n_ctx

    def end(self, rows: Sequence[int]) -> None:
        """Stop continuing these rows; the others no longer pay for them."""
        kept = [place for place, row in enumerate(self.rows) if row not in rows]
        if len(kept) < len(self.rows):
            self._keep(kept)

    def _keep(self, places: Sequence[int]) -> None:
        if places:
            self._cache.keep(places)
            if self._drafter:
                self._drafter.keep(places)
        self.rows = [self.rows[place] for place in places]

    def _fit(self, prompt: list[int], max_tokens: int, overflow: Overflow) -> list[int]:
        """Return the prompt, or what fits of its end."""
        n_ctx, n_vocab = self.model.config.n_ctx, self.model.config.n_vocab
        if not prompt:
            raise ConfigError("a prompt has no tokens; there must be one at least to go on from")
        if not all(0 <= token < n_vocab for token in prompt):
            wrong = next(token for token in prompt if not 0 <= token < n_vocab)
            raise TokenizerError(f"id {wrong} is not in the model's vocabulary of {n_vocab:,}")
        needed = len(prompt) + (max_tokens if overflow == "error" else 0)
        if needed > n_ctx and overflow != "slide":
            what = f"{len(prompt):,} tokens of prompt" + (
                f" and {max_tokens:,} new ones" if overflow == "error" else ""
            )
            raise ContextLengthError(
                f"{what}, but the model reads at most {n_ctx:,}; shorten them or use --overflow slide",
                requested=needed,
                limit=n_ctx,
            )
        if len(prompt) > n_ctx:
            message = f"the prompt has {len(prompt):,} tokens and the model reads {n_ctx:,}: the first {len(prompt) - n_ctx:,} are left out"
            warnings.warn(message, Gpt2KitWarning, stacklevel=2)
        return prompt[-n_ctx:]

    def _read_prompts(self) -> Tensor:
        prompts = [self.history[row] for row in self.rows]
        return read_prompts(self.decoder, prompts, self._cache, range(len(prompts)))[
            :, : self.n_vocab
        ]

    def _read(self) -> Tensor:
        """Read the tokens of the last step."""
        logits = self.decoder.read(
            [self.history[row][-1:] for row in self.rows],
            self._cache,
            most_likely=self._most_likely,
        )
        return logits if logits.shape[1] == self.n_vocab else logits[:, : self.n_vocab]

    def _make_room(self) -> None:
        """Where a row's window is full, re-read its last half from position 0, all but the newest token."""
        n_ctx = self.model.config.n_ctx
        for place, row in enumerate(self.rows):
            if self._cache.lengths[place] < n_ctx:
                continue
            self.history[row] = self.history[row][-max(1, n_ctx // 2) :]
            refill(self.decoder, self._cache, {place: self.history[row][:-1]})

    def _step_ahead(self, drafter: Drafter) -> list[list[int]]:
        """Read the newest token of every row and a proposal of what follows, and choose tokens as far as the proposal holds."""
        last = self.model.config.n_ctx if self._slides else self.model.config.n_ctx - 1
        histories = [self.history[row] for row in self.rows]
        lengths = [len(history) for history in histories]
        generators = [self._generators[row] for row in self.rows]
        proposals = drafter.propose(histories, [last - length for length in lengths], generators)
        ids = [
            [history[-1], *proposal.tokens]
            for history, proposal in zip(histories, proposals, strict=True)
        ]
        logits = [
            found[:, : self.n_vocab] for found in self.decoder.read_each(ids, self._cache)
        ]  # (T, V) for each row
        with self.decoder.quiet():
            self._check(proposals, logits)
        new = [history[length:] for history, length in zip(histories, lengths, strict=True)]
        self._cache.truncate([len(history) - 1 for history in histories])
        self._logits = [found[: len(tokens)] for found, tokens in zip(logits, new, strict=True)]
        checked = [
            Checked(len(proposal.tokens), len(tokens) - 1)
            for proposal, tokens in zip(proposals, new, strict=True)
        ]
        drafter.learn(checked)
        self.checked = list(checked)
        return new

    def _check(self, proposals: Sequence[Proposal], logits: Sequence[Tensor]) -> None:
        """Choose tokens for every row as far as its proposal holds, and one more, given the logits (T, V) along it."""
        places = list(range(len(self.rows)))  # of the rows whose proposals have held so far
        for i in range(max(map(len, logits))):
            compared = [
                place
                for place in places
                if proposals[place].drawn_from is None or i == len(proposals[place].tokens)
            ]
            drawn = [place for place in places if place not in compared]
            if compared:
                self._choose(
                    [self.rows[place] for place in compared],
                    torch.stack([logits[place][i] for place in compared]),
                )
            if drawn:
                here = torch.stack([logits[place][i] for place in drawn])  # (rows, V)
                self._choose(
                    [self.rows[place] for place in drawn],
                    here,
                    [proposals[place].at(i) for place in drawn],
                )
            places = [
                place
                for place in places
                if proposals[place].tokens[i : i + 1] == self.history[self.rows[place]][-1:]
            ]

    def _choose(
        self, rows: Sequence[int], logits: Tensor, drawn: Sequence[tuple[int, Tensor]] | None = None
    ) -> list[int]:
        """Choose one token for each of these rows, given its logits (len(rows), V), and write it down.

        Where a drafter has drawn a token for each already, `drawn` gives them with the distributions (V,) they come from.
        """
        seen = seen_tokens([self.history[row] for row in rows], logits, self.sampling)
        generators = [self._generators[row] for row in rows]
        if drawn is None:
            tokens = sample(logits, self.sampling, generators, seen)
        else:
            p = full_distribution(logits, self.sampling, seen)  # (len(rows), V)
            q = torch.stack([distribution for _, distribution in drawn]).to(p)
            tokens = keep_or_replace(p, q, [token for token, _ in drawn], generators)
        for row, token in zip(rows, tokens, strict=True):
            self.history[row].append(token)
        return tokens
