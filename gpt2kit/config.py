"""The shape of a GPT-2: its fields and their rules, and the published sizes.

Field names are those of OpenAI's `hparams.json` (`n_vocab n_ctx n_embd n_head n_layer`) and of
Hugging Face's GPT-2 configurations. `gpt2kit.checkpoints` reads those files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option

Activation = Literal["gelu_new", "gelu", "quick_gelu", "relu", "silu", "tanh"]
Norm = Literal["layernorm", "rmsnorm", "none"]
Mlp = Literal["plain", "swiglu", "none"]
Positions = Literal["learned", "sinusoidal", "none"]
Head = Literal["linear", "none"]

ACTIVATIONS = get_args(Activation)
ACTIVATION_ALIASES = {
    # Other names of the same function. The first three are how transformers calls GPT-2's.
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_python": "gelu",
    "swish": "silu",
}


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Everything that decides what a GPT-2 computes; the defaults are the 124M model.

    The upper bounds refuse a damaged file before anything is allocated. Raises ConfigError for a
    value that breaks its rule, with the field, the value and the rule.
    """

    n_vocab: int = option(50257, "Tokens of the vocabulary.", at_least=1, at_most=10**6)
    n_ctx: int = option(
        1024, "Positions: the longest text read at once.", at_least=1, at_most=10**6
    )
    n_embd: int = option(768, "Width of the residual stream.", at_least=1, at_most=2**16)
    n_head: int = option(
        12, "Number of attention heads, a divisor of n_embd.", at_least=1, at_most=2**16
    )
    n_layer: int = option(
        12, "Number of blocks; 0 leaves embedding and head.", at_least=0, at_most=1000
    )
    n_inner: int | None = option(
        None,
        "Width of the MLP's hidden layer.",
        default="4 times n_embd",
        at_least=1,
        at_most=2**20,
    )

    activation_function: Activation = option("gelu_new", "Activation function of the plain MLP.")
    layer_norm_epsilon: float = option(1e-5, "Added to the variance.", above=0, below=1)
    scale_attn_weights: bool = option(True, "Divide scores by the root of the head's width.")
    scale_attn_by_inverse_layer_idx: bool = option(False, "Divide them by the layer's number, too.")
    reorder_and_upcast_attn: bool = option(False, "Compute attention in float32 in any dtype.")
    tie_word_embeddings: bool = option(True, "Use the token embedding as the head, too.")

    embd_pdrop: float = option(0.1, "Dropout after the embeddings.", at_least=0, below=1)
    attn_pdrop: float = option(0.1, "Dropout of attention weights.", at_least=0, below=1)
    resid_pdrop: float = option(0.1, "Dropout of what attention and MLP add.", at_least=0, below=1)

    # Not in GPT-2, but in small models that people train from scratch: see `VARIED`.
    qkv_bias: bool = option(True, "Biases on queries, keys and values.")
    bias: bool = option(True, "Biases on all other projections and in LayerNorm.")
    norm: Norm = option("layernorm", "Normalization.")
    norm_first: bool = option(
        True, "Normalize before attention and MLP, as GPT-2 does; otherwise after."
    )
    mlp: Mlp = option("plain", "plain: two matrices; swiglu: gated by a third; or no MLP.")
    residual: bool = option(True, "Add attention and MLP to their input; otherwise replace it.")
    positions: Positions = option("learned", "Position embedding.")
    head: Head = option("linear", "A matrix; without one, n_embd is the size of the vocabulary.")
    head_bias: bool = option(False, "A bias on the logits.")

    def __post_init__(self) -> None:
        if isinstance(self.activation_function, str):
            canonical = ACTIVATION_ALIASES.get(self.activation_function, self.activation_function)
            object.__setattr__(self, "activation_function", canonical)
        check(self)
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"n_embd is {self.n_embd} and n_head {self.n_head}: "
                "the width must be a multiple of the number of heads"
            )
        if self.positions == "sinusoidal" and self.n_embd % 2:
            raise ConfigError(f"n_embd is {self.n_embd}: sinusoidal positions need an even width")
        if self.head == "none":
            self._check_headless()

    def _check_headless(self) -> None:
        """Raise ConfigError if the residual stream cannot be the logits."""
        if self.n_embd != self.n_vocab:
            raise ConfigError(
                f"n_embd is {self.n_embd} and n_vocab {self.n_vocab}: "
                "without a head the width must be the size of the vocabulary"
            )
        if self.head_bias:
            raise ConfigError("head_bias is true, but head is 'none'; leave one out")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def has_own_head(self) -> bool:
        """Whether the head is a matrix of its own, and not the token embedding."""
        return self.head == "linear" and not self.tie_word_embeddings

    @property
    def is_gpt2(self) -> bool:
        """Whether this is GPT-2's own architecture, which other programs can run."""
        return all(getattr(self, name) == value for name, value in VARIED.items())

    @property
    def n_params(self) -> int:
        """Number of parameters, a tied head not counted twice."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name, matrices as (out, in), in forward order."""
        C, inner = self.n_embd, self.inner_size
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (self.n_vocab, C)}
        if self.positions == "learned":
            shapes["wpe.weight"] = (self.n_ctx, C)

        def add(name: str, shape: tuple[int, ...], bias: bool) -> None:
            shapes[f"{name}.weight"] = shape
            if bias:
                shapes[f"{name}.bias"] = shape[:1]

        def add_norm(name: str) -> None:
            if self.norm != "none":
                add(name, (C,), self.bias and self.norm == "layernorm")

        for layer in range(self.n_layer):
            add_norm(f"h.{layer}.ln_1")
            add(f"h.{layer}.attn.c_attn", (3 * C, C), self.qkv_bias)
            add(f"h.{layer}.attn.c_proj", (C, C), self.bias)
            if self.mlp != "none":
                width = 2 * inner if self.mlp == "swiglu" else inner
                add_norm(f"h.{layer}.ln_2")
                add(f"h.{layer}.mlp.c_fc", (width, C), self.bias)
                add(f"h.{layer}.mlp.c_proj", (C, inner), self.bias)
        add_norm("ln_f")
        if self.has_own_head:
            shapes["lm_head.weight"] = (self.n_vocab, C)
        if self.head_bias:
            shapes["lm_head.bias"] = (self.n_vocab,)
        return shapes


# The fields that GPT-2 does not have, with the values under which a model is GPT-2's.
VARIED: dict[str, bool | str] = {
    "qkv_bias": True,
    "bias": True,
    "norm": "layernorm",
    "norm_first": True,
    "mlp": "plain",
    "residual": True,
    "positions": "learned",
    "head": "linear",
    "head_bias": False,
}

# The published sizes.              layers      heads       width                     parameters
SIZES: dict[str, GPT2Config] = {
    "distilgpt2": GPT2Config(n_layer=6, n_head=12, n_embd=768),  #                    81,912,576
    "124M": GPT2Config(n_layer=12, n_head=12, n_embd=768),  #                        124,439,808
    "355M": GPT2Config(n_layer=24, n_head=16, n_embd=1024),  #                       354,823,168
    "774M": GPT2Config(n_layer=36, n_head=20, n_embd=1280),  #                       774,030,080
    "1558M": GPT2Config(n_layer=48, n_head=25, n_embd=1600),  #                    1,557,611,200
}
