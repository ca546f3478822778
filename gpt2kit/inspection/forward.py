"""One forward pass, observed: the input and output of every part of the model.

`trace` is `run` with everything recorded but what is computed on access: attention scores and
weights, from the queries and keys.

    B batch, T tokens, C width, H heads, D head size, I width of the MLP's hidden layer,
    V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.folding import folded
from gpt2kit.inspection.hooks import masked_scores
from gpt2kit.inspection.places import find_place, present_in
from gpt2kit.inspection.running import Run, run
from gpt2kit.model import GPT2, Attention

# Places of a layer that are large, or cost time, and can be computed from others.
_COMPUTED = ("masked_scores", "weights")
_ON_ACCESS = {*_COMPUTED, "head_updates"}
_ON_ACCESS |= {
    f"{norm}_{kind}" for norm in ("norm_1", "norm_2", "final") for kind in ("scale", "standardized")
}


@dataclass(frozen=True)
class LayerTrace:
    """One block: attention, MLP, and the residual stream before, between and after them.

    With the norm first, as in GPT-2, middle = before + attention_update and
    after = middle + mlp_update; otherwise each sum is then normalized. Without residual connections
    the updates take the place of the sums. Without an MLP its update is zero.
    """

    before: Tensor  # (B, T, C) the residual stream that enters
    queries: Tensor  # (B, H, T, D)
    keys: Tensor  # (B, H, T, D)
    values: Tensor  # (B, H, T, D)
    scale: float  # factor of the scores
    head_outputs: Tensor  # (B, H, T, D) values averaged by the weights: what c_proj reads
    attention_update: Tensor  # (B, T, C) what attention adds to the residual stream
    middle: Tensor  # (B, T, C) the residual stream after attention
    mlp_before: Tensor  # (B, T, I) before the activation; for SwiGLU the gate
    mlp_after: Tensor  # (B, T, I) after the activation, what c_proj reads; for SwiGLU gated
    mlp_update: Tensor  # (B, T, C) what the MLP adds to the residual stream
    after: Tensor  # (B, T, C) the residual stream that leaves
    # Weights and scores that edits have changed, which queries and keys do not tell
    edited: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    # Computed on access: 12 heads of 1,024 tokens take 50 MB in each layer.

    @property
    def scores(self) -> Tensor:
        """Scaled products of queries (rows) and keys (columns), not masked: (B, H, T, T)."""
        precise = torch.promote_types(self.queries.dtype, torch.float32)
        return self.queries.to(precise) @ self.keys.to(precise).mT * self.scale

    @property
    def masked_scores(self) -> Tensor:
        """The scores, with -inf for keys after the query: (B, H, T, T)."""
        if "masked_scores" in self.edited:
            return self.edited["masked_scores"]
        return masked_scores(self.queries, self.keys, None, self.scale)

    @property
    def weights(self) -> Tensor:
        """How much each token (row) attends to each other (column); rows sum to 1: (B, H, T, T)."""
        if "weights" in self.edited:
            return self.edited["weights"]
        return self.masked_scores.softmax(dim=-1)


@dataclass(frozen=True)
class Trace:
    """Everything that a model computed for some ids, in forward order."""

    model: GPT2
    ids: Tensor  # (B, T)
    token_embeddings: Tensor  # (B, T, C)
    position_embeddings: Tensor  # (T, C)
    embeddings: Tensor  # (B, T, C) their sum
    layers: tuple[LayerTrace, ...]
    final: Tensor  # (B, T, C) the residual stream after the last block
    normalized: Tensor  # (B, T, C) what the head reads
    logits: Tensor  # (B, T, V)

    def __getitem__(self, name: str | tuple[str, int]) -> Tensor:
        """Return an activation by either name, in its shape: `seen["z", 3]`; see `run`."""
        text, layer = (name, None) if isinstance(name, str) else name
        named = find_place(text)
        layer = named.layer if layer is None else layer
        owner: Trace | LayerTrace = self
        if named.place.in_layer:
            if layer is None or not 0 <= layer < len(self.layers):
                raise ConfigError(f"{text}: of which layer? expected 0 to {len(self.layers) - 1}")
            owner = self.layers[layer]
        if not hasattr(owner, named.place.name):
            raise ConfigError(f"a trace does not have {text}; run(…, record=[{text!r}]) does")
        x: Tensor = getattr(owner, named.place.name)
        x = x.expand(len(self.ids), *x.shape) if x.dim() < 3 else x
        return x if named.is_ours else named.place.in_our_order(x)

    def as_transformer_lens(self) -> dict[str, Tensor]:
        """Return the activations by TransformerLens's names, with its default numbers.

        They are folded and centered: see `gpt2kit.inspection.folding`. Raises ConfigError for a
        model for which that is not possible.
        """
        return folded(self)


def trace(model: GPT2, ids: Tensor, *, neurons: bool = True, edits: Sequence[Edit] = ()) -> Trace:
    """Read (B, T) ids and return all activations, without gradients and dropout.

    With `edits`, as in `run`, they are those after the edits. Each layer takes B * T * (8 C + 2 I)
    numbers of memory: for 1,024 tokens 0.6 GB with 124M parameters, 5 GB with 1558M.
    `neurons=False` leaves mlp_before and mlp_after empty, (B, T, 0), as they are without an MLP,
    and takes half of that; `run` records still less. Raises ConfigError for ids of another shape,
    ContextLengthError for more tokens than the model has positions.
    """
    config = model.config
    left_out = {*_ON_ACCESS, *(() if neurons else ("mlp_before", "mlp_after"))}
    names = [place.name for place in present_in(config) if place.name not in left_out]
    names += [edit.place for edit in edits if edit.named.place.name in _COMPUTED]
    found = run(model, ids, edits, names)
    token_embeddings = found["token_embeddings"]
    return Trace(
        model=model,
        ids=found.ids,
        token_embeddings=token_embeddings,
        position_embeddings=_position_embeddings(found),
        embeddings=found["before", 0] if config.n_layer else found["final"],
        layers=tuple(_layer(found, layer) for layer in range(config.n_layer)),
        final=found["final"],
        normalized=found["normalized"],
        logits=found.logits,
    )


def _position_embeddings(found: Run) -> Tensor:
    """Return the position embeddings of the first row, (T, C): zeros if the model has none."""
    if "position_embeddings" in found:
        return found["position_embeddings"][0].to(found["token_embeddings"].dtype)
    return torch.zeros_like(found["token_embeddings"][0])


def _layer(found: Run, layer: int) -> LayerTrace:
    """Name the activations of one layer."""
    update = found["attention_update", layer]
    has_mlp = ("mlp_update", layer) in found
    attention = found.model.get_submodule(f"h.{layer}.attn")
    assert isinstance(attention, Attention)

    def otherwise(default: Tensor, name: str) -> Tensor:
        return found[name, layer] if (name, layer) in found else default  # noqa: SIM401

    return LayerTrace(
        before=found["before", layer],
        queries=found["queries", layer],
        keys=found["keys", layer],
        values=found["values", layer],
        scale=attention.scale,
        head_outputs=found["head_outputs", layer],
        attention_update=update,
        middle=found["middle" if has_mlp else "after", layer],
        mlp_before=otherwise(update[..., :0], "mlp_before"),
        mlp_after=otherwise(update[..., :0], "mlp_after"),
        mlp_update=otherwise(torch.zeros_like(update), "mlp_update"),
        after=found["after", layer],
        edited={name: found[name, layer] for name in _COMPUTED if (name, layer) in found},
    )
