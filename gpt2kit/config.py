"""The shape of a GPT-2: its fields, its rules, its sizes and their names.

Field names are those of OpenAI's `hparams.json` (`n_vocab n_ctx n_embd n_head n_layer`) and of Hugging Face's GPT-2
configurations. Reading those files is the work of `gpt2kit.checkpoints`; this module knows only what a shape is.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, fields
from typing import Any

from gpt2kit.errors import ConfigError

ACTIVATIONS = ("gelu_new", "gelu", "quick_gelu", "relu", "silu", "tanh")
ACTIVATION_ALIASES = {
    # Other names for the same function; the first three are how transformers spells GPT-2's tanh approximation.
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_python": "gelu",
    "swish": "silu",
}
NORMS = ("layernorm", "rmsnorm")
MLPS = ("plain", "swiglu")
POSITIONS = ("learned", "sinusoidal")

# Bounds on what a file may ask for, so that a damaged one is refused before anything is allocated.
_LARGEST = {
    "n_vocab": 10**6,
    "n_ctx": 10**6,
    "n_embd": 2**16,
    "n_head": 2**16,
    "n_layer": 1000,
    "n_inner": 2**20,
}


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Everything that decides which function of the token ids a GPT-2 computes; the defaults are the 124M model.

    Raises ConfigError for a value that cannot be, naming the field, the value and the rule.
    """

    n_vocab: int = 50257  # rows of the token embedding: 256 bytes, 50,000 merges, <|endoftext|>
    n_ctx: int = 1024  # positions, the longest text that can be read at once
    n_embd: int = 768  # width of the residual stream
    n_head: int = 12  # attention heads; each has width n_embd / n_head
    n_layer: int = 12  # blocks; 0 leaves embedding, norm and head
    n_inner: int | None = None  # width of the MLP's hidden layer; None is 4 * n_embd

    activation_function: str = "gelu_new"  # of the plain MLP; one of ACTIVATIONS
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # divide the scores by the square root of the head's width
    scale_attn_by_inverse_layer_idx: bool = False  # and by the number of the layer, counted from 1
    reorder_and_upcast_attn: bool = False  # compute attention in float32 whatever the model's dtype
    tie_word_embeddings: bool = (
        True  # the head is the token embedding; otherwise a matrix of its own
    )

    embd_pdrop: float = 0.1  # dropout in training: after the embeddings,
    attn_pdrop: float = 0.1  # on the attention weights,
    resid_pdrop: float = 0.1  # and on what attention and MLP add to the residual stream

    # Not in GPT-2, but in the small models that people train from scratch.
    qkv_bias: bool = True  # biases on queries, keys and values
    bias: bool = True  # biases on the other projections and in LayerNorm
    norm: str = "layernorm"  # one of NORMS
    norm_first: bool = (
        True  # GPT-2's x + f(norm(x)); otherwise the first Transformer's norm(x + f(x))
    )
    mlp: str = "plain"  # one of MLPS
    positions: str = "learned"  # one of POSITIONS

    def __post_init__(self) -> None:
        if isinstance(self.activation_function, str):
            canonical = ACTIVATION_ALIASES.get(self.activation_function, self.activation_function)
            object.__setattr__(self, "activation_function", canonical)
        for field in fields(self):
            self._check(field.name, str(field.type), getattr(self, field.name))
        for name, choices in (
            ("activation_function", ACTIVATIONS),
            ("norm", NORMS),
            ("mlp", MLPS),
            ("positions", POSITIONS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; supported: {', '.join(choices)}")
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"n_embd is {self.n_embd} and n_head {self.n_head}: the width must be a multiple of the heads"
            )
        if self.positions == "sinusoidal" and self.n_embd % 2:
            raise ConfigError(f"n_embd is {self.n_embd}: sinusoidal positions need an even width")

    @staticmethod
    def _check(name: str, declared: str, value: Any) -> None:
        """Raise ConfigError unless the value has the declared type and lies in its range (True is no number here)."""
        if value is None and "None" in declared:
            return
        if declared.startswith("int"):
            lowest = 0 if name == "n_layer" else 1
            if type(value) is not int or not lowest <= value <= _LARGEST[name]:
                raise ConfigError(
                    f"{name} is {_short(value)}, expected a whole number from {lowest} to {_LARGEST[name]:,}"
                )
        elif declared == "bool":
            if type(value) is not bool:
                raise ConfigError(f"{name} is {_short(value)}, expected true or false")
        elif declared == "float":
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ConfigError(f"{name} is {_short(value)}, expected a number")
            if name == "layer_norm_epsilon" and not 0 < value < 1:
                raise ConfigError(f"{name} is {value}, expected a number between 0 and 1")
            if name.endswith("_pdrop") and not 0 <= value < 1:
                raise ConfigError(
                    f"{name} is {value}, expected a share from 0 up to, not including, 1"
                )
        elif type(value) is not str:
            raise ConfigError(f"{name} is {_short(value)}, expected a name")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def is_gpt2(self) -> bool:
        """Whether Hugging Face's GPT-2 computes the same function, so that other programs can run the model."""
        gpt2 = {
            "qkv_bias": True,
            "bias": True,
            "norm": "layernorm",
            "norm_first": True,
            "mlp": "plain",
            "positions": "learned",
        }
        return all(getattr(self, name) == value for name, value in gpt2.items())

    @property
    def n_params(self) -> int:
        """Number of parameters, a tied head not counted twice."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order of the forward pass, matrices as (out, in)."""
        C, inner = self.n_embd, self.inner_size
        norm_bias = self.bias and self.norm == "layernorm"
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (self.n_vocab, C)}
        if self.positions == "learned":
            shapes["wpe.weight"] = (self.n_ctx, C)

        def add(name: str, shape: tuple[int, ...], bias: bool) -> None:
            shapes[f"{name}.weight"] = shape
            if bias:
                shapes[f"{name}.bias"] = shape[:1]

        for layer in range(self.n_layer):
            add(f"h.{layer}.ln_1", (C,), norm_bias)
            add(f"h.{layer}.attn.c_attn", (3 * C, C), self.qkv_bias)
            add(f"h.{layer}.attn.c_proj", (C, C), self.bias)
            add(f"h.{layer}.ln_2", (C,), norm_bias)
            add(f"h.{layer}.mlp.c_fc", (2 * inner if self.mlp == "swiglu" else inner, C), self.bias)
            add(f"h.{layer}.mlp.c_proj", (C, inner), self.bias)
        add("ln_f", (C,), norm_bias)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.n_vocab, C)
        return shapes


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


# The published sizes.              layers      heads       width                     parameters
SIZES: dict[str, GPT2Config] = {
    "distilgpt2": GPT2Config(n_layer=6, n_head=12, n_embd=768),  #                    81,912,576
    "124M": GPT2Config(n_layer=12, n_head=12, n_embd=768),  #                        124,439,808
    "355M": GPT2Config(n_layer=24, n_head=16, n_embd=1024),  #                       354,823,168
    "774M": GPT2Config(n_layer=36, n_head=20, n_embd=1280),  #                       774,030,080
    "1558M": GPT2Config(n_layer=48, n_head=25, n_embd=1600),  #                    1,557,611,200
}

# What people type. OpenAI first announced slightly wrong counts: 117M, 345M, 762M and 1542M are the same models.
ALIASES = {
    "gpt2": "124M",
    "gpt2-small": "124M",
    "openai-community/gpt2": "124M",
    "117M": "124M",
    "small": "124M",
    "gpt2-medium": "355M",
    "openai-community/gpt2-medium": "355M",
    "345M": "355M",
    "medium": "355M",
    "gpt2-large": "774M",
    "openai-community/gpt2-large": "774M",
    "762M": "774M",
    "large": "774M",
    "gpt2-xl": "1558M",
    "openai-community/gpt2-xl": "1558M",
    "1542M": "1558M",
    "1.5B": "1558M",
    "xl": "1558M",
    "distilbert/distilgpt2": "distilgpt2",
}


_NEAR = 0.3  # a mistyped number of parameters is at most so far from the published one, as a share


def canonical_size(name: str) -> str | None:
    """Return the key of SIZES that a name or alias stands for, in any case of letters, or None."""
    known = {key.lower(): key for key in SIZES} | {
        alias.lower(): key for alias, key in ALIASES.items()
    }
    return known.get(name.lower())


def nearest_size(name: str) -> str | None:
    """Return the published size that a mistyped name most likely means, or None where it resembles none."""
    if number := re.fullmatch(r"(\d+(?:\.\d+)?)([mb]?)", name.lower()):
        count = float(number[1]) * (1e9 if number[2] == "b" else 1e6)
        sizes = [size for size in SIZES if size != "distilgpt2"]
        nearest = min(sizes, key=lambda size: abs(SIZES[size].n_params - count))
        return nearest if abs(SIZES[nearest].n_params - count) <= _NEAR * count else None
    names = {key.lower(): key for key in SIZES} | {
        alias.lower(): key for alias, key in ALIASES.items()
    }
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.7)
    return names[close[0]] if close else None
