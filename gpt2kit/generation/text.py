"""Tokens, then text, one piece at a time.

`generate_tokens` speaks ids only; `stream` turns what it makes into text and stops at words; `complete` and `generate` collect
what `stream` gives. Nothing here reads files or prints.

    B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError, TokenizerError
from gpt2kit.generation.continuation import Continuation, Overflow
from gpt2kit.generation.sampling import Sampling, sample_generator
from gpt2kit.generation.speculate import (
    DRAFT_TOKENS,
    MOST_DRAFT_TOKENS,
    Checked,
    Draft,
    drafter_for,
)
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import StreamDecoder, Tokenizer

FinishReason = Literal["end_of_text", "stop_text", "max_tokens", "context"]

# --- tokens ----------------------------------------------------------------------------------------------------------


def generate_tokens(
    model: GPT2,
    ids: Tensor | Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    stop_id: int | None = None,
    seed: int | None = None,
    overflow: Overflow = "slide",
    draft: Draft | None = None,
    draft_tokens: int = DRAFT_TOKENS,
    compile: bool = False,
) -> Iterator[list[int]]:
    """Continue (B, T) ids, or prompts of different lengths, and yield one list of B tokens a step.

    Ends after max_tokens steps, or when every row has produced `stop_id`; a row that has ended repeats it. Row b draws from the
    stream of (seed, b). For `overflow` see Continuation; with `stop`, all rows end when the first is full. For `draft`, a smaller
    model or "lookup", see speculate.py, for `compile` Decoder.
    """
    prompts = ids.tolist() if isinstance(ids, Tensor) else ids
    if not prompts or not all(isinstance(prompt, Sequence) for prompt in prompts):
        raise ConfigError("expected (B, T) ids or a list of prompts, each a list of ids")
    request = Request(
        max_tokens=max_tokens,
        overflow=overflow,
        seed=seed,
        draft=draft,
        draft_tokens=draft_tokens,
        compile=compile,
    )
    generators = [sample_generator(request.drawn_seed, row) for row in range(len(prompts))]
    state = _begin(
        model, prompts, generators, request, sampling or Sampling(), model.config.n_vocab
    )
    waiting: list[deque[int]] = [
        deque() for _ in prompts
    ]  # chosen and not given yet: with a draft, rows get on at different speeds
    chosen, stopped = [0] * len(prompts), [False] * len(prompts)
    for _ in range(max_tokens):
        while True:
            state.end(
                [
                    row
                    for row in state.rows
                    if stopped[row] or chosen[row] >= max_tokens or state.is_full(row)
                ]
            )
            if all(waiting[row] for row in state.rows):
                break
            for row, tokens in zip(state.rows, state.step(), strict=True):
                stopped[row] = stop_id in tokens
                waiting[row].extend(tokens[: tokens.index(stop_id) + 1] if stopped[row] else tokens)  # type: ignore[arg-type]
                chosen[row] += len(tokens)
        if all(not own for own in waiting) or any(
            not own and not stopped[row] for row, own in enumerate(waiting)
        ):
            return
        yield [own.popleft() if own else stop_id for own in waiting]  # type: ignore[misc]


def _begin(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    generators: list[torch.Generator],
    request: Request,
    sampling: Sampling,
    n_vocab: int,
) -> Continuation:
    max_tokens = request.max_tokens
    drafter = None
    if request.draft is not None:
        drafter = drafter_for(
            model,
            prompts,
            request.draft,
            request.draft_tokens,
            max_tokens=max_tokens,
            sampling=sampling,
            n_vocab=n_vocab,
        )
    return Continuation(
        model,
        prompts,
        max_tokens=max_tokens,
        sampling=sampling,
        generators=generators,
        overflow=request.overflow,
        n_vocab=n_vocab,
        drafter=drafter,
        logprobs=request.logprobs,
        compile=request.compile,
    )


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
    draft: Draft | None
    draft_tokens: int
    compile: bool


@dataclass(frozen=True, kw_only=True)
class Request(Sampling):
    """One wish for text, checked once. Raises ConfigError for a value that cannot be."""

    max_tokens: int = 100  # new tokens, at most
    stop: str | Sequence[str] | None = ()  # texts to stop before; they are not part of the result
    seed: int | None = None  # the same seed gives the same text; None draws one
    num_samples: int = 1  # continuations of each prompt
    first_sample: int = (
        0  # number of the first of them; each sample is what it is whatever the others are
    )
    overflow: Overflow = (
        "slide"  # what to do when the text outgrows the model's window: see Continuation
    )
    special: bool = False  # read <|endoftext|> in a prompt as the marker instead of as text
    ignore_eos: bool = False  # go on after <|endoftext|>
    logprobs: bool = False  # also give the log-probability of each token
    draft: Draft | None = field(
        default=None, repr=False
    )  # who proposes tokens ahead: a smaller model, or "lookup" (speculate.py)
    draft_tokens: int = DRAFT_TOKENS  # how many at once, at most
    compile: bool = False  # let torch compile what reads a new token, where torch does; that takes a minute at first
    drawn_seed: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, lowest, most in (
            ("max_tokens", 0, 10**9),
            ("num_samples", 1, 10**5),
            ("first_sample", 0, 10**9),
            ("draft_tokens", 1, MOST_DRAFT_TOKENS),
        ):
            value = getattr(self, name)
            if type(value) is not int or not lowest <= value <= most:
                raise ConfigError(
                    f"{name} is {value!r}, expected a whole number from {lowest} to {most:,}"
                )
        if self.overflow not in ("slide", "stop", "error"):
            raise ConfigError(f"overflow is {self.overflow!r}, expected slide, stop or error")
        if isinstance(self.draft, str) and self.draft != "lookup":
            raise ConfigError(f"draft is {self.draft!r}, expected a model, or 'lookup'")
        if self.compile and self.draft is not None:
            raise ConfigError(
                "--compile is for one token at a time, and a draft proposes several; leave out --compile or --draft"
            )
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
    checked: Checked | None = (
        None  # in the first piece of a step with a draft: tokens proposed, and how many were taken
    )


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


def stream(
    model: GPT2,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[str],
    **options: Unpack[Options],
) -> Iterator[Piece]:
    """Continue a prompt, or several at once, and yield each piece of text as soon as it is certain.

    The pieces of one row, joined, are its whole continuation; an empty prompt starts a new text. Several prompts and samples
    share the work, and each comes out as it would alone. Options are those of Request and Sampling: max_tokens, temperature,
    top_k, top_p, min_p, repetition_penalty, stop, seed, num_samples, overflow, special, ignore_eos, logprobs, draft, draft_tokens,
    compile. What cannot be is refused at the call, before the first piece is asked for.
    """
    request = Request(**options)
    if tokenizer is None:
        raise TokenizerError(
            "the model has no vocabulary beside its weights; put vocab.json and merges.txt there, or use generate_tokens"
        )
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    encoded = [
        ids for text in prompts for ids in [_encode(tokenizer, text, request)] * request.num_samples
    ]
    if not encoded or request.max_tokens == 0:
        return iter(())
    streams = [
        sample_generator(request.drawn_seed, request.first_sample + row % request.num_samples)
        for row in range(len(encoded))
    ]
    state = _begin(
        model, encoded, streams, request, request, min(tokenizer.n_vocab, model.config.n_vocab)
    )
    return _pieces(
        state, [_Writer(row, tokenizer, request) for row in range(len(encoded))], request
    )


def _pieces(state: Continuation, writers: Sequence[_Writer], request: Request) -> Iterator[Piece]:
    """Take steps until every row has ended, and give each row's new tokens to its writer."""
    state.end([row for row in state.rows if state.is_full(row)])
    while state.rows:
        steps = state.step()
        logprobs: Sequence[Sequence[float | None]] = (
            state.logprobs() if request.logprobs else [[None] * len(tokens) for tokens in steps]
        )
        pieces = []
        for row, tokens, theirs, checked in zip(
            state.rows, steps, logprobs, state.checked, strict=True
        ):
            for i, (token, logprob) in enumerate(zip(tokens, theirs, strict=True)):
                is_full = i == len(tokens) - 1 and state.is_full(row)
                pieces.append(
                    writers[row].write(token, logprob, checked if i == 0 else None, full=is_full)
                )
                if pieces[-1].finish_reason:
                    break
        yield from pieces
        state.end([piece.row for piece in pieces if piece.finish_reason])


def complete(
    model: GPT2,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[str],
    **options: Unpack[Options],
) -> list[Completion]:
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
    nothing: FinishReason = (
        "max_tokens" if request.max_tokens == 0 else "context"
    )  # why a row has no piece at all
    return [
        Completion(
            prompt=prompts[row // request.num_samples],
            text="".join(piece.text for piece in own),
            tokens=[piece.token for piece in own],
            finish_reason=own[-1].finish_reason or nothing if own else nothing,
            seed=request.drawn_seed,
            sample=request.first_sample + row % request.num_samples,
            logprobs=[piece.logprob for piece in own if piece.logprob is not None]
            if request.logprobs
            else None,
        )
        for row, own in enumerate(rows)
    ]


def generate(
    model: GPT2, tokenizer: Tokenizer | None, prompt: str, **options: Unpack[Options]
) -> str:
    """Return the continuation of a prompt, without the prompt; options as in `stream`."""
    if options.get("num_samples", 1) != 1:
        raise ConfigError("generate returns one text; for several samples use complete")
    return "".join(piece.text for piece in stream(model, tokenizer, prompt, **options))


def _encode(tokenizer: Tokenizer, text: str, request: Request) -> list[int]:
    ids = tokenizer.encode(text, special=request.special)
    if ids:
        return ids
    if tokenizer.stop_id is None:
        raise ConfigError(
            "the prompt is empty, and the vocabulary has no <|endoftext|> to start a new text from; give a prompt"
        )
    return [tokenizer.stop_id]


class _Writer:
    """One row's way from tokens to text: whole characters only, nothing of a stop text, and why it ended."""

    def __init__(self, row: int, tokenizer: Tokenizer, request: Request) -> None:
        self._row = row
        self._stop_id = None if request.ignore_eos else tokenizer.stop_id
        self._decoder = StreamDecoder(tokenizer.token_bytes)
        self._stop = StopTexts(request.stop or ())
        self._left = request.max_tokens

    def write(
        self, token: int, logprob: float | None, checked: Checked | None, *, full: bool
    ) -> Piece:
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
        return Piece(text, token, self._row, logprob, reason, checked)


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
        held = max(
            (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        end = min(starts) if starts else len(text) - held
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Return what was held back and did not become a stop text."""
        held, self._held = self._held, ""
        return "" if self.found else held
