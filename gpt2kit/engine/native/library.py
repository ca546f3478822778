"""The compiled library of the native step: opened with ctypes, and checked against this code.

The structs are those of step.h, field by field.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import itertools
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

import torch

from gpt2kit.config import ACTIVATIONS
from gpt2kit.errors import ConfigError

# Each dtype's number in step.h
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class Matrix(Structure):
    """A weight matrix, in torch's own memory."""

    _fields_ = (
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("dtype", c_int32),
        ("bias_dtype", c_int32),
    )


class Norm(Structure):
    """A layer norm."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Layer(Structure):
    """One block of the model."""

    _fields_ = (
        ("ln_1", Norm),
        ("ln_2", Norm),
        ("c_attn", Matrix),
        ("attn_proj", Matrix),
        ("c_fc", Matrix),
        ("mlp_proj", Matrix),
        ("attention_scale", c_float),
    )


class Model(Structure):
    """The model."""

    _fields_ = (
        ("n_layer", c_int64),
        ("n_head", c_int64),
        ("n_embd", c_int64),
        ("n_inner", c_int64),
        ("activation", c_int32),
        ("dtype", c_int32),
        ("epsilon", c_float),
        ("wte", Matrix),
        ("head", Matrix),
        ("wpe", c_void_p),
        ("ln_f", Norm),
        ("layers", POINTER(Layer)),
    )


class Sketch(Structure):
    """The head rounded to int8, with bounds of the error."""

    _fields_ = (
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("norms", c_void_p),
        ("errors", c_void_p),
    )


class Step(Structure):
    """One step: tokens to read, and where."""

    _fields_ = (
        ("count", c_int64),
        ("tokens", POINTER(c_int64)),
        ("slots", POINTER(c_int64)),
        ("positions", POINTER(c_int64)),
        ("copies", POINTER(c_int64)),
        ("wanted", c_char_p),
        ("logits", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("batch", c_int64),
        ("capacity", c_int64),
        ("cache_dtype", c_int32),
        ("threads", c_int32),
        ("scratch", c_void_p),
        ("sketch", POINTER(Sketch)),
        ("most_likely", c_int64),
        ("computed", POINTER(c_int64)),
    )


@functools.cache
def load() -> Any:
    """Open the compiled library, or return None if there is none.

    Raises ConfigError if it was compiled from sources that do not fit this code.
    """
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_step{suffix}")
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError:  # compiled for another machine or system
                continue
            check(library, path)
            library.find_kernels.restype = c_void_p
            library.best_level.restype = c_char_p
            library.scratch_bytes.restype = c_int64
            library.checksum.restype = c_uint64
            return library
    return None


def check(library: Any, path: Path) -> None:
    """Raise ConfigError unless the library has the structs and activation functions of Python."""
    try:
        library.struct_sizes.restype = POINTER(c_int64)
        library.activation_name.restype = c_char_p
        sizes = itertools.takewhile(bool, library.struct_sizes())
        names = itertools.takewhile(bool, map(library.activation_name, itertools.count()))
        structs = (Matrix, Norm, Layer, Model, Sketch, Step)
        fits = list(sizes) == list(map(ctypes.sizeof, structs)) and (
            tuple(name.decode() for name in names) == ACTIVATIONS
        )
    except AttributeError:  # an older library, without these functions
        fits = False
    if not fits:
        raise ConfigError(
            f"{path} was compiled from other sources than this version of gpt2kit; reinstall "
            "gpt2kit, or in its source folder run: python setup.py build_ext --inplace"
        )
