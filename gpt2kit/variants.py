"""What a configuration may choose in place of GPT-2's own parts: norms, positions, MLPs, the head.

`gpt2kit.model` is GPT-2 itself, and asks here for the parts that its configuration names.

    B batch, T tokens, C width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.cache import Cache
from gpt2kit.config import GPT2Config
from gpt2kit.dropout import dropout


class Linear(nn.Linear):
    """A linear layer without torch's own initialization: `GPT2.init_weights` does it."""

    def reset_parameters(self) -> None: ...


class Embedding(nn.Embedding):
    """An embedding without torch's own initialization: `GPT2.init_weights` does it."""

    def reset_parameters(self) -> None: ...


# --- activations ----------------------------------------------------------------------------------


def gelu_new(x: Tensor) -> Tensor:
    """OpenAI's GELU, by tanh; it differs from the exact one by up to 5e-4."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_new,
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

# --- norms and positions --------------------------------------------------------------------------


def norm(config: GPT2Config) -> nn.Module:
    """Return the normalization of the last dimension, C; "none" is one that does nothing."""
    if config.norm == "none":
        return nn.Identity()
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.layer_norm_epsilon)
    return nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)


def position_embedding(config: GPT2Config) -> nn.Module:
    """Return what turns positions, (T,) or (B, T), into vectors, (…, C)."""
    if config.positions == "none":
        return NoPositions(config.n_embd)
    if config.positions == "sinusoidal":
        return Sinusoids(config.n_embd)
    return Embedding(config.n_ctx, config.n_embd)


class Sinusoids(nn.Module):
    """Fixed positions: sines in even columns, cosines in odd ones (Vaswani et al. 2017, 3.5)."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.n_embd = n_embd

    def forward(self, positions: Tensor) -> Tensor:
        """(T,) or (B, T) -> (…, C)."""
        # float64, which Apple's GPUs do not have
        dtype = torch.float32 if positions.device.type == "mps" else torch.float64
        pairs = torch.arange(0, self.n_embd, 2, device=positions.device, dtype=dtype)  # (C/2,)
        angles = positions[..., None] * 10000.0 ** (-pairs / self.n_embd)  # (…, C/2)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (…, C)


class NoPositions(nn.Module):
    """Zeros for every position: only the causal mask tells the model about order."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.n_embd = n_embd

    def forward(self, positions: Tensor) -> Tensor:
        """(T,) or (B, T) -> (…, C), which take the memory of one number."""
        return torch.zeros((), device=positions.device).expand(*positions.shape, self.n_embd)


# --- blocks ---------------------------------------------------------------------------------------


class SwiGLU(nn.Module):
    """An MLP that one half of its first matrix computes and the other half gates (Shazeer 2020)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.c_fc = Linear(config.n_embd, 2 * config.inner_size, bias=config.bias)
        self.c_proj = Linear(config.inner_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of the residual stream: (B, T, C) -> (B, T, C)."""
        gate, x = self.c_fc(x).chunk(2, dim=-1)  # (B, T, inner) each
        return dropout(self.c_proj(F.silu(gate) * x), self.config.resid_pdrop, self.training)


def run_block(block: Any, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
    """Compute a `gpt2kit.model.Block` in the order of its configuration: (B, T, C) -> (B, T, C)."""
    config = block.config

    def attention(x: Tensor) -> Tensor:
        return block.attn(x, mask, cache)  # type: ignore[no-any-return]

    x = _connected(config, x, block.ln_1, attention)
    return x if config.mlp == "none" else _connected(config, x, block.ln_2, block.mlp)


def _connected(
    config: GPT2Config, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply a part of a block, with its norm and residual connection: (B, T, C) -> (B, T, C)."""
    update = part(norm(x) if config.norm_first else x)
    y = x + update if config.residual else update
    # Normalizing the stream itself, after the addition, is the order of the first Transformer.
    return y if config.norm_first else norm(y)


# --- the head -------------------------------------------------------------------------------------


def own_head(config: GPT2Config) -> Any:
    """Return a head with the parameters that the token embedding does not give: matrix or bias."""
    if config.has_own_head:
        return Linear(config.n_embd, config.n_vocab, bias=config.head_bias)
    return HeadBias(config.n_vocab)


class HeadBias(nn.Module):
    """The bias on the logits of a model whose head is its token embedding."""

    def __init__(self, n_vocab: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(n_vocab))  # (V,)
