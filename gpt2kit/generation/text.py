"""Tokens, then text, one piece at a time.

`generate_tokens` takes and yields ids; `stream` yields text as soon as it is certain; `complete`
and `generate` collect what `stream` yields. Nothing here reads files or prints.

    B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.fields import shortened
from gpt2kit.generation.constraints.constraint import constraints_for
from gpt2kit.generation.continuation import Continuation
from gpt2kit.generation.request import (
    FinishReason,
    Options,
    Request,
    Sampling,
    TokenOptions,
    as_request,
)
from gpt2kit.generation.row import Checked, Row
from gpt2kit.generation.shaping.forbidding import limits_for
from gpt2kit.generation.speculate import Draft, drafter_for
from gpt2kit.generation.stop_texts import StopTexts
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import StreamDecoder, Tokenizer, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

# --- tokens ---------------------------------------------------------------------------------------


def generate_tokens(
    model: GPT2,
    ids: Tensor | Sequence[Sequence[int]],
    *,
    sampling: Sampling | None = None,
    stop_id: int | None = None,
    draft: Draft | None = None,
    **options: Unpack[TokenOptions],
) -> Iterator[list[int]]:
    """Continue (B, T) ids, or B prompts of different lengths, and yield a list of B tokens a step.

    `ids` is a tensor or an array of whole numbers, or a list of prompts. Ends after max_tokens
    steps, or once every row has produced `stop_id`; a row that has ended repeats it. With
    `overflow="stop"`, all rows end when the first has filled the model's window. Row b draws from
    the random stream of (seed, b). For `draft`, a smaller model or "lookup", see speculate.py; for
    the options, `Request`.

    Raises ConfigError for an invalid option or ids of another shape, TokenizerError for an id
    outside the vocabulary, ContextLengthError as `Row` says, and GenerationError if the logits
    are not finite, if a logits processor returns what cannot be used, or if no token is allowed.
    """
    if unknown := options.keys() - TokenOptions.__annotations__.keys():
        raise TypeError(f"generate_tokens() got an unexpected option {min(unknown)!r}")
    request = dataclasses.replace(as_request(None, options), sampling=sampling or Sampling())
    limits = limits_for(request, None, stop_id)
    rows = [
        Row(prompt, request, model.config, sample=sample, stop_id=stop_id, limits=limits)
        for sample, prompt in enumerate(_prompts(ids))
    ]
    state = _begin(model, rows, request, draft, model.config.n_vocab)
    # Chosen tokens that were not yielded yet: with a draft, some rows are ahead of others.
    waiting: dict[Row, deque[int]] = {row: deque() for row in rows}
    while True:
        while any(row.finish_reason is None and not tokens for row, tokens in waiting.items()):
            for row in state.step():
                if row.error is not None:
                    raise row.error
                waiting[row].extend(chosen.token for chosen in row.new)
        ended = [row for row, tokens in waiting.items() if not tokens]
        if len(ended) == len(rows) or any(row.finish_reason != "end_of_text" for row in ended):
            return
        yield [tokens.popleft() if tokens else row.history[-1] for row, tokens in waiting.items()]


def _prompts(ids: Any) -> list[list[int]]:
    """Return (B, T) ids, or a list of prompts, as lists of integers."""
    prompts = _as_list(ids)
    if prompts is None or not prompts:
        raise ConfigError(f"expected (B, T) ids or a list of prompts; found {shortened(ids)}")
    return [_checked_prompt(row, _as_list(prompt)) for row, prompt in enumerate(prompts)]


def _as_list(values: Any) -> list[Any] | None:
    """Return a tensor, an array or a sequence as a list, and None for anything else."""
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.tolist()
    is_list = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    return list(values) if is_list else None


def _checked_prompt(row: int, prompt: list[Any] | None) -> list[int]:
    """Return the tokens of one prompt as integers; raises ConfigError if they are none."""
    if prompt is None or any(
        isinstance(token, bool) or not isinstance(token, (int, np.integer)) for token in prompt
    ):
        found = "no list" if prompt is None else shortened(prompt)
        raise ConfigError(
            f"expected (B, T) ids or a list of prompts, each a list of whole numbers; "
            f"prompt {row} is {found}"
        )
    return [int(token) for token in prompt]


def _begin(
    model: GPT2,
    rows: Sequence[Row],
    request: Request,
    draft: Draft | None,
    n_vocab: int,
    slots: int | None = None,
) -> Continuation:
    """Return the continuation of these rows, with a drafter if there is a draft."""
    request.check_draft(draft)
    drafter = None
    if draft is not None:
        drafter = drafter_for(rows, draft, request.draft_tokens, n_vocab=n_vocab)
    state = Continuation(
        model,
        slots=min(slots or len(rows), len(rows)),
        capacity=max(row.longest for row in rows) + (drafter.most if drafter else 0),
        n_vocab=n_vocab,
        drafter=drafter,
        compile=request.compile,
    )
    for row in rows:
        state.add(row)
    return state


# --- text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """What one more token adds to one row's text; the pieces of a row, joined, are its whole text.

    text           whole characters; "" while a character or a stop text may be incomplete
    token          the token's id
    row            the row, from 0: index of the prompt * num_samples + index of the sample
    logprob        natural logarithm of the probability that the model itself gave the token,
                   before bias, penalties, temperature and filters; None unless `logprobs` was
                   asked for
    top_logprobs   the tokens that the model finds likeliest here, as pairs of id and `logprob`,
                   the likeliest first; None unless `top_logprobs` was asked for
    finish_reason  in a row's last piece, why it ended: "end_of_text", the model chose its end
                   marker; "stop_text", a stop text was found; "max_tokens", it has that many new
                   tokens; "context", the window is full and `overflow` is not "slide";
                   "constraint", the text is complete, and the constraint allows nothing more
    matches        in a row's last piece, whether what was generated is complete by the request's
                   constraints: max_tokens may have cut it short; None without constraints
    checked        in the first piece of a step with a draft: how many tokens were proposed, and
                   how many of them accepted
    """

    text: str
    token: int
    row: int
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None
    finish_reason: FinishReason | None = None
    matches: bool | None = None
    checked: Checked | None = None


@dataclass(frozen=True)
class Completion:
    """One finished continuation of a prompt.

    prompt         the prompt, as it was given
    text           the continuation, without the prompt and without the stop text that ended it
    tokens         the ids of all new tokens, those of an end marker or a stop text included
    finish_reason  why it ended: see Piece
    matches        whether it is complete by the request's constraints: see Piece
    seed           the seed that gives this text again, together with `sample`
    sample         the sample's number among those of its prompt, from `first_sample` on
    logprobs       natural logarithm of each token's probability: see Piece; None unless asked for
    top_logprobs   the likeliest alternatives of each token: see Piece; None unless asked for
    """

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: FinishReason
    seed: int
    sample: int
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    matches: bool | None = None


def stream(
    model: GPT2,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[str],
    request: Request | None = None,
    *,
    draft: Draft | None = None,
    seeds: Sequence[int] | None = None,
    slots: int | None = None,
    **options: Unpack[Options],
) -> Iterator[Piece]:
    """Continue a prompt, or several at once, and yield each piece of text as soon as it is certain.

    Give a `Request`, or its fields and those of `Sampling` by keyword: `stream(..., top_k=3)`. An
    empty prompt starts a new text. Several prompts and samples share the work, and each comes out
    as it would alone: bit for bit on a CPU with the native step; if torch computes the steps, up to
    rounding, which hardly ever changes a text in float32 and often does in bfloat16. For `draft`, a
    smaller model or "lookup", see speculate.py. `seeds` are one for each prompt, in place of the
    request's; at most `slots` texts are written at once, by default all.

    Raises at the call, before the first piece is asked for: ConfigError for an invalid option and
    for constraints that no text meets,
    TokenizerError without a vocabulary or for a text that it cannot represent, ContextLengthError
    as `Row` says. Raises GenerationError between pieces if the logits are not finite, if a logits
    processor returns what cannot be used, or if a row has no token that is allowed.
    """
    request = as_request(request, options)
    tokenizer = require_tokenizer(tokenizer, "the model")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    encoded = [_encode(tokenizer, text, request) for text in prompts]
    request.check_draft(draft)
    n_vocab = min(tokenizer.n_vocab, model.config.n_vocab)
    request.sampling.check_vocabulary(n_vocab)
    if not encoded or request.max_tokens == 0:
        return iter(())
    stop_id = None if request.ignore_eos else tokenizer.stop_id
    limits = limits_for(request, tokenizer, stop_id)
    constraints = constraints_for(request, tokenizer, n_vocab, stop_id)
    rows = [
        Row(
            ids,
            request if seeds is None else dataclasses.replace(request, seed=seeds[index]),
            model.config,
            sample=request.first_sample + number,
            stop_id=stop_id,
            limits=limits,
            progress=constraints.after(ids) if constraints else None,
        )
        for index, ids in enumerate(encoded)
        for number in range(request.num_samples)
    ]
    state = _begin(model, rows, request, draft, n_vocab, slots)
    return _pieces(state, [TextOfRow(i, row, tokenizer) for i, row in enumerate(rows)])


def _pieces(state: Continuation, texts: Sequence[TextOfRow]) -> Iterator[Piece]:
    """Take steps until every row has ended, and yield what they add to the texts."""
    by_row = {text.row: text for text in texts}
    while state.has_work:
        yield from [piece for row in state.step() for piece in by_row[row].add_new()]


def complete(
    model: GPT2,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[str],
    request: Request | None = None,
    *,
    draft: Draft | None = None,
    **options: Unpack[Options],
) -> list[Completion]:
    """Continue a prompt, or several, and return every sample of the first, then of the second, ….

    Arguments and errors are those of `stream`.
    """
    request = as_request(request, options)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    return collect(stream(model, tokenizer, prompts, request, draft=draft), prompts, request)


def collect(pieces: Iterable[Piece], prompts: Sequence[str], request: Request) -> list[Completion]:
    """Join the pieces that `stream` yielded for these prompts, row by row."""
    rows: list[list[Piece]] = [[] for _ in range(len(prompts) * request.num_samples)]
    for piece in pieces:
        rows[piece.row].append(piece)
    # Why a row has no piece at all.
    nothing: FinishReason = "max_tokens" if request.max_tokens == 0 else "context"
    return [
        Completion(
            prompt=prompts[i // request.num_samples],
            text="".join(piece.text for piece in own),
            tokens=[piece.token for piece in own],
            finish_reason=(own[-1].finish_reason if own else None) or nothing,
            seed=request.drawn_seed,
            sample=request.first_sample + i % request.num_samples,
            logprobs=[piece.logprob for piece in own if piece.logprob is not None]
            if request.logprobs
            else None,
            top_logprobs=[piece.top_logprobs or [] for piece in own]
            if request.top_logprobs
            else None,
            matches=own[-1].matches if own else None,
        )
        for i, own in enumerate(rows)
    ]


def generate(
    model: GPT2,
    tokenizer: Tokenizer | None,
    prompt: str,
    request: Request | None = None,
    *,
    draft: Draft | None = None,
    **options: Unpack[Options],
) -> str:
    """Return the continuation of a prompt, without the prompt.

    Arguments and errors are those of `stream`; ConfigError for more than one sample.
    """
    request = as_request(request, options)
    if request.num_samples != 1:
        raise ConfigError("generate returns one text; for several samples use complete")
    pieces = stream(model, tokenizer, prompt, request, draft=draft)
    return "".join(piece.text for piece in pieces)


def _encode(tokenizer: Tokenizer, text: str, request: Request) -> list[int]:
    """Return the ids of a prompt; for an empty one, the marker after which a new text begins."""
    ids = tokenizer.encode(text, special=request.special)
    if ids:
        return ids
    if not (start := start_of_text(tokenizer)):
        raise ConfigError(
            "the prompt is empty, and the vocabulary has no <|endoftext|> to start a new text "
            "from; give a prompt"
        )
    return start


class TextOfRow:
    """The text of a row: whole characters only, and nothing of a stop text."""

    def __init__(self, number: int, row: Row, tokenizer: Tokenizer) -> None:
        self.row = row
        self._number = number
        self._decoder = StreamDecoder(tokenizer.token_bytes)
        self._stop = StopTexts(row.request.stop)
        self._n_tokens = 0

    def add_new(self) -> list[Piece]:
        """Return the pieces that the row's newest tokens add; finish the row at a stop text.

        Raises the row's error if it has one.
        """
        if self.row.error is not None:
            raise self.row.error
        pieces: list[Piece] = []
        for chosen in self.row.new:
            is_last = len(pieces) == len(self.row.new) - 1
            reason = self.row.finish_reason if is_last else None
            text = self._add(chosen.token, reason)
            if self._stop.found:
                reason = self.row.finish_reason = "stop_text"
            checked = None if pieces else self.row.checked
            pieces.append(
                Piece(
                    text=text,
                    token=chosen.token,
                    row=self._number,
                    logprob=chosen.logprob,
                    top_logprobs=chosen.top_logprobs,
                    finish_reason=reason,
                    matches=self.row.matches if reason else None,
                    checked=checked,
                )
            )
            if self._stop.found:
                break
        return pieces

    def _add(self, token: int, reason: FinishReason | None) -> str:
        """Return the text that has become certain with one more token, the last if it has a reason.

        An end marker adds no text of its own.
        """
        self._n_tokens += 1
        may_stop = self._n_tokens > self.row.request.min_tokens
        decoded = "" if reason == "end_of_text" else self._decoder.feed(token)
        text = self._stop.feed(decoded, may_stop=may_stop)
        if reason:
            text += self._stop.feed(self._decoder.finish(), may_stop=may_stop) + self._stop.finish()
        return text
