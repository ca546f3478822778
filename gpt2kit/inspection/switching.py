"""Heads switched off one at a time: how surprising each token of a text becomes without each.

A head that is off gives the mean of its output over the positions of the text (of a window of a
long one) instead of its own, at every position. Several heads of a layer are computed together, as
rows of a batch that begins at that layer: what comes before it is the same with and without them.

    T tokens, V vocabulary, L layers, H heads, D head size, N likely tokens, B heads at once
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2kit.data.window import check_ids
from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import ConfigError
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.explanation import starts_of_windows, windows
from gpt2kit.inspection.forward import Trace
from gpt2kit.inspection.running import continued
from gpt2kit.model import GPT2

_TOKENS_AT_ONCE = 1024  # whose logits are in memory together


@dataclass(frozen=True)
class Switched:
    """A text of T tokens without each head."""

    surprisal: Tensor  # (L, H, T) float32, in bits; 0 for the first token
    tokens: Tensor  # (L, H, N) int64: the most likely next tokens after the text, best first
    probabilities: Tensor  # (L, H, N) float32


@torch.no_grad()
def switch_heads(
    model: GPT2,
    ids: Sequence[int],
    top: int = 5,
    *,
    n_vocab: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Switched:
    """Switch off each head by itself, and return what the model then expects.

    Ids from `n_vocab` on are padding of the vocabulary, not tokens. `progress` is called after each
    layer with the runs done and their total. Raises ConfigError for a model without heads.
    """
    check_ids(ids, model.config.n_vocab)
    if not model.config.n_layer:
        raise ConfigError("this model has no layers, so it has no heads to switch off")
    total = model.config.n_layer * len(starts_of_windows(model, len(ids)))
    bits: list[Tensor] = []
    for number, window in enumerate(windows(model, ids)):
        seen, skip = window.trace, window.seen_before
        end = window.start + seen.ids.shape[1]
        following = torch.tensor(ids[window.start + skip + 1 : end + 1], device=seen.ids.device)
        of_layers, likely = [], []
        for layer in range(model.config.n_layer):
            found = [_expected(each, following, top, n_vocab) for each in _off(seen, layer, skip)]
            of_layers.append(torch.cat([each[0] for each in found]))  # (H, T)
            likely.append([torch.cat([each[i] for each in found]) for i in (1, 2)])  # (H, N) each
            if progress:
                progress(number * model.config.n_layer + layer + 1, total)
        bits.append(torch.stack(of_layers))  # (L, H, T)
    first = torch.zeros(*bits[0].shape[:2], 1)
    tokens, shares = (torch.stack([each[i] for each in likely]) for i in (0, 1))  # (L, H, N)
    return Switched(torch.cat((first, *bits), dim=2), tokens, shares)


def _off(seen: Trace, layer: int, skip: int) -> Iterator[Tensor]:
    """Yield the logits without each head of a layer, a few heads at a time: (B, T - skip, V)."""
    z = seen.layers[layer].head_outputs  # (1, H, T, D)
    means = z.double().mean(dim=2).to(z.dtype)[0]  # (H, D)
    for heads in torch.split(torch.arange(z.shape[1]), max(1, _TOKENS_AT_ONCE // z.shape[2])):
        edits = [
            Edit(f"layers.{layer}.head_outputs", row=row, head=head, value=means[head])
            for row, head in enumerate(heads.tolist())
        ]
        rows = seen.layers[layer].before.expand(len(heads), -1, -1)  # (B, T, C)
        yield seen.model.head(continued(seen.model, rows, layer, edits)[:, skip:])


def _expected(
    logits: Tensor, following: Tensor, top: int, n_vocab: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the surprisal of the tokens that follow, (B, n), and what is likely next, (B, N)."""
    logits = precise(logits[..., :n_vocab])  # (B, T, V)
    known = logits[:, : len(following)]
    came = following.expand(len(logits), -1)[..., None]  # (B, n, 1)
    nats = known.logsumexp(dim=-1) - known.gather(2, came)[..., 0]  # (B, n)
    best = logits[:, -1].softmax(dim=-1).topk(min(top, logits.shape[-1]), dim=-1)
    return (nats / math.log(2)).float().cpu(), best.indices.cpu(), best.values.float().cpu()
