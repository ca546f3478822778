"""The native step: one step of GPT-2 in C, for CPUs.

It computes what model.py defines, nearly at the speed at which memory delivers the weights. The C
sources are compiled when the package is installed, if there is a compiler; without one, torch
computes everything. The library is opened with ctypes, and works on torch's own memory: no weight
is copied. `describe` says whether it can run a model; step.c is the step.

    N tokens to read, V vocabulary
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from ctypes import byref, c_int64, pointer
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gpt2kit.cache import KVCache
from gpt2kit.config import ACTIVATIONS
from gpt2kit.engine.native import library
from gpt2kit.engine.native.sketch import Sketch, sketch_of
from gpt2kit.engine.protocol import Nodes
from gpt2kit.engine.snapshot import Snapshot
from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2, MLP, Attention, Block
from gpt2kit.quantize import Int8Embedding, Int8GPT2, Int8Linear
from gpt2kit.variants import Embedding, Linear

# 0 turns the native step off; the name of a level makes it use that one.
VARIABLE = "GPT2KIT_NATIVE"
# 0 turns the shortlist off.
SHORTLIST_VARIABLE = "GPT2KIT_SHORTLIST"

CACHE_DTYPES = (torch.float32, torch.bfloat16)
LEVELS = ("avx512bf16", "avx512vnni", "avx512", "avx2", "dotprod", "plain")

MOST_LIKELY = 256  # the largest top-k that the shortlist serves
LARGE_HEAD = 8 * 2**20  # bytes; a smaller head stays in the processor's cache
GIVE_UP = 8  # a text does without the shortlist once it leaves more than 1/8 of the logits

# The modules that it knows. Anything else, a subclass too, may compute something else.
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


def level() -> str | None:
    """Return the name of the instruction set that the native step uses here.

    None if the step was not compiled or is turned off. Raises ConfigError if GPT2KIT_NATIVE has an
    unknown value, or one that this machine cannot run.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked == "0":
        return None
    native = library.load()
    if asked in ("", "1"):
        return str(native.best_level().decode()) if native else None
    if asked not in LEVELS:
        raise ConfigError(f"{VARIABLE} is {asked!r}, expected 0, 1, {', '.join(LEVELS)}")
    if not native:
        raise ConfigError(f"{VARIABLE} is {asked!r}, but the native step was not compiled here")
    if not native.find_kernels(asked.encode()):
        raise ConfigError(f"{VARIABLE} is {asked!r}, but this processor cannot run that")
    return asked


def describe(model: GPT2) -> Description | None:
    """Return the model as the native step sees it, or None if the step cannot run it.

    It cannot run other shapes than GPT-2's, other dtypes than float32, bfloat16 and int8, other
    devices than the CPU, nor modules with hooks, nor a model whose methods were replaced.
    """
    if vars(model).keys() & {"forward", "hidden", "head"}:
        return None
    is_gpt2 = replace(model.config, bias=True, qkv_bias=True).is_gpt2  # biases may be missing
    if type(model) not in (GPT2, Int8GPT2) or not is_gpt2 or model.dtype not in CACHE_DTYPES:
        return None
    if not all(_is_known(module, model.dtype) for module in model.modules()):
        return None
    return Description(model) if _has_its_shapes(model) else None


def _is_known(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether the native step computes what this module does, and can read its parameters."""
    if type(module) not in _MODULES or module._forward_hooks or module._forward_pre_hooks:
        return False
    is_int8 = isinstance(module, (Int8Embedding, Int8Linear))
    int8_dtypes = {"weight": torch.int8, "scales": torch.float32}
    return all(
        parameter.dtype == (int8_dtypes.get(name, dtype) if is_int8 else dtype)
        and parameter.device.type == "cpu"
        and parameter.is_contiguous()
        for name, parameter in module._parameters.items()
        if parameter is not None
    )


def _has_its_shapes(model: GPT2) -> bool:
    """Whether all parameters have the shapes that the configuration says, as C assumes."""
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    scales = {name: shapes.pop(name) for name in [*shapes] if name.endswith(".scales")}
    rows = {name: shapes.get(name.replace(".scales", ".weight"), ())[:1] for name in scales}
    return shapes == model.config.shapes() and scales == rows


class Description:
    """A model as the native step sees it: the addresses of its weights."""

    def __init__(self, model: GPT2) -> None:
        config = model.config
        self._model = model
        self._snapshot = Snapshot(model)
        wpe: Any = model.wpe
        head: Any = model.wte if config.tie_word_embeddings else model.lm_head
        self._head: nn.Parameter = head.weight
        self._sketch: Sketch | None = None
        self._shortlist_pays = (
            os.environ.get(SHORTLIST_VARIABLE) != "0"
            and self._head.dtype != torch.int8
            and self._head.nbytes >= LARGE_HEAD
            and not self._head.is_inference()  # such a tensor does not count its changes
        )
        layers = (library.Layer * config.n_layer)(*map(_layer, model.h))
        self._struct = library.Model(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_inner=config.inner_size,
            activation=ACTIVATIONS.index(config.activation_function),
            dtype=library.DTYPES[model.dtype],
            epsilon=config.layer_norm_epsilon,
            wte=_matrix(model.wte),
            head=_matrix(head),
            wpe=wpe.weight.data_ptr(),
            ln_f=_norm(model.ln_f),
            layers=layers,
        )

    def is_current(self) -> bool:
        """Whether the model still has these modules and weights, at the same addresses."""
        return self._snapshot.is_current()

    def step(
        self,
        nodes: Nodes,
        wanted: Sequence[bool],
        cache: KVCache,
        level: str,
        most_likely: int = 0,
    ) -> Tensor:
        """Read N tokens and return the logits after the wanted ones, (wanted, V) float32.

        Their keys and values go into the cache, which the caller advances. With `most_likely`,
        logits below this many largest may be minus infinity. Ids, slots and positions must be
        valid: C does not check them. Calls from several threads take turns.
        """
        N, V = len(nodes.tokens), self._model.config.n_vocab
        sketch = self._sketch_for(most_likely, level) if sum(wanted) == 1 else None
        logits = torch.empty((sum(wanted), V), dtype=torch.float32, device="cpu")
        computed = c_int64()
        integers = c_int64 * N
        step = library.Step(
            count=N,
            tokens=integers(*nodes.tokens),
            slots=integers(*nodes.slots),
            positions=integers(*nodes.positions),
            copies=integers(*nodes.copies),
            wanted=bytes(wanted),
            logits=logits.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            batch=cache.batch_size,
            capacity=cache.capacity,
            cache_dtype=library.DTYPES[cache.keys.dtype],
            threads=torch.get_num_threads(),
            sketch=sketch and pointer(sketch.struct),
            most_likely=most_likely if sketch else 0,
            computed=pointer(computed),
        )
        self._run(step, level)
        if computed.value > V // GIVE_UP:
            self._shortlist_pays = False
        return logits

    def _run(self, step: library.Step, level: str) -> None:
        """Give a step its scratch memory and do it."""
        native, model = library.load(), byref(self._struct)
        size = native.scratch_bytes(model, byref(step))
        scratch = torch.empty(size + 64, dtype=torch.uint8, device="cpu")
        step.scratch = (scratch.data_ptr() + 63) // 64 * 64
        if native.decode_step(model, byref(step), level.encode()):
            raise RuntimeError(f"this processor cannot run {level}")

    def _sketch_for(self, most_likely: int, level: str) -> Sketch | None:
        """Return the sketch that finds the largest logits, or None to compute all of them."""
        if not self._shortlist_pays or not 0 < most_likely <= MOST_LIKELY:
            return None
        if self._sketch is None or self._sketch.version != self._head._version:
            self._sketch = sketch_of(self._head, self._struct.head, level)
        return self._sketch


def _layer(block: Any) -> library.Layer:
    attention, mlp = block.attn, block.mlp
    return library.Layer(
        _norm(block.ln_1),
        _norm(block.ln_2),
        _matrix(attention.c_attn),
        _matrix(attention.c_proj),
        _matrix(mlp.c_fc),
        _matrix(mlp.c_proj),
        attention.scale,
    )


def _norm(module: Any) -> library.Norm:
    return library.Norm(module.weight.data_ptr(), _address(module.bias))


def _matrix(module: Any) -> library.Matrix:
    weight, bias = module.weight, getattr(module, "bias", None)
    return library.Matrix(
        weight=weight.data_ptr(),
        scales=_address(getattr(module, "scales", None)),
        bias=_address(bias),
        rows=weight.shape[0],
        columns=weight.shape[1],
        dtype=library.DTYPES[weight.dtype],
        bias_dtype=0 if bias is None else library.DTYPES[bias.dtype],
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
