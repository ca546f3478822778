"""What a model makes of a text: surprisal and alternatives, logit lens, attention, attribution.

Everything here is read off traces. A text that is longer than the model's window is read in several: each goes on half a window
further, so that every token is judged once, with half a window before it at least.

    T tokens, V vocabulary, L layers, H heads, N entries kept of a row of attention
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError, ContextLengthError, Gpt2KitWarning, TokenizerError
from gpt2kit.generation.continuation import Overflow
from gpt2kit.inspection.attribution import Attribution, attribute, check_sum
from gpt2kit.inspection.forward import Trace, trace
from gpt2kit.model import GPT2, precise

_ROWS_AT_ONCE = (
    128  # of logits that are sorted and normalized, so that no second copy of all of them is made
)


@dataclass(frozen=True)
class Alternative:
    """A token that could have stood in a place."""

    token: int
    probability: float


@dataclass(frozen=True)
class Expectation:
    """What the model expected in one place of a text, from the tokens before it, and how it took the token that came."""

    token: int | None  # None in the last place, after the text
    surprisal: (
        float | None
    )  # -log2 of the token's probability, in bits; None where nothing came before, or nothing comes
    rank: int | None  # 1 where the token was the most likely one
    alternatives: tuple[
        Alternative, ...
    ]  # the most likely tokens, best first; none in the first place

    @property
    def probability(self) -> float | None:
        return None if self.surprisal is None else 2.0**-self.surprisal


@dataclass(frozen=True)
class Window:
    """A part of a text that the model reads at once; the first `known` of its tokens were judged in the window before."""

    start: int
    known: int
    trace: Trace  # of one row


def fit(ids: Sequence[int], model: GPT2, overflow: Overflow = "slide") -> Sequence[int]:
    """Return the tokens of a text that are to be read.

    For a text longer than the model's n_ctx positions these are all of them with `slide`, and the first n_ctx with `stop`, with a
    warning; `error` raises ContextLengthError.
    """
    n, n_ctx, n_vocab = len(ids), model.config.n_ctx, model.config.n_vocab
    if not n:
        raise ConfigError("the text has no tokens; there must be one at least")
    if wrong := [token for token in ids if not 0 <= token < n_vocab]:
        raise TokenizerError(f"id {wrong[0]} is not in the model's vocabulary of {n_vocab:,}")
    if n > n_ctx and overflow == "error":
        message = f"the text has {n:,} tokens and the model reads {n_ctx:,}; shorten it or use --overflow slide"
        raise ContextLengthError(message, requested=n, limit=n_ctx)
    if n > n_ctx and overflow == "stop":
        message = f"the text has {n:,} tokens and the model reads {n_ctx:,}: the last {n - n_ctx:,} are left out"
        warnings.warn(message, Gpt2KitWarning, stacklevel=2)
        return ids[:n_ctx]
    return ids


def windows(model: GPT2, ids: Sequence[int]) -> Iterator[Window]:
    """Read a text in as many windows as it needs, and yield the trace of each, without the insides of the MLPs."""
    n_ctx = model.config.n_ctx
    start = known = 0
    while start + known < len(ids):
        yield Window(
            start, known, trace(model, torch.tensor([ids[start : start + n_ctx]]), neurons=False)
        )
        known = n_ctx // 2
        start += n_ctx - known


def expectations(logits: Tensor, tokens: Sequence[int | None], top: int) -> list[Expectation]:
    """Describe what (T, V) logits expect in the places of the T tokens that came."""
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


# --- logit lens ------------------------------------------------------------------------------------------------------


def lens_logits(seen: Trace, layer: int, known: int = 0) -> Tensor:
    """Return what the model would say if it ended before this layer, (B, T, V), but for the first `known` places.

    With `layer` n_layer these are its very logits.

    The residual stream is normalized and read by the head as at the end (nostalgebraist 2020, "interpreting GPT: the logit lens").
    """
    stream = seen.final if layer == len(seen.layers) else seen.layers[layer].before
    with torch.no_grad():
        return seen.model.head(seen.model.ln_f(stream[:, known:]))


@dataclass(frozen=True)
class Lens:
    """The most likely next token after each place, by the number of layers that were asked."""

    tokens: Tensor  # (L + 1, T)
    probabilities: Tensor  # (L + 1, T)


def lens(seen: Trace, known: int = 0, n_vocab: int | None = None) -> Lens:
    """Ask every depth of the model for the token after each place but the first `known`.

    The first row of the lens has seen no layer, the last one all.
    """
    tokens, probabilities = [], []
    for layer in range(len(seen.layers) + 1):
        logits = precise(lens_logits(seen, layer, known)[0, :, :n_vocab])  # (T, V)
        best, chosen = logits.max(dim=-1)
        tokens.append(chosen)
        probabilities.append((best - logits.logsumexp(dim=-1)).exp())
    return Lens(torch.stack(tokens).cpu(), torch.stack(probabilities).cpu())


# --- all of it for one text ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strongest:
    """The largest entries of every row of every head's attention, in two small arrays for a page to carry."""

    distances: Tensor  # (T, L, H, N) int32: how far before the token
    weights: Tensor  # (T, L, H, N) uint8: 255 times the square root, which is finer where weights are small; 0 is nothing


@dataclass(frozen=True)
class Wish:
    """What to find out about a text beside the surprisal of its tokens."""

    top: int = 5  # alternatives in each place
    lens: bool = False
    head: tuple[int, int] | None = None  # layer and head whose attention to keep whole
    strongest: int = 0  # entries of each row of attention to keep, of all heads
    attribution: bool = False
    target: int | None = (
        None  # the token to explain the logit of; the most likely next one unless given
    )
    against: int | None = None  # and the one to compare with; the runner-up unless given


@dataclass(frozen=True)
class Explanation:
    """What was found out about a text of T tokens."""

    ids: tuple[int, ...]
    expectations: tuple[Expectation, ...]  # T + 1: the last one is of what comes next
    starts: tuple[
        int, ...
    ]  # for each token the first place that it could see, 0 unless the text outgrew the window
    lens: Lens | None = None
    attention: tuple[list[float], ...] | None = None  # for each token its weights on starts[t] … t
    strongest: Strongest | None = None
    attribution: Attribution | None = None  # of what comes next

    @property
    def surprisal(self) -> float | None:
        """Bits per token on average, or None for a single token."""
        bits = [each.surprisal for each in self.expectations if each.surprisal is not None]
        return sum(bits) / len(bits) if bits else None


def explain(
    model: GPT2,
    ids: Sequence[int],
    wish: Wish | None = None,
    *,
    overflow: Overflow = "slide",
    n_vocab: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Read a text and find out what is wished for; ids from `n_vocab` on are padding of the matrix, not tokens.

    `progress` is called after each window with the tokens that are done and those there are. For `overflow` see `fit`. Raises
    ConfigError for a head that is not there, or an attribution that cannot be had.
    """
    wish = wish or Wish()
    ids = fit(ids, model, overflow)
    if wish.head:
        check_head(model, *wish.head)
    if wish.attribution:
        check_sum(model)
    expected, starts, lenses, attention, strongest = (
        [Expectation(ids[0], None, None, ())],
        [],
        [],
        [],
        [],
    )
    for window in windows(model, ids):
        seen, known = window.trace, window.known
        end = window.start + seen.ids.shape[1]
        following = [*ids[window.start + known + 1 : end + 1], *([None] if end == len(ids) else [])]
        expected += expectations(seen.logits[0, known:, :n_vocab], following, wish.top)
        starts += [window.start] * (end - window.start - known)
        if wish.lens:
            lenses.append(lens(seen, known, n_vocab))
        if wish.head:
            weights = seen.layers[wish.head[0]].weights[0, wish.head[1], known:].tolist()  # (T, T)
            attention += [row[: known + place + 1] for place, row in enumerate(weights)]
        if wish.strongest:
            strongest.append(strongest_weights(seen, known, wish.strongest))
        if progress:
            progress(end, len(ids))
    return Explanation(
        ids=tuple(ids),
        expectations=tuple(expected),
        starts=tuple(starts),
        lens=_joined(lenses, dim=1),
        attention=tuple(attention) if wish.head else None,
        strongest=_joined(strongest, dim=0),
        attribution=attribute(seen, *_compared(seen.logits[0, -1, :n_vocab], wish))
        if wish.attribution
        else None,
    )


_Tensors = TypeVar("_Tensors", Lens, Strongest)


def _joined(parts: Sequence[_Tensors], dim: int) -> _Tensors | None:
    """Put what several windows gave side by side."""
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
        raise ConfigError("this model has no layers, and no attention to show")
    if not (0 <= layer < n_layer and 0 <= head < n_head):
        raise ConfigError(
            f"there is no head {layer}.{head}: the layers are 0 to {n_layer - 1}, the heads of each 0 to {n_head - 1}"
        )


def _compared(logits: Tensor, wish: Wish) -> tuple[int, int | None]:
    """Return the token whose logit to explain, and the best of the others unless another one was named."""
    order = logits.topk(min(2, len(logits))).indices.tolist()
    token = order[0] if wish.target is None else wish.target
    runner_up = next((other for other in order if other != token), None)
    return token, runner_up if wish.against is None else wish.against


def strongest_weights(seen: Trace, known: int, n: int) -> Strongest:
    """Keep the n largest weights of every row of every head, but for the first `known` tokens."""
    T, config = seen.ids.shape[1], seen.model.config
    places = torch.arange(known, T, device=seen.ids.device)[:, None]  # (T, 1)
    shape = (T - known, config.n_layer, config.n_head, n)
    distances, weights = (
        torch.zeros(shape, dtype=torch.int32),
        torch.zeros(shape, dtype=torch.uint8),
    )
    for number, layer in enumerate(seen.layers):
        largest = layer.weights[0, :, known:].topk(min(n, T), dim=-1)  # (H, T, N)
        rounded = (largest.values.sqrt() * 255).round().to(torch.uint8)
        behind = (places - largest.indices).masked_fill(rounded == 0, 0)
        distances[:, number, :, : min(n, T)] = behind.transpose(0, 1)
        weights[:, number, :, : min(n, T)] = rounded.transpose(0, 1)
    return Strongest(distances, weights)
