"""What the features of a sparse autoencoder do in a model: spliced in, changed, and judged.

    logits = splice(model, ids, sae, {123: 0.0})    # as if feature 123 were never present

The autoencoder's own error is kept by default, so that only the changed features change anything.

    B batch, T tokens, C width of what is read, N features, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.features import SAE, activations, check_hook, split_hook
from gpt2kit.inspection.running import run
from gpt2kit.model import GPT2

# What writes into the residual stream from parts that are not in it
_PROJECTIONS = {"attn.hook_z": "attn.c_proj", "mlp.hook_post": "mlp.c_proj"}

# What features become: those named are set to numbers, or a function of all, (…, N) -> (…, N)
Change = Mapping[int, float] | Callable[[Tensor], Tensor] | None


def splice_edit(sae: SAE, change: Change = None, *, error: bool = True, skip: int = 0) -> Edit:
    """Return the edit that puts an SAE into a model: what it reads is replaced by what it decodes.

    `change` says what features become meanwhile. With `error` the part that the SAE does not
    explain is kept: then nothing changes but what `change` does. The first `skip` positions stay as
    they are: the first position of a text is unlike all others, and most SAEs never saw it.
    """
    _, part = split_hook(sae.hook)
    assert sae.hook is not None
    if isinstance(change, Mapping):
        for feature in change:
            sae.check_feature(feature)

    def value(x: Tensor) -> Tensor:
        flat = x.flatten(2) if part == "attn.hook_z" else x  # (B, T, C)
        features = sae.encode(flat)  # (B, T, N)
        new = sae.decode(_changed(features, change), flat)
        if error:
            new = flat + (new - sae.decode(features, flat))
        return new.to(x.dtype).view_as(x)

    return Edit(sae.hook, value=value, position=slice(skip, None) if skip else None)


def _changed(features: Tensor, change: Change) -> Tensor:
    if change is None:
        return features
    if not isinstance(change, Mapping):
        return change(features.clone())
    features = features.clone()
    for feature, value in change.items():
        features[..., feature] = value
    return features


def splice(
    model: GPT2,
    ids: Tensor,
    sae: SAE,
    change: Change = None,
    *,
    error: bool = True,
    skip: int = 0,
) -> Tensor:
    """Read (B, T) ids with an SAE in the model, and return the logits, (B, T, V).

    The arguments are those of `splice_edit`. Raises ConfigError for a feature that there is not.
    """
    return run(model, ids, [splice_edit(sae, change, error=error, skip=skip)]).logits


@dataclass(frozen=True)
class Quality:
    """How well an SAE describes what it reads.

    n_tokens            positions that were encoded
    explained_variance  1 - Σ|x - x̂|² / Σ|x - mean of x|², over all positions and numbers
    l0                  features that are active at a position, on average
    loss                of the model itself, in nats per token
    loss_spliced        with the SAE's reconstruction in place of what it reads, without its error
    loss_zero           with zeros in place of it
    loss_recovered      (loss_zero - loss_spliced) / (loss_zero - loss)
    """

    n_tokens: int
    explained_variance: float
    l0: float
    loss: float
    loss_spliced: float
    loss_zero: float

    @property
    def loss_recovered(self) -> float:
        return (self.loss_zero - self.loss_spliced) / (self.loss_zero - self.loss)


@torch.no_grad()
def quality(model: GPT2, sae: SAE, batches: Iterable[Tensor], *, skip: int = 1) -> Quality:
    """Measure an SAE on (B, T) ids, each row a text of its own, with the end-of-text token first.

    The first `skip` positions of each row, by default <|endoftext|>, are neither encoded nor
    replaced. Raises ConfigError unless two positions are left.
    """
    n, n_active, n_targets = 0, 0, 0
    residual, squares = 0.0, 0.0
    total = torch.zeros(sae.width, dtype=torch.float64, device=model.device)
    losses = [0.0, 0.0, 0.0]
    assert sae.hook is not None
    zero = Edit(sae.hook, value=0.0, position=slice(skip, None))
    for ids in batches:
        if ids.shape[1] <= max(skip, 1):
            continue
        x = activations(model, ids, sae.hook)[:, skip:].flatten(0, 1)  # (B * T, C)
        features = sae.encode(x)
        read = (x - x.mean(-1, keepdim=True) if sae.is_centered else x).double()
        residual += float((x - sae.decode(features, x)).double().square().sum())
        squares += float(read.square().sum())
        total += read.sum(0)
        n += len(x)
        n_active += int((features != 0).sum())
        spliced = splice_edit(sae, error=False, skip=skip)
        edits: list[list[Edit]] = [[], [spliced], [zero]]
        for i, chosen in enumerate(edits):
            losses[i] += _summed_loss(run(model, ids, chosen).logits, ids)
        n_targets += ids[:, 1:].numel()
    if n < 2:  # of one position nothing varies
        raise ConfigError(
            f"the text is too short to measure an SAE on: it has {n} positions after the first "
            f"{skip}, expected two or more"
        )
    variance = squares - float(total.square().sum()) / n
    return Quality(n, 1 - residual / variance, n_active / n, *(each / n_targets for each in losses))


def _summed_loss(logits: Tensor, ids: Tensor) -> float:
    """Return the sum of the surprisal of every token but the first of each row, in nats."""
    targets = ids[:, 1:].to(logits.device)
    return float(F.cross_entropy(logits[:, :-1].float().mT, targets, reduction="sum"))


@torch.no_grad()
def promoted(
    model: GPT2, sae: SAE, feature: int, top: int, *, n_vocab: int | None = None
) -> list[tuple[int, float]]:
    """Return the tokens whose logits one unit of a feature raises most, and by how much.

    That is its direct path alone: what its direction adds to the residual stream, times the gain of
    the last norm but not its scale, read by the head; relative to the mean over the vocabulary. Ids
    from `n_vocab` on are padding of the head, not tokens. Raises ConfigError for a feature that the
    SAE does not have, and for a model that normalizes after adding, which has no such path.
    """
    config = model.config
    if not (config.norm_first or config.norm == "none"):
        raise ConfigError(
            "what a feature promotes needs a model that normalizes before each part, so that its "
            "path to the logits is a matrix"
        )
    layer, part = check_hook(model, sae.hook)
    added = sae.direction(feature).to(model.dtype)  # (C,)
    if part in _PROJECTIONS:
        added = _linear(model.get_submodule(f"h.{layer}.{_PROJECTIONS[part]}"), added)
    if config.norm == "layernorm":
        added = added - added.mean()
    if config.norm != "none":
        added = added * model.ln_f.get_parameter("weight")
    logits = _linear(model.head, added).float()[:n_vocab]  # (V,)
    values, tokens = (logits - logits.mean()).topk(min(top, len(logits)))
    return [*zip(tokens.tolist(), values.tolist(), strict=True)]


def _linear(read: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what a matrix makes of a vector, without its bias."""
    return read(x[None])[0] - read(torch.zeros_like(x)[None])[0]


@dataclass(frozen=True)
class Active:
    """A feature that is active at a position."""

    position: int
    feature: int
    value: float


def top_features(features: Tensor, top: int) -> list[list[Active]]:
    """Return the strongest features of each position, the strongest first: (T, N).

    Only those that are active, so there may be fewer than `top`.
    """
    values, indices = features.topk(min(top, features.shape[-1]), dim=-1)  # (T, top)
    return [
        [
            Active(position, feature, value)
            for feature, value in zip(chosen, strengths, strict=True)
            if value > 0
        ]
        for position, (chosen, strengths) in enumerate(
            zip(indices.tolist(), values.tolist(), strict=True)
        )
    ]
