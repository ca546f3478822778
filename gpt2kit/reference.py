"""The same GPT-2 in plain NumPy float64, to check the other one against.

It shares no code with `gpt2kit.model` beyond the configuration: slow, without a cache, one sequence at a time, and short
enough to be checked by eye against the paper and OpenAI's program.

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
    """Return the (T, V) logits after each of the ids; the weights have the names and (out, in) shapes of `config.shapes()`.

    `notes` is given what is computed on the way, under the names of `gpt2kit.inspection.Trace`: notes["embeddings"], and for
    the layers notes["0.weights"].
    """
    notes = {} if notes is None else notes
    notes["token_embeddings"] = double(w["wte.weight"][list(ids)])  # (T, C)
    notes["position_embeddings"] = positions(config, w, len(ids))
    notes["embeddings"] = x = notes["token_embeddings"] + notes["position_embeddings"]
    for layer in range(config.n_layer):
        here = f"h.{layer}."
        notes[f"{layer}.before"] = x
        if config.norm_first:
            x = x + attention(config, w, layer, norm(config, w, here + "ln_1", x), notes)
            notes[f"{layer}.middle"] = x
            x = x + mlp(config, w, layer, norm(config, w, here + "ln_2", x), notes)
        else:
            x = norm(config, w, here + "ln_1", x + attention(config, w, layer, x, notes))
            notes[f"{layer}.middle"] = x
            x = norm(config, w, here + "ln_2", x + mlp(config, w, layer, x, notes))
        notes[f"{layer}.after"] = x
    head = w["wte.weight"] if config.tie_word_embeddings else w["lm_head.weight"]
    notes["final"] = x
    notes["normalised"] = norm(config, w, "ln_f", x)
    return notes["normalised"] @ double(head).T  # (T, V)


def double(array: NDArray[np.floating]) -> Array:
    """Widen one array at the moment of its use, so that float64 copies of all weights never exist at once."""
    return array.astype(np.float64, copy=False)


def positions(config: GPT2Config, w: Weights, n: int) -> Array:
    if config.positions == "learned":
        return double(w["wpe.weight"][:n])
    table = np.zeros((n, config.n_embd))
    for column in range(0, config.n_embd, 2):
        angles = np.arange(n) / 10000 ** (column / config.n_embd)
        table[:, column], table[:, column + 1] = np.sin(angles), np.cos(angles)
    return table


def attention(config: GPT2Config, w: Weights, layer: int, x: Array, notes: Notes) -> Array:
    n, D = len(x), config.head_size
    qkv = linear(w, f"h.{layer}.attn.c_attn", x)  # (T, 3C)
    heads = []
    for head in range(config.n_head):
        q, k, v = (
            qkv[:, part * config.n_embd + head * D :][:, :D] for part in range(3)
        )  # (T, D) each
        scores = q @ k.T  # (T, T)
        if config.scale_attn_weights:
            scores = scores / math.sqrt(D)
        if config.scale_attn_by_inverse_layer_idx:
            scores = scores / (layer + 1)
        masked = np.where(np.tril(np.ones((n, n))) == 1, scores, -np.inf)
        shares = np.exp(masked - masked.max(axis=1, keepdims=True))
        shares = shares / shares.sum(axis=1, keepdims=True)
        heads.append((q, k, v, scores, masked, shares, shares @ v))
    names = ("queries", "keys", "values", "scores", "masked_scores", "weights", "head_outputs")
    notes |= {
        f"{layer}.{name}": np.stack(parts)
        for name, parts in zip(names, zip(*heads, strict=True), strict=True)
    }  # (H, T, …)
    y = np.concatenate([outputs for *_, outputs in heads], axis=1)  # (T, C)
    notes[f"{layer}.attention_update"] = linear(w, f"h.{layer}.attn.c_proj", y)
    return notes[f"{layer}.attention_update"]


def mlp(config: GPT2Config, w: Weights, layer: int, x: Array, notes: Notes) -> Array:
    before = linear(w, f"h.{layer}.mlp.c_fc", x)
    if config.mlp == "swiglu":
        before, x = np.split(before, 2, axis=1)
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
    return x @ double(w[name + ".weight"]).T + bias(w, name)


def bias(w: Weights, name: str) -> Array | float:
    return double(w[name + ".bias"]) if name + ".bias" in w else 0.0


def norm(config: GPT2Config, w: Weights, name: str, x: Array) -> Array:
    if config.norm == "layernorm":
        x = x - x.mean(axis=1, keepdims=True)
    scale: Array = np.sqrt((x**2).mean(axis=1, keepdims=True) + config.layer_norm_epsilon)
    return x / scale * double(w[name + ".weight"]) + bias(w, name)
