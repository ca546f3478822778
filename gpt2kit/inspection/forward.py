"""One forward pass, observed: the input and output of every part of the model.

`trace` puts hooks on the model's own modules, runs the model, and removes them: it repeats none of
the model's arithmetic and costs nothing when unused. Attention scores are the exception, since the
fused attention does not return them: they are computed on access from the queries and keys.

    B batch, T tokens, C width, H heads, D head size, I width of the MLP's hidden layer,
    V vocabulary
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2, Attention


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

    # Computed on access: 12 heads of 1,024 tokens take 50 MB in each layer.

    @property
    def scores(self) -> Tensor:
        """Scaled products of queries (rows) and keys (columns), not masked: (B, H, T, T)."""
        precise = torch.promote_types(self.queries.dtype, torch.float32)
        return self.queries.to(precise) @ self.keys.to(precise).mT * self.scale

    @property
    def masked_scores(self) -> Tensor:
        """The scores, with -inf for keys after the query: (B, H, T, T)."""
        scores = self.scores
        T = scores.shape[-1]
        later = torch.ones(T, T, dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill_(later, -torch.inf)

    @property
    def weights(self) -> Tensor:
        """How much each token (row) attends to each other (column); rows sum to 1: (B, H, T, T)."""
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


def trace(model: GPT2, ids: Tensor, *, neurons: bool = True) -> Trace:
    """Read (B, T) ids and return all activations, without gradients and dropout.

    Each layer takes B * T * (8 C + 2 I) numbers of memory: for 1,024 tokens 0.6 GB with 124M
    parameters, 5 GB with 1558M. `neurons=False` leaves mlp_before and mlp_after empty, (B, T, 0),
    as they are without an MLP, and takes half of that. Raises ConfigError for ids of another shape,
    ContextLengthError for more tokens than the model has positions.
    """
    if ids.dim() != 2:
        raise ConfigError(
            f"expected (B, T) ids, found the shape {tuple(ids.shape)}; "
            "for one text: torch.tensor([ids])"
        )
    made: dict[str, Tensor] = {}  # outputs of modules
    read: dict[str, Tensor] = {}  # inputs of modules
    ids = ids.to(model.device)
    has_mlp = model.config.mlp != "none"
    watched: list[tuple[str, dict[str, Tensor]]] = [
        ("wte", made),
        ("wpe", made),
        ("ln_f", read),
        ("ln_f", made),
    ]
    for layer in range(model.config.n_layer):
        parts = [
            ("", read),
            ("", made),
            ("attn.c_attn", made),
            ("attn.c_proj", read),
            ("attn", made),
            ("ln_1", made),
        ]
        parts += [("ln_2", read), ("mlp", made)] if has_mlp else []
        parts += [("mlp.c_fc", made), ("mlp.c_proj", read)] if has_mlp and neurons else []
        watched += [(f"h.{layer}.{part}".rstrip("."), store) for part, store in parts]
    with torch.no_grad(), _evaluating(model), _hooks(model, watched, read):
        logits = model(ids)
    return Trace(
        model=model,
        ids=ids,
        token_embeddings=made["wte"],
        position_embeddings=made["wpe"].to(made["wte"].dtype),
        embeddings=read["h.0" if model.config.n_layer else "ln_f"],
        layers=tuple(_layer(model, layer, made, read) for layer in range(model.config.n_layer)),
        final=read["ln_f"],
        normalized=made["ln_f"],
        logits=logits,
    )


def _layer(model: GPT2, layer: int, made: dict[str, Tensor], read: dict[str, Tensor]) -> LayerTrace:
    """Name the activations of one block, and split them into heads."""
    config, here = model.config, f"h.{layer}"
    update = made[f"{here}.attn"]
    heads = (*update.shape[:2], config.n_head, config.head_size)
    queries, keys, values = (
        part.view(heads).transpose(1, 2) for part in made[f"{here}.attn.c_attn"].chunk(3, dim=2)
    )
    nothing = update[..., :0]
    inner = made.get(f"{here}.mlp.c_fc", nothing)  # (B, T, I), or (B, T, 2 I) for SwiGLU
    middle = read.get(f"{here}.ln_2", made[here]) if config.norm_first else made[f"{here}.ln_1"]
    attention = model.get_submodule(f"{here}.attn")
    assert isinstance(attention, Attention)
    return LayerTrace(
        before=read[here],
        queries=queries,
        keys=keys,
        values=values,
        scale=attention.scale,
        head_outputs=read[f"{here}.attn.c_proj"].view(heads).transpose(1, 2),
        attention_update=update,
        middle=middle,
        mlp_before=inner.chunk(2, dim=-1)[0] if config.mlp == "swiglu" else inner,
        mlp_after=read.get(f"{here}.mlp.c_proj", nothing),
        mlp_update=made.get(f"{here}.mlp", torch.zeros_like(update)),
        after=made[here],
    )


@contextlib.contextmanager
def _hooks(
    model: nn.Module, watched: Iterable[tuple[str, dict[str, Tensor]]], read: dict[str, Tensor]
) -> Iterator[None]:
    """Meanwhile store each watched module's input (`name, read`) or output (`name, made`)."""
    with contextlib.ExitStack() as stack:
        for name, store in watched:

            def hook(
                module: nn.Module,
                args: Any,
                output: Tensor,
                name: str = name,
                store: dict[str, Tensor] = store,
            ) -> None:
                store[name] = args[0] if store is read else output

            handle = model.get_submodule(name).register_forward_hook(hook)
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off meanwhile."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
