"""Tokens, then text, one piece at a time.

`generate_tokens` speaks ids only; `stream` turns what it makes into text and stops at words; `complete` and `generate` collect
what `stream` gives. Nothing here reads files or prints.

    B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.decoder import Decoder
from gpt2kit.errors import ConfigError, ContextLengthError, Gpt2KitWarning, TokenizerError
from gpt2kit.model import GPT2
from gpt2kit.sampling import Sampling, sample, sample_generator
from gpt2kit.tokenizers import StreamDecoder, Tokenizer

Overflow = Literal["slide", "stop", "error"]
FinishReason = Literal["end_of_text", "stop_text", "max_tokens", "context"]

# --- tokens ----------------------------------------------------------------------------------------------------------


class Continuation:
    """A batch of token sequences being continued: each row as it would be alone, whatever the others do.

    Each `step` chooses one token for every row that is still running, and reads the ones chosen before. Past the model's n_ctx
    positions, `overflow` decides: `slide` re-reads the last half of the window from position 0, for learned positions cannot be
    shifted inside a cache; `stop` ends the row; `error` raises ContextLengthError at once if prompt and max_tokens do not fit.
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
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.n_vocab = n_vocab or model.config.n_vocab  # ids from here on are padding of the matrix, not tokens
        self.history = [self._fit(list(prompt), max_tokens, overflow) for prompt in prompts]  # what each row's future depends on
        self.rows = list(range(len(prompts)))  # the rows still running, in the order of the cache
        self.logits: Tensor  # (running rows, V), of the step before the next token
        self.decoder = Decoder(model)
        self._generators = list(generators)
        self._slides = overflow == "slide"
        longest = max(map(len, self.history))
        self._cache = model.new_cache(len(prompts), capacity=longest + max_tokens)
        self._unread: list[int] = []
        self._seen: Tensor | None = None

    def step(self) -> list[int]:
        """Choose the next token of every running row and return them in the order of `rows`."""
        with torch.inference_mode():
            if self._unread:
                self._read()
            else:
                self._read_prompts()
            with self.decoder.quiet():
                chosen = sample(self.logits, self.sampling, [self._generators[row] for row in self.rows], self._seen_tokens()).tolist()
        for row, token in zip(self.rows, chosen, strict=True):
            self.history[row].append(token)
        self._unread = chosen
        return chosen

    def logprobs(self) -> list[float]:
        """Return the natural logarithm of the probability that the model itself gave to each token of the last step."""
        chosen = torch.tensor(self._unread, device=self.logits.device)[:, None]
        logits = self.logits.float()
        with self.decoder.quiet():
            return (logits.gather(1, chosen)[:, 0] - logits.logsumexp(dim=-1)).tolist()

    def is_full(self, row: int) -> bool:
        """Whether a row has as many tokens as the model has positions, and must not slide."""
        return not self._slides and len(self.history[row]) >= self.model.config.n_ctx

    def end(self, rows: Sequence[int]) -> None:
        """Stop continuing these rows; the others no longer pay for them."""
        kept = [place for place, row in enumerate(self.rows) if row not in rows]
        if len(kept) == len(self.rows):
            return
        if kept:
            self._cache.keep(kept)
        self.rows = [self.rows[place] for place in kept]
        self._unread = [self._unread[place] for place in kept] if self._unread else []

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
            what = f"{len(prompt):,} tokens of prompt" + (f" and {max_tokens:,} new ones" if overflow == "error" else "")
            raise ContextLengthError(
                f"{what}, but the model reads at most {n_ctx:,}; shorten them or use --overflow slide", requested=needed, limit=n_ctx
            )
        if len(prompt) > n_ctx:
            message = f"the prompt has {len(prompt):,} tokens and the model reads {n_ctx:,}: the first {len(prompt) - n_ctx:,} are left out"
            warnings.warn(message, Gpt2KitWarning, stacklevel=2)
        return prompt[-n_ctx:]

    def _read_prompts(self) -> None:
        """Read every different prompt once, those of equal length together, so that nothing is padded."""
        by_length: dict[int, dict[tuple[int, ...], list[int]]] = {}  # length -> prompt -> places in the batch
        for place, row in enumerate(self.rows):
            prompt = self.history[row]
            by_length.setdefault(len(prompt), {}).setdefault(tuple(prompt), []).append(place)
        device = self.model.device
        precise = torch.promote_types(self.model.dtype, torch.float32)  # as the decoder gives them
        self.logits = torch.empty((len(self.rows), self.n_vocab), dtype=precise, device=device)
        for length, group in by_length.items():
            ids = torch.tensor(list(group), device=device)  # (different prompts, T)
            all_differ = len(group) == len(self.rows)
            cache = self._cache if all_differ else self.model.new_cache(len(group), capacity=length)
            logits = self._logits(ids, cache)
            for number, places in enumerate(group.values()):
                self.logits[places] = logits[number]
                if not all_differ:
                    self._cache.fill(places, cache, number)

    def _read(self) -> None:
        """Read the tokens of the last step, making room first where a row's window is full."""
        n_ctx = self.model.config.n_ctx
        for place, row in enumerate(self.rows):
            if self._cache.lengths[place] == n_ctx:
                self._slide(place, row)
        ids = torch.tensor(self._unread, device=self.model.device)[:, None]  # (running rows, 1)
        self.logits = self._logits(ids, self._cache)

    def _slide(self, place: int, row: int) -> None:
        """Re-read the last half window of a row from position 0, all but its newest token."""
        keep = max(1, self.model.config.n_ctx // 2)
        self.history[row] = self.history[row][-keep:]
        tail = self.history[row][:-1]
        if not tail:  # a model of one or two positions
            lengths = list(self._cache.lengths)
            lengths[place] = 0
            self._cache.truncate(lengths)
            return
        cache = self.model.new_cache(1, capacity=keep)
        self.decoder.read(torch.tensor([tail], device=self.model.device), cache)
        self._cache.fill([place], cache, 0)

    def _logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        return self.decoder.read(ids, cache)[:, : self.n_vocab]  # (B, T) -> (B, V)

    def _seen_tokens(self) -> Tensor | None:
        """Return which tokens each running row has had in its window, (B, V), where the repetition penalty asks for it."""
        if self.sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(self.logits.shape, dtype=torch.bool)
        for place, row in enumerate(self.rows):
            seen[place, [token for token in self.history[row] if token < self.n_vocab]] = True
        return seen.to(self.logits.device)


def generate_tokens(
    model: GPT2,
    ids: Tensor | Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    stop_id: int | None = None,
    seed: int | None = None,
    overflow: Overflow = "slide",
) -> Iterator[list[int]]:
    """Continue (B, T) ids, or prompts of different lengths, and yield one list of B tokens a step.

    Ends after max_tokens steps, or when every row has produced `stop_id`; a row that has ended repeats it. Row b draws from the
    stream of (seed, b). For `overflow` see Continuation; with `stop`, all rows end when the first is full.
    """
    prompts = ids.tolist() if isinstance(ids, Tensor) else ids
    if not prompts or not all(isinstance(prompt, Sequence) for prompt in prompts):
        raise ConfigError("expected (B, T) ids or a list of prompts, each a list of ids")
    request = Request(max_tokens=max_tokens, overflow=overflow, seed=seed)
    generators = [sample_generator(request.drawn_seed, row) for row in range(len(prompts))]
    state = Continuation(model, prompts, max_tokens=max_tokens, sampling=sampling or Sampling(), generators=generators, overflow=overflow)
    for _ in range(max_tokens):
        if not state.rows or any(state.is_full(row) for row in state.rows):
            return
        chosen = dict(zip(state.rows, state.step(), strict=True))
        yield [chosen.get(row, stop_id) for row in range(len(prompts))]  # type: ignore[misc]
        if stop_id is not None:
            state.end([row for row, token in chosen.items() if token == stop_id])


# --- text ------------------------------------------------------------------------------------------------------------


class Options(TypedDict, total=False):
    """What `stream`, `complete` and `generate` take by keyword; meanings and defaults are Request's and Sampling's."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str] | None
    seed: int | None
    num_samples: int
    first_sample: int
    overflow: Overflow
    special: bool
    ignore_eos: bool
    logprobs: bool


@dataclass(frozen=True, kw_only=True)
class Request(Sampling):
    """One wish for text, checked once. Raises ConfigError for a value that cannot be."""

    max_tokens: int = 100  # new tokens, at most
    stop: str | Sequence[str] | None = ()  # texts to stop before; they are not part of the result
    seed: int | None = None  # the same seed gives the same text; None draws one
    num_samples: int = 1  # continuations of each prompt
    first_sample: int = 0  # number of the first of them; each sample is what it is whatever the others are
    overflow: Overflow = "slide"  # what to do when the text outgrows the model's window: see Continuation
    special: bool = False  # read <|endoftext|> in a prompt as the marker instead of as text
    ignore_eos: bool = False  # go on after <|endoftext|>
    logprobs: bool = False  # also give the log-probability of each token
    drawn_seed: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, lowest, most in (("max_tokens", 0, 10**9), ("num_samples", 1, 10**5), ("first_sample", 0, 10**9)):
            value = getattr(self, name)
            if type(value) is not int or not lowest <= value <= most:
                raise ConfigError(f"{name} is {value!r}, expected a whole number from {lowest} to {most:,}")
        if self.overflow not in ("slide", "stop", "error"):
            raise ConfigError(f"overflow is {self.overflow!r}, expected slide, stop or error")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise ConfigError("a stop text is empty; expected one character at least")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 2**64):
            raise ConfigError(f"seed is {self.seed!r}, expected a whole number from 0 to 2^64 - 1")
        object.__setattr__(self, "stop", stops)
        object.__setattr__(self, "drawn_seed", draw_seed() if self.seed is None else self.seed)


def draw_seed() -> int:
    """Return a seed nobody chose, short enough to be typed again."""
    return secrets.randbelow(2**32)


@dataclass(frozen=True)
class Piece:
    """What one more token adds to one row's text; the text is empty while a character or a stop text may be incomplete."""

    text: str
    token: int
    row: int  # prompt number * num_samples + sample number
    logprob: float | None = None
    finish_reason: FinishReason | None = None  # in a row's last piece: why it ended


@dataclass(frozen=True)
class Completion:
    """One finished continuation."""

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: FinishReason
    seed: int
    sample: int
    logprobs: list[float] | None = None


def stream(model: GPT2, tokenizer: Tokenizer | None, prompt: str | Sequence[str], **options: Unpack[Options]) -> Iterator[Piece]:
    """Continue a prompt, or several at once, and yield each piece of text as soon as it is certain.

    The pieces of one row, joined, are its whole continuation; an empty prompt starts a new text. Several prompts and samples
    share the work, and each comes out as it would alone. Options are those of Request and Sampling: max_tokens, temperature,
    top_k, top_p, min_p, repetition_penalty, stop, seed, num_samples, overflow, special, ignore_eos, logprobs. What cannot be is
    refused at the call, before the first piece is asked for.
    """
    request = Request(**options)
    if tokenizer is None:
        raise TokenizerError("the model has no vocabulary beside its weights; put vocab.json and merges.txt there, or use generate_tokens")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    encoded = [ids for text in prompts for ids in [_encode(tokenizer, text, request)] * request.num_samples]
    if not encoded or request.max_tokens == 0:
        return iter(())
    state = Continuation(
        model,
        encoded,
        max_tokens=request.max_tokens,
        sampling=request,
        generators=[sample_generator(request.drawn_seed, request.first_sample + row % request.num_samples) for row in range(len(encoded))],
        overflow=request.overflow,
        n_vocab=min(tokenizer.n_vocab, model.config.n_vocab),
    )
    return _pieces(state, [_Writer(row, tokenizer, request) for row in range(len(encoded))], request)


def _pieces(state: Continuation, writers: Sequence[_Writer], request: Request) -> Iterator[Piece]:
    """Take steps until every row has ended, and give each row's new token to its writer."""
    state.end([row for row in state.rows if state.is_full(row)])
    while state.rows:
        tokens = state.step()
        logprobs = state.logprobs() if request.logprobs else [None] * len(tokens)
        new = zip(state.rows, tokens, logprobs, strict=True)
        pieces = [writers[row].write(token, logprob, full=state.is_full(row)) for row, token, logprob in new]
        yield from pieces
        state.end([piece.row for piece in pieces if piece.finish_reason])


def complete(model: GPT2, tokenizer: Tokenizer | None, prompt: str | Sequence[str], **options: Unpack[Options]) -> list[Completion]:
    """Continue a prompt, or several, and return every sample of the first, then of the second, and so on; options as in `stream`."""
    request = Request(**options)
    options["seed"] = request.drawn_seed
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    return collect(stream(model, tokenizer, prompts, **options), prompts, request)


def collect(pieces: Iterable[Piece], prompts: Sequence[str], request: Request) -> list[Completion]:
    """Put the pieces that `stream` gave for these prompts together, row by row."""
    rows: list[list[Piece]] = [[] for _ in range(len(prompts) * request.num_samples)]
    for piece in pieces:
        rows[piece.row].append(piece)
    nothing: FinishReason = "max_tokens" if request.max_tokens == 0 else "context"  # why a row has no piece at all
    return [
        Completion(
            prompt=prompts[row // request.num_samples],
            text="".join(piece.text for piece in own),
            tokens=[piece.token for piece in own],
            finish_reason=own[-1].finish_reason or nothing if own else nothing,
            seed=request.drawn_seed,
            sample=request.first_sample + row % request.num_samples,
            logprobs=[piece.logprob for piece in own if piece.logprob is not None] if request.logprobs else None,
        )
        for row, own in enumerate(rows)
    ]


def generate(model: GPT2, tokenizer: Tokenizer | None, prompt: str, **options: Unpack[Options]) -> str:
    """Return the continuation of a prompt, without the prompt; options as in `stream`."""
    if options.get("num_samples", 1) != 1:
        raise ConfigError("generate returns one text; for several samples use complete")
    return "".join(piece.text for piece in stream(model, tokenizer, prompt, **options))


def _encode(tokenizer: Tokenizer, text: str, request: Request) -> list[int]:
    ids = tokenizer.encode(text, special=request.special)
    if ids:
        return ids
    if tokenizer.stop_id is None:
        raise ConfigError("the prompt is empty, and the vocabulary has no <|endoftext|> to start a new text from; give a prompt")
    return [tokenizer.stop_id]


class _Writer:
    """One row's way from tokens to text: whole characters only, nothing of a stop text, and why it ended."""

    def __init__(self, row: int, tokenizer: Tokenizer, request: Request) -> None:
        self._row = row
        self._stop_id = None if request.ignore_eos else tokenizer.stop_id
        self._decoder = StreamDecoder(tokenizer.token_bytes)
        self._stop = StopTexts(request.stop or ())
        self._left = request.max_tokens

    def write(self, token: int, logprob: float | None, *, full: bool) -> Piece:
        self._left -= 1
        reason: FinishReason | None = None
        if token == self._stop_id:
            text, reason = self._stop.feed(self._decoder.finish()), "end_of_text"
        else:
            text = self._stop.feed(self._decoder.feed(token))
            reason = "max_tokens" if self._left == 0 else "context" if full else None
            if reason and not self._stop.found:
                text += self._stop.feed(self._decoder.finish())
        if self._stop.found:
            reason = "stop_text"
        elif reason:
            text += self._stop.finish()
        return Piece(text, token, self._row, logprob, reason)


class StopTexts:
    """Let text through up to the first of some stop texts, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Return what is certain not to belong to a stop text; sets `found` once one is complete, and gives nothing after."""
        if self.found:
            return ""
        text = self._held + text
        starts = [place for place in map(text.find, self._stops) if place >= 0]
        self.found = bool(starts)
        # The longest end of the text with which a stop text begins may still become that stop text.
        held = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        end = min(starts) if starts else len(text) - held
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Return what was held back and did not become a stop text."""
        held, self._held = self._held, ""
        return "" if self.found else held
