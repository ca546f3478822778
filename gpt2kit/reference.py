"""The same GPT-2 in plain NumPy float64, to check the torch model against.

It shares no code with `gpt2kit.model` but the configuration. It is slow, has no cache and reads one
sequence at a time: short enough to be checked by eye against the paper and OpenAI's program.

    T tokens, C width, H heads, D head size, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt2kit.config import GPT2Config

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.floating]]
Notes = dict[str, Array]


def logits(config: GPT2Config, w: Weights, ids: Sequence[int], notes: Notes | None = None) -> Array:
    """Return the logits after each of the ids: T ids -> (T, V).

    The weights have the names and the (out, in) shapes of `config.shapes()`. Intermediate results
    are stored in `notes`, under the names of `gpt2kit.inspection.Trace`: notes["embeddings"], and
    with the layer in front notes["0.weights"].
    """
    notes = {} if notes is None else notes
    notes["token_embeddings"] = double(w["wte.weight"][list(ids)])  # (T, C)
    notes["position_embeddings"] = positions(config, w, len(ids))  # (T, C)
    notes["embeddings"] = x = notes["token_embeddings"] + notes["position_embeddings"]
    for layer in range(config.n_layer):
        x = block(config, w, layer, x, notes)  # (T, C)
    notes["final"] = x
    notes["normalized"] = norm(config, w, "ln_f", x)
    if config.head == "none":
        return notes["normalized"]
    head = w["wte.weight"] if config.tie_word_embeddings else w["lm_head.weight"]  # (V, C)
    return notes["normalized"] @ double(head).T + bias(w, "lm_head")  # (T, V)


def block(config: GPT2Config, w: Weights, layer: int, x: Array, notes: Notes) -> Array:
    """One layer, attention and then the MLP: (T, C) -> (T, C)."""
    ln_1, ln_2 = f"h.{layer}.ln_1", f"h.{layer}.ln_2"
    stream = 1.0 if config.residual else 0.0  # whether a part's output is added or takes its place
    notes[f"{layer}.before"] = x
    if config.norm_first:
        x = stream * x + attention(config, w, layer, norm(config, w, ln_1, x), notes)
    else:
        x = norm(config, w, ln_1, stream * x + attention(config, w, layer, x, notes))
    notes[f"{layer}.middle"] = x
    if config.mlp == "none":
        notes[f"{layer}.mlp_before"] = notes[f"{layer}.mlp_after"] = x[:, :0]
        notes[f"{layer}.mlp_update"] = np.zeros_like(x)
    elif config.norm_first:
        x = stream * x + mlp(config, w, layer, norm(config, w, ln_2, x), notes)
    else:
        x = norm(config, w, ln_2, stream * x + mlp(config, w, layer, x, notes))
    notes[f"{layer}.after"] = x
    return x


def positions(config: GPT2Config, w: Weights, T: int) -> Array:
    """The embeddings of the first T positions: (T, C)."""
    if config.positions == "learned":
        return double(w["wpe.weight"][:T])
    table = np.zeros((T, config.n_embd))
    if config.positions == "none":
        return table
    for column in range(0, config.n_embd, 2):
        angles = np.arange(T) / 10000 ** (column / config.n_embd)  # (T,)
        table[:, column], table[:, column + 1] = np.sin(angles), np.cos(angles)
    return table


def attention(config: GPT2Config, w: Weights, layer: int, x: Array, notes: Notes) -> Array:
    """Causal self-attention, one head after the other: (T, C) -> (T, C)."""
    T, D = len(x), config.head_size
    qkv = linear(w, f"h.{layer}.attn.c_attn", x)  # (T, 3C)
    queries, keys, values = np.split(qkv, 3, axis=1)  # (T, C) each
    heads = []
    for head in range(config.n_head):
        own = slice(head * D, (head + 1) * D)  # the head's columns
        q, k, v = queries[:, own], keys[:, own], values[:, own]  # (T, D) each
        scores = q @ k.T  # (T, T)
        if config.scale_attn_weights:
            scores = scores / math.sqrt(D)
        if config.scale_attn_by_inverse_layer_idx:
            scores = scores / (layer + 1)
        masked = np.where(np.tril(np.ones((T, T))) == 1, scores, -np.inf)  # no later token
        weights = softmax(masked)  # (T, T)
        heads.append((q, k, v, scores, masked, weights, weights @ v))
    names = ("queries", "keys", "values", "scores", "masked_scores", "weights", "head_outputs")
    for name, parts in zip(names, zip(*heads, strict=True), strict=True):
        notes[f"{layer}.{name}"] = np.stack(parts)  # (H, T, D) or (H, T, T)
    y = np.concatenate([outputs for *_, outputs in heads], axis=1)  # (T, C)
    notes[f"{layer}.attention_update"] = linear(w, f"h.{layer}.attn.c_proj", y)
    return notes[f"{layer}.attention_update"]


def softmax(x: Array) -> Array:
    """Turn the scores of each row into shares that sum to 1: (T, T) -> (T, T)."""
    exponentials: Array = np.exp(x - x.max(axis=1, keepdims=True))
    shares: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def mlp(config: GPT2Config, w: Weights, layer: int, x: Array, notes: Notes) -> Array:
    """Two matrices with an activation between them, or SwiGLU: (T, C) -> (T, C)."""
    before = linear(w, f"h.{layer}.mlp.c_fc", x)  # (T, inner)
    if config.mlp == "swiglu":
        before, x = np.split(before, 2, axis=1)  # (T, inner) each
        after = before / (1 + np.exp(-before)) * x
    else:
        after = ACTIVATION[config.activation_function](before)
    notes[f"{layer}.mlp_before"], notes[f"{layer}.mlp_after"] = before, after
    notes[f"{layer}.mlp_update"] = linear(w, f"h.{layer}.mlp.c_proj", after)
    return notes[f"{layer}.mlp_update"]


ACTIVATION: dict[str, Callable[[Array], Array]] = {
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def linear(w: Weights, name: str, x: Array) -> Array:
    """x W^T + b: (T, in) -> (T, out)."""
    return x @ double(w[name + ".weight"]).T + bias(w, name)


def bias(w: Weights, name: str) -> Array | float:
    """A layer's bias, (out,), or 0 if it has none."""
    return double(w[name + ".bias"]) if name + ".bias" in w else 0.0


def norm(config: GPT2Config, w: Weights, name: str, x: Array) -> Array:
    """LayerNorm; or RMSNorm, which does not subtract the mean; or none: (T, C) -> (T, C)."""
    if config.norm == "none":
        return x
    if config.norm == "layernorm":
        x = x - x.mean(axis=1, keepdims=True)
    scale: Array = np.sqrt((x**2).mean(axis=1, keepdims=True) + config.layer_norm_epsilon)  # (T, 1)
    return x / scale * double(w[name + ".weight"]) + bias(w, name)


def double(array: NDArray[np.floating]) -> Array:
    """Widen an array to float64 when it is used, so that all weights are never there twice."""
    return array.astype(np.float64, copy=False)
