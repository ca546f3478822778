"""GPT-2 as a torch module: ids in, logits out.

The modules carry the names of the published checkpoints. Nothing here reads files, knows a tokenizer or draws samples.

    B batch, T new tokens, S cached + new, C width, H heads, D head size, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.dropout import attention, dropout
from gpt2kit.errors import ContextLengthError

ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(
        x, approximate="tanh"
    ),  # OpenAI's; differs from the exact one by up to 5e-4
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class GPT2(nn.Module):
    """A GPT-2 language model.

    `model(ids)` reads (B, T) token ids and returns the (B, T, V) logits of each next token; `model(ids, cache=cache)` goes on
    where the cache ends, and leaves the new tokens in it.
    """

    is_quantized = False  # whether matrices are kept in fewer bits, as gpt2kit.quantize does

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.n_vocab, config.n_embd)
        self.wpe = (
            Embedding(config.n_ctx, config.n_embd)
            if config.positions == "learned"
            else Sinusoids(config)
        )
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = norm(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.n_embd, config.n_vocab, bias=False)
        if self.device.type != "meta":
            self.init_weights()

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the logits of the token after each of the given ones: (B, T) -> (B, T, V)."""
        return self.head(self.hidden(ids, cache))

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return what the head reads, the normalised end of the residual stream: (B, T) -> (B, T, C).

        Raises ContextLengthError for more tokens than the model has positions or the cache has room.
        """
        n = ids.shape[1]
        if n > self.config.n_ctx:
            raise ContextLengthError(
                f"{n} tokens were given, but the model reads at most {self.config.n_ctx}",
                requested=n,
                limit=self.config.n_ctx,
            )
        positions = (
            torch.arange(n, device=ids.device) if cache is None else cache.positions(n)
        )  # (T,) or (B, T)
        mask = None if cache is None else cache.mask(n)
        x = self.wte(ids)  # (B, T, C)
        x = x + self.wpe(positions).to(x.dtype)
        x = dropout(x, self.config.embd_pdrop, self.training)
        for block in self.h:
            x = block(x, mask, cache)
        if cache is not None:
            cache.advance(n)
        return self.ln_f(x)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states into logits: (…, C) -> (…, V)."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the head, (V, C): the token embedding, unless the model has one of its own."""
        return self.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.wte.weight.dtype

    def new_cache(self, batch_size: int = 1, *, capacity: int | None = None) -> KVCache:
        """Return an empty cache of this model's shape, dtype and device, with room for n_ctx tokens or fewer."""
        return KVCache(
            self.config, batch_size, capacity=capacity, dtype=self.dtype, device=self.device
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set the weights a training from scratch starts with: OpenAI's, and the paper's smaller ones into the residual stream."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1.0)
            else:
                std = 0.01 if name == "wpe.weight" else 0.02
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                parameter.normal_(0.0, std, generator=generator)


class Block(nn.Module):
    """Attention, then MLP, each adding its update to the residual stream."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.ln_1 = norm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        if self.norm_first:
            x = x + self.attn(self.ln_1(x), mask, cache)  # (B, T, C)
            return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]
        x = self.ln_1(x + self.attn(x, mask, cache))
        return self.ln_2(x + self.mlp(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention with queries, keys and values from one matrix."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.scale = 1 / math.sqrt(config.head_size) if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        heads = (B, T, self.config.n_head, self.config.head_size)
        q, k, v = (
            part.view(heads).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        if self.config.reorder_and_upcast_attn and x.dtype.itemsize < 4:
            q, k, v = q.float(), k.float(), v.float()
        p = self.config.attn_pdrop if self.training else 0.0
        # Without a mask, one new token sees all keys and several see the keys up to their own. `is_causal` lines up the first
        # query with the first key, which is right only where nothing was read before: elsewhere the cache gives a mask.
        causal = mask is None and T > 1
        y = attention(q, k, v, mask=mask, p=p, causal=causal, scale=self.scale)
        y = y.transpose(1, 2).reshape(B, T, C).to(x.dtype)  # (B, H, T, D) -> (B, T, C)
        return dropout(self.c_proj(y), self.config.resid_pdrop, self.training)


class MLP(nn.Module):
    """Two matrices with an activation between, or SwiGLU: one half of the first matrix gates the other."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.activation = ACTIVATION[config.activation_function]
        width = config.inner_size * (2 if config.mlp == "swiglu" else 1)
        self.c_fc = Linear(config.n_embd, width, bias=config.bias)
        self.c_proj = Linear(config.inner_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)  # (B, T, inner), or (B, T, 2 * inner) for SwiGLU
        if self.config.mlp == "swiglu":
            gate, x = x.chunk(2, dim=-1)  # (B, T, inner) each
            x = F.silu(gate) * x
        else:
            x = self.activation(x)
        return dropout(self.c_proj(x), self.config.resid_pdrop, self.training)  # (B, T, C)


class Sinusoids(nn.Module):
    """The first Transformer's fixed positions: sines in the even columns, cosines in the odd ones (Vaswani et al. 2017, 3.5)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_embd = config.n_embd

    def forward(self, positions: Tensor) -> Tensor:
        precise = (
            torch.float32 if positions.device.type == "mps" else torch.float64
        )  # MPS has no float64
        pairs = torch.arange(0, self.n_embd, 2, device=positions.device, dtype=precise)  # (C/2,)
        angles = positions[..., None] * 10000.0 ** (-pairs / self.n_embd)  # (…, C/2)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (…, C)


class Linear(nn.Linear):
    """A linear layer that GPT2.init_weights fills, so that its own, different initialisation would be wasted."""

    def reset_parameters(self) -> None: ...


class Embedding(nn.Embedding):
    """A table that GPT2.init_weights fills."""

    def reset_parameters(self) -> None: ...


def precise(logits: Tensor) -> Tensor:
    """Return logits in float32, or wider where they are: for what is drawn from them, ranked by them or summed over them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def norm(config: GPT2Config) -> nn.Module:
    """Return the configuration's normalisation of the last dimension."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.layer_norm_epsilon)
    return nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
