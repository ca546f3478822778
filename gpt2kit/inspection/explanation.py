"""How a model reads a text: surprisal and alternatives, logit lens, attention, attribution.

Everything is computed from traces. A text longer than the model's window is read in several
windows, each beginning half a window after the previous one: every token is explained once, with at
least half a window of context.

    T tokens, V vocabulary, L layers, H heads, N entries kept of a row of attention
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from gpt2kit.data.window import Overflow, check_ids, fit
from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import ConfigError
from gpt2kit.inspection.attribution import Attribution, attribute, check_sum
from gpt2kit.inspection.forward import Trace, trace
from gpt2kit.model import GPT2

_ROWS_AT_ONCE = 128  # of logits, so that they are not all in memory twice


@dataclass(frozen=True)
class Alternative:
    """A token that the model thought likely at a position."""

    token: int
    probability: float


@dataclass(frozen=True)
class Expectation:
    """What the model expected at one position, and how likely it held the token that came."""

    token: int | None  # None at the position after the text
    # -log2 of the token's probability, in bits; None for the first token and after the text
    surprisal: float | None
    rank: int | None  # 1 if the token was the most likely one
    # The most likely tokens, best first; none at the first position
    alternatives: tuple[Alternative, ...]

    @property
    def probability(self) -> float | None:
        return None if self.surprisal is None else 2.0**-self.surprisal


@dataclass(frozen=True)
class Window:
    """A part of a text that the model reads at once.

    The first `seen_before` tokens were explained in the previous window.
    """

    start: int  # position of its first token in the text
    seen_before: int
    trace: Trace  # of one row


def windows(model: GPT2, ids: Sequence[int]) -> Iterator[Window]:
    """Read a text in as many windows as it needs, and trace each, without the MLPs' neurons."""
    n_ctx = model.config.n_ctx
    for start in starts_of_windows(model, len(ids)):
        part = torch.tensor([ids[start : start + n_ctx]])  # (1, T)
        yield Window(start, n_ctx // 2 if start else 0, trace(model, part, neurons=False))


def starts_of_windows(model: GPT2, n_tokens: int) -> range:
    """Return the first position of each window of a text; each overlaps the next by half."""
    n_ctx = model.config.n_ctx
    return range(0, max(1, n_tokens - n_ctx // 2), n_ctx - n_ctx // 2)


def expectations(logits: Tensor, tokens: Sequence[int | None], top: int) -> list[Expectation]:
    """Return what (T, V) logits expected at the positions of T tokens, with `top` alternatives."""
    found = []
    for start in range(0, len(tokens), _ROWS_AT_ONCE):
        bits = precise(logits[start : start + _ROWS_AT_ONCE]).log_softmax(dim=-1) / -math.log(2)
        best = bits.topk(min(top, bits.shape[-1]), dim=-1, largest=False)
        for row, token in enumerate(tokens[start : start + _ROWS_AT_ONCE]):
            pairs = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
            surprisal = None if token is None else float(bits[row, token])
            rank = None if token is None else int((bits[row] < bits[row, token]).sum()) + 1
            found.append(
                Expectation(
                    token,
                    surprisal,
                    rank,
                    tuple(Alternative(other, 2.0**-value) for other, value in pairs),
                )
            )
    return found


# --- logit lens -----------------------------------------------------------------------------------


def lens_logits(seen: Trace, layer: int, skip: int = 0) -> Tensor:
    """Return the logits of a model that ends before this layer: (B, T - skip, V).

    The residual stream is normalized and read by the head, as after the last layer (nostalgebraist
    2020, "interpreting GPT: the logit lens"). With `layer` n_layer, these are the model's own
    logits. The first `skip` positions are left out.
    """
    stream = seen.final if layer == len(seen.layers) else seen.layers[layer].before
    with torch.no_grad():
        return seen.model.head(seen.model.ln_f(stream[:, skip:]))


@dataclass(frozen=True)
class Lens:
    """The most likely next token after each position, read off after every number of layers."""

    tokens: Tensor  # (L + 1, T)
    probabilities: Tensor  # (L + 1, T)


def lens(seen: Trace, skip: int = 0, n_vocab: int | None = None) -> Lens:
    """Return the most likely next token after 0, 1, … L layers.

    The first `skip` positions are left out. Ids from `n_vocab` on are padding of the head, not
    tokens.
    """
    tokens, probabilities = [], []
    for layer in range(len(seen.layers) + 1):
        logits = precise(lens_logits(seen, layer, skip)[0, :, :n_vocab])  # (T, V)
        best, chosen = logits.max(dim=-1)
        tokens.append(chosen)
        probabilities.append((best - logits.logsumexp(dim=-1)).exp())
    return Lens(torch.stack(tokens).cpu(), torch.stack(probabilities).cpu())


# --- all of it for one text -----------------------------------------------------------------------


@dataclass(frozen=True)
class Strongest:
    """The largest entries of every row of every head's attention, small enough for a page."""

    distances: Tensor  # (T, L, H, N) int32: how many tokens back
    # (T, L, H, N) uint8: 255 times the square root, which resolves small weights; 0 for no entry
    weights: Tensor


@dataclass(frozen=True)
class ExplainOptions:
    """What to compute for a text besides the surprisal of its tokens."""

    top: int = 5  # alternatives at each position
    lens: bool = False
    head: tuple[int, int] | None = None  # layer and head whose attention is kept whole
    strongest: int = 0  # entries kept of each row of attention of every head
    attribution: bool = False
    target: int | None = None  # token whose logit is explained; default: the most likely next one
    against: int | None = None  # token to compare it with; default: the runner-up


@dataclass(frozen=True)
class Explanation:
    """How a model reads a text of T tokens."""

    ids: tuple[int, ...]
    expectations: tuple[Expectation, ...]  # T + 1: the last is for the token after the text
    starts: tuple[int, ...]  # first position that each token could see: 0 within the first window
    lens: Lens | None = None
    attention: tuple[list[float], ...] | None = None  # of each token t, on starts[t] … t
    strongest: Strongest | None = None
    attribution: Attribution | None = None  # of the token after the text

    @property
    def surprisal(self) -> float | None:
        """Mean bits per token, or None for a single token."""
        bits = [each.surprisal for each in self.expectations if each.surprisal is not None]
        return sum(bits) / len(bits) if bits else None


def explain(
    model: GPT2,
    ids: Sequence[int],
    options: ExplainOptions | None = None,
    *,
    overflow: Overflow = "slide",
    n_vocab: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Read a text and compute its surprisal and what the options ask for.

    Ids from `n_vocab` on are padding of the head, not tokens. `progress` is called after each
    window with the tokens done and the total. For `overflow` see `data.window.fit`. Raises
    ConfigError for a head that does not exist and for an attribution that the model does not allow.
    """
    options = options or ExplainOptions()
    check_ids(ids, model.config.n_vocab)
    ids = fit(ids, model.config.n_ctx, overflow)
    if options.head:
        check_head(model, *options.head)
    if options.attribution:
        check_sum(model)
    expected = [Expectation(ids[0], None, None, ())]
    starts: list[int] = []
    lenses: list[Lens] = []
    attention: list[list[float]] = []
    strongest: list[Strongest] = []
    for window in windows(model, ids):
        seen, skip = window.trace, window.seen_before
        end = window.start + seen.ids.shape[1]
        following = [*ids[window.start + skip + 1 : end + 1], *([None] if end == len(ids) else [])]
        expected += expectations(seen.logits[0, skip:, :n_vocab], following, options.top)
        starts += [window.start] * (end - window.start - skip)
        if options.lens:
            lenses.append(lens(seen, skip, n_vocab))
        if options.head:
            weights = (
                seen.layers[options.head[0]].weights[0, options.head[1], skip:].tolist()
            )  # (T, T)
            attention += [row[:end] for end, row in enumerate(weights, skip + 1)]
        if options.strongest:
            strongest.append(strongest_weights(seen, skip, options.strongest))
        if progress:
            progress(end, len(ids))
    return Explanation(
        ids=tuple(ids),
        expectations=tuple(expected),
        starts=tuple(starts),
        lens=_joined(lenses, dim=1),
        attention=tuple(attention) if options.head else None,
        strongest=_joined(strongest, dim=0),
        attribution=attribute(seen, *_compared(seen.logits[0, -1, :n_vocab], options))
        if options.attribution
        else None,
    )


_Tensors = TypeVar("_Tensors", Lens, Strongest)


def _joined(parts: Sequence[_Tensors], dim: int) -> _Tensors | None:
    """Concatenate the results of several windows."""
    if not parts:
        return None
    return type(parts[0])(
        *(
            torch.cat([getattr(part, field.name) for part in parts], dim=dim)
            for field in fields(parts[0])
        )
    )


def check_head(model: GPT2, layer: int, head: int) -> None:
    """Raise ConfigError unless the model has this layer and head."""
    n_layer, n_head = model.config.n_layer, model.config.n_head
    if not n_layer:
        raise ConfigError("this model has no layers, so there is no attention to show")
    if not (0 <= layer < n_layer and 0 <= head < n_head):
        raise ConfigError(
            f"there is no head {layer}.{head}; expected a layer from 0 to {n_layer - 1} "
            f"and a head from 0 to {n_head - 1}"
        )


def _compared(logits: Tensor, options: ExplainOptions) -> tuple[int, int | None]:
    """Return the token whose logit is explained, and the token to compare it with."""
    order = logits.topk(min(2, len(logits))).indices.tolist()
    token = order[0] if options.target is None else options.target
    runner_up = next((other for other in order if other != token), None)
    return token, runner_up if options.against is None else options.against


def strongest_weights(seen: Trace, skip: int, n: int) -> Strongest:
    """Return the n largest weights of every row of every head, without the first `skip` rows."""
    T, config = seen.ids.shape[1], seen.model.config
    positions = torch.arange(skip, T, device=seen.ids.device)[:, None]  # (T, 1)
    shape = (T - skip, config.n_layer, config.n_head, n)
    distances, weights = (
        torch.zeros(shape, dtype=torch.int32),
        torch.zeros(shape, dtype=torch.uint8),
    )
    for number, layer in enumerate(seen.layers):
        largest = layer.weights[0, :, skip:].topk(min(n, T), dim=-1)  # (H, T, N)
        rounded = (largest.values.sqrt() * 255).round().to(torch.uint8)
        back = (positions - largest.indices).masked_fill(rounded == 0, 0)
        distances[:, number, :, : min(n, T)] = back.transpose(0, 1)
        weights[:, number, :, : min(n, T)] = rounded.transpose(0, 1)
    return Strongest(distances, weights)
