"""One step of GPT-2 in C, for processors: what model.py defines, near the speed at which memory gives the weights.

The library is compiled when the package is installed, if there is a compiler; without it everything runs on torch. It is opened
with ctypes: one call a step, weights and cache used where torch keeps them, nothing copied. `describe` says whether it can run a
model; the C side is step.c.

    N tokens to read, V vocabulary
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int32, c_int64, c_void_p, pointer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2kit.cache import KVCache
from gpt2kit.engine.snapshot import Snapshot
from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2, MLP, Attention, Block, Embedding, Linear
from gpt2kit.quantize import Int8Embedding, Int8GPT2, Int8Linear

VARIABLE = (
    "GPT2KIT_NATIVE"  # 0 turns the native step off; the name of a level makes it use that one
)
CACHE_DTYPES = (torch.float32, torch.bfloat16)
LEVELS = ("avx512bf16", "avx512vnni", "avx512", "avx2", "dotprod", "plain")

# Where no more than so many logits are asked for, of a head of at least so many bytes (it is not in the processor's cache), a sketch
# of it tells which those can be; it is given up where it leaves more than this part of them to be computed.
MOST_LIKELY = 256
LARGE_HEAD = 8 * 2**20
MOST_COMPUTED = 8

# What it knows; anything else, a subclass too, may compute something else.
_MODULES = {
    GPT2,
    Block,
    Attention,
    MLP,
    Embedding,
    Linear,
    nn.ModuleList,
    nn.LayerNorm,
    Int8GPT2,
    Int8Embedding,
    Int8Linear,
}
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # the numbers of step.h
_ACTIVATIONS = ("gelu_new", "gelu", "quick_gelu", "relu", "silu", "tanh")


class _Matrix(Structure):
    _fields_ = (
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("kind", c_int32),
        ("bias_kind", c_int32),
    )


class _Norm(Structure):
    _fields_ = (("gain", c_void_p), ("bias", c_void_p))


class _Layer(Structure):
    _fields_ = (
        ("ln_1", _Norm),
        ("ln_2", _Norm),
        ("c_attn", _Matrix),
        ("attn_proj", _Matrix),
        ("c_fc", _Matrix),
        ("mlp_proj", _Matrix),
        ("attention_scale", c_float),
    )


class _Model(Structure):
    _fields_ = (
        ("n_layer", c_int64),
        ("n_head", c_int64),
        ("n_embd", c_int64),
        ("n_inner", c_int64),
        ("activation", c_int32),
        ("kind", c_int32),
        ("epsilon", c_float),
        ("wte", _Matrix),
        ("head", _Matrix),
        ("wpe", c_void_p),
        ("ln_f", _Norm),
        ("layers", POINTER(_Layer)),
    )


class _Sketch(Structure):
    _fields_ = (
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("norms", c_void_p),
        ("errors", c_void_p),
    )


class _Step(Structure):
    _fields_ = (
        ("count", c_int64),
        ("tokens", POINTER(c_int64)),
        ("slots", POINTER(c_int64)),
        ("positions", POINTER(c_int64)),
        ("wanted", c_char_p),
        ("logits", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("batch", c_int64),
        ("capacity", c_int64),
        ("cache_kind", c_int32),
        ("threads", c_int32),
        ("scratch", c_void_p),
        ("sketch", POINTER(_Sketch)),
        ("most_likely", c_int64),
        ("computed", POINTER(c_int64)),
    )


@functools.cache
def _library() -> Any:
    """Open the compiled library; None where there is none."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_step{suffix}")
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError:  # of another machine or system
                continue
            library.find_kernels.restype = c_void_p
            library.best_level.restype = c_char_p
            library.scratch_bytes.restype = c_int64
            return library
    return None


def level() -> str | None:
    """Return the name of the instructions that the native step uses here, or None where it is missing or turned off.

    Raises ConfigError where GPT2KIT_NATIVE asks for what cannot be.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish == "0":
        return None
    if wish in ("", "1"):
        return str(_library().best_level().decode()) if _library() else None
    if wish not in LEVELS:
        raise ConfigError(f"{VARIABLE} is {wish!r}, expected 0, 1, {', '.join(LEVELS)}")
    if not _library() or not _library().find_kernels(wish.encode()):
        raise ConfigError(
            f"{VARIABLE} is {wish!r}, but {'this processor cannot run that' if _library() else 'nothing was compiled'}"
        )
    return wish


def describe(model: GPT2) -> Description | None:
    """Return the model as the native step sees it, or None where it cannot run it: another shape, dtype or device, or hooks."""
    if type(model) not in (GPT2, Int8GPT2):
        return None
    config = model.config
    if not (
        config.norm == "layernorm"
        and config.norm_first
        and config.mlp == "plain"
        and config.positions == "learned"
    ):
        return None
    dtype = model.dtype
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        if type(module) not in _MODULES or any(
            hooks
        ):  # an adapter, a probe: what they do happens in torch only
            return None
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            own = (
                torch.float32
                if name == "scales"
                else torch.int8
                if isinstance(module, (Int8Embedding, Int8Linear)) and name == "weight"
                else dtype
            )
            if (
                parameter.dtype != own
                or parameter.device.type != "cpu"
                or not parameter.is_contiguous()
            ):
                return None
    return Description(model) if dtype in CACHE_DTYPES else None


class Description:
    """A model's addresses, for the native step, and what they were taken from."""

    def __init__(self, model: GPT2) -> None:
        config = model.config
        self._model = model
        self._snapshot = Snapshot(model)
        wpe: Any = model.wpe
        head: Any = model.wte if config.tie_word_embeddings else model.lm_head
        self._head: nn.Parameter = head.weight
        self._sketch: Sketch | None = None
        # An inference tensor does not say that it was changed in place.
        self._sketch_pays = (
            self._head.dtype != torch.int8
            and self._head.nbytes >= LARGE_HEAD
            and not self._head.is_inference()
        )
        self._layers = (_Layer * config.n_layer)(*(_layer(block) for block in model.h))
        self._struct = _Model(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_inner=config.inner_size,
            activation=_ACTIVATIONS.index(config.activation_function),
            kind=_KINDS[model.dtype],
            epsilon=config.layer_norm_epsilon,
            wte=_matrix(model.wte),
            head=_matrix(head),
            wpe=wpe.weight.data_ptr(),
            ln_f=_norm(model.ln_f),
            layers=self._layers,
        )

    def is_current(self) -> bool:
        """Whether these are still the model's modules and weights, and lie where they did."""
        return self._snapshot.is_current()

    def step(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        wanted: Sequence[bool],
        cache: KVCache,
        level: str,
        most_likely: int = 0,
    ) -> Tensor:
        """Read N tokens, each at a position of a row of the cache, and return the logits after the wanted ones, (wanted, V) float32.

        Tokens of one row follow one another. Keys and values go into the cache; advancing it is the caller's. Where only the
        `most_likely` largest logits are asked for, any of the others may be minus infinity. Steps of several threads take turns.
        """
        N, V = len(tokens), self._model.config.n_vocab
        sketch = self._sketch_for(most_likely, level) if sum(wanted) == 1 else None
        numbers = c_int64 * N
        logits = torch.empty((sum(wanted), V), dtype=torch.float32)
        computed = c_int64()
        step = _Step(
            count=N,
            tokens=numbers(*tokens),
            slots=numbers(*slots),
            positions=numbers(*positions),
            wanted=bytes(wanted),
            logits=logits.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            batch=cache.batch_size,
            capacity=cache.capacity,
            cache_kind=_KINDS[cache.keys.dtype],
            threads=torch.get_num_threads(),
            sketch=sketch and pointer(sketch.struct),
            most_likely=most_likely if sketch else 0,
            computed=pointer(computed),
        )
        scratch = torch.empty(
            _library().scratch_bytes(byref(self._struct), byref(step)) + 64, dtype=torch.uint8
        )
        step.scratch = (scratch.data_ptr() + 63) // 64 * 64
        if _library().decode_step(byref(self._struct), byref(step), level.encode()):
            raise RuntimeError(f"the processor cannot run {level}")
        if computed.value > V // MOST_COMPUTED:
            self._sketch_pays = False
        return logits

    def _sketch_for(self, most_likely: int, level: str) -> Sketch | None:
        """Return the sketch that finds so many logits, or None where computing them all is as good."""
        if not self._sketch_pays or not 0 < most_likely <= MOST_LIKELY:
            return None
        if self._sketch is None or self._sketch.version != self._head._version:
            self._sketch = Sketch(self._struct.head, self._head._version, level)
        return self._sketch


class Sketch:
    """A head in eight bits and how much that leaves out; `version` is that of the weights it was made from."""

    def __init__(self, head: _Matrix, version: int, level: str) -> None:
        self.version = version
        self._weight = torch.empty((head.rows, head.columns), dtype=torch.int8)
        self._numbers = torch.empty((3, head.rows))  # scales, norms, errors
        self.struct = _Sketch(self._weight.data_ptr(), *(row.data_ptr() for row in self._numbers))
        if _library().make_sketch(
            byref(head), byref(self.struct), torch.get_num_threads(), level.encode()
        ):
            raise RuntimeError(f"the processor cannot run {level}")


def _layer(block: Any) -> _Layer:
    attention, mlp = block.attn, block.mlp
    return _Layer(
        _norm(block.ln_1),
        _norm(block.ln_2),
        _matrix(attention.c_attn),
        _matrix(attention.c_proj),
        _matrix(mlp.c_fc),
        _matrix(mlp.c_proj),
        attention.scale,
    )


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight.data_ptr(), None if module.bias is None else module.bias.data_ptr())


def _matrix(module: Any) -> _Matrix:
    weight, bias, scales = (
        module.weight,
        getattr(module, "bias", None),
        getattr(module, "scales", None),
    )
    return _Matrix(
        weight=weight.data_ptr(),
        scales=None if scales is None else scales.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        rows=weight.shape[0],
        columns=weight.shape[1],
        kind=_KINDS[weight.dtype],
        bias_kind=0 if bias is None else _KINDS[bias.dtype],
    )
