"""GPT-2 as a torch module: token ids in, logits out.

Read it from the top: `GPT2` is the whole model, `Block` one layer of it, `Attention` and `MLP` the
two halves of a layer. The modules carry the names of the published checkpoints. What a model may
have in place of GPT-2's parts, such as another norm, is in `gpt2kit.variants`. Nothing here reads
files, knows a tokenizer or draws samples.

    B batch, T new tokens, S cached + new tokens, C width, H heads, D head size, V vocabulary
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit import variants
from gpt2kit.attention import scaled_dot_product_attention
from gpt2kit.cache import Cache, KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.dropout import dropout
from gpt2kit.errors import ContextLengthError
from gpt2kit.variants import Embedding, Linear


class GPT2(nn.Module):
    """A GPT-2 language model.

    `model(ids)` reads (B, T) token ids and returns (B, T, V) logits: for every token, the scores of
    the token that follows it. `model(ids, cache=cache)` continues the text in the cache and adds
    the new tokens to it.
    """

    is_quantized = False  # True for int8 weights: see gpt2kit.quantize

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.n_vocab, config.n_embd)  # a vector for each token
        self.wpe = variants.position_embedding(config)  # a vector for each position
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = variants.norm(config)
        if config.has_own_head or config.head_bias:  # GPT-2 uses wte as the head, without a bias
            self.lm_head = variants.own_head(config)
        if self.device.type != "meta":
            self.init_weights()

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the logits of the token after each of the given ones: (B, T) -> (B, T, V)."""
        return self.head(self.hidden(ids, cache))

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return what the head reads, the normalized residual stream: (B, T) -> (B, T, C).

        Raises ContextLengthError for more tokens than the model has positions or the cache has
        room for.
        """
        T = ids.shape[1]
        if self.config.n_ctx < T:
            limit = self.config.n_ctx
            message = f"{T} tokens were given, but the model reads at most {limit}"
            raise ContextLengthError(message, requested=T, limit=limit)
        if cache is None:
            positions, mask = torch.arange(T, device=ids.device), None  # (T,)
        else:
            positions, mask = cache.positions(T), cache.mask(T)  # (T,) or (B, T)

        # The residual stream: what the token is, plus where it stands
        x = self.wte(ids)  # (B, T, C)
        x = x + self.wpe(positions).to(x.dtype)
        x = dropout(x, self.config.embd_pdrop, self.training)

        # Every block reads the stream and adds to it
        for block in self.h:
            x = block(x, mask, cache)
        if cache is not None:
            cache.advance(T)
        return self.ln_f(x)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states into logits: (…, C) -> (…, V)."""
        if self.config.head == "none":  # the hidden states are the logits
            return hidden
        return F.linear(hidden, self.head_weight, self.head_bias)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, (V, C): the token embedding, unless the model has a separate one."""
        return self.lm_head.weight if self.config.has_own_head else self.wte.weight

    @property
    def head_bias(self) -> Tensor | None:
        """The bias on the logits, (V,), which GPT-2 does not have."""
        return self.lm_head.bias if self.config.head_bias else None

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.wte.weight.dtype

    def new_cache(self, batch_size: int = 1, *, capacity: int | None = None) -> KVCache:
        """Return an empty cache in the model's dtype and device, for `capacity` or n_ctx tokens."""
        return KVCache(
            self.config, batch_size, capacity=capacity, dtype=self.dtype, device=self.device
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights as OpenAI did, as a start for training from scratch.

        Matrices that write into the residual stream start smaller, by the square root of the
        number of such matrices (Radford et al. 2019, section 2.3).
        """
        writers = sum(name.endswith("c_proj.weight") for name, _ in self.named_parameters())
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1.0)
            elif name == "wpe.weight":
                parameter.normal_(0.0, 0.01, generator=generator)
            elif name.endswith("c_proj.weight"):
                parameter.normal_(0.0, 0.02 / math.sqrt(writers), generator=generator)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)


class Block(nn.Module):
    """One layer: attention, then an MLP, each adding its update to the residual stream."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.is_gpt2 = config.is_gpt2
        self.config = config
        self.ln_1 = variants.norm(config)
        self.attn = Attention(config, layer)
        if config.mlp != "none":
            self.ln_2 = variants.norm(config)
            self.mlp = variants.SwiGLU(config) if config.mlp == "swiglu" else MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Return the residual stream after this layer: (B, T, C) -> (B, T, C)."""
        if not self.is_gpt2:  # the same parts, connected as the configuration says
            return variants.run_block(self, x, mask, cache)
        # Each part reads the normalized stream; the stream itself is only added to
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention: each token gathers from itself and the tokens before it."""

    # A name of its own, so that gpt2kit.inspection can show and change the attention weights.
    attend = staticmethod(scaled_dot_product_attention)

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.scale = 1 / math.sqrt(config.head_size) if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Return the update of the residual stream: (B, T, C) -> (B, T, C).

        `mask` is True where a query may look at a key, (T, S) or (B, 1, T, S); None is plain
        causal attention.
        """
        B, T, C = x.shape

        # One matrix computes queries, keys and values; each is cut into H heads
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        q, k, v = (self.split_heads(each) for each in (q, k, v))  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D) each
        if self.config.reorder_and_upcast_attn and x.dtype.itemsize < 4:
            q, k, v = q.float(), k.float(), v.float()

        # softmax(q @ k.T * scale) @ v, each token seeing no later one. torch's `is_causal` assumes
        # that the first query belongs to the first key; a cache that holds tokens gives a mask
        # instead, or none for one new token, which may see every key.
        y = self.attend(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.config.attn_pdrop if self.training else 0.0,
            is_causal=mask is None and T > 1,
            scale=self.scale,
        )  # (B, H, T, D)

        # Heads side by side again, then mixed by the output projection
        y = y.transpose(1, 2).reshape(B, T, C).to(x.dtype)  # (B, T, C)
        return dropout(self.c_proj(y), self.config.resid_pdrop, self.training)

    def split_heads(self, x: Tensor) -> Tensor:
        """Cut the width into heads: (B, T, C) -> (B, H, T, D)."""
        B, T, _ = x.shape
        return x.view(B, T, self.config.n_head, self.config.head_size).transpose(1, 2)


class MLP(nn.Module):
    """Two matrices with an activation between them, applied to each token by itself."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.activation = variants.ACTIVATION[config.activation_function]
        self.c_fc = Linear(config.n_embd, config.inner_size, bias=config.bias)
        self.c_proj = Linear(config.inner_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of the residual stream: (B, T, C) -> (B, T, C)."""
        x = self.activation(self.c_fc(x))  # (B, T, inner)
        return dropout(self.c_proj(x), self.config.resid_pdrop, self.training)  # (B, T, C)
