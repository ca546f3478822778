"""The native step on ARM gives the results of this machine: cross-compiled, and run in an emulator.

Needs a C compiler for ARM and qemu: on Debian the packages gcc-aarch64-linux-gnu,
libc6-dev-arm64-cross and qemu-user.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compiled
from engine_builders import SMALL, difference, ids_of, int8_of, model_of
from test_not_finite import MAKE, PLACES, PROMPT, VALUES, damaged
from torch import Tensor

from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.native import library
from gpt2kit.model import GPT2

ROUNDED = "gcc, every product rounded"  # as the plain level on x86 does: every bit is the same
COMPILERS = {
    "gcc": ["aarch64-linux-gnu-gcc"],
    "clang": ["clang", "--target=aarch64-linux-gnu"],
    ROUNDED: ["aarch64-linux-gnu-gcc", "-ffp-contract=off"],
}
SOURCES = Path(native.__file__).parent
BYTES = (4, 2, 1)  # of a number, by its dtype in step.h
# A processor without dot products, and one with all instructions
PROCESSORS = {"plain": "cortex-a72", "dotprod": "max"}

pytestmark = [
    pytest.mark.slow,
    compiled,
    pytest.mark.skipif(
        not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
        reason="no compiler for ARM, or no emulator of it",
    ),
]


@dataclass(frozen=True)
class Program:
    path: Path
    is_exact: bool  # whether it gives the bits of this machine's plain level


@pytest.fixture(scope="module", params=COMPILERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The step as a program for ARM, compiled as in setup.py, with warnings as errors."""
    compiler = COMPILERS[request.param]
    if not shutil.which(compiler[0]):
        pytest.skip(f"no {compiler[0]} here")
    path = tmp_path_factory.mktemp("arm") / "step"
    flags = [
        "-std=gnu11",
        "-O3",
        "-Wno-psabi",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Wno-missing-field-initializers",
        "-Werror",
        "-static",
    ]
    sources = [*SOURCES.glob("*.c"), Path(__file__).with_name("native_on_arm.c")]
    subprocess.run(
        [*compiler, *flags, f"-I{SOURCES}", *map(str, sources), "-o", str(path), "-lm"], check=True
    )
    return Program(path, is_exact=request.param == ROUNDED and platform.machine() == "x86_64")


class Emulated:
    """Takes the place of the library: each step runs in an emulator, on a copy of its memory."""

    def __init__(self, program: Path, processor: str) -> None:
        self._command = ["qemu-aarch64", "-cpu", processor, str(program)]

    def best_level(self) -> bytes:
        return subprocess.run(
            [*self._command, "level"], capture_output=True, check=True
        ).stdout.strip()

    def find_kernels(self, level: bytes) -> bool:
        return True

    def scratch_bytes(self, model: Any, step: Any) -> int:
        return 0  # the program allocates its own

    def decode_step(self, model: Any, step: Any, level: bytes) -> int:
        """Send the memory that the step reads, and copy back what it wrote."""
        model, step = model._obj, step._obj
        offsets: dict[int, int] = {}  # address of a piece of memory here: its offset in the copy
        memory = bytearray()
        for address, size in [*inputs(model, step), *outputs(model, step)]:
            # Not NULL; and a head that is also the embedding is sent once.
            if address and address not in offsets:
                offsets[address] = len(memory)
                memory += ctypes.string_at(address, size).ljust((size + 63) // 64 * 64 or 64, b"\0")
        words = np.frombuffer(memory, dtype=np.int64)
        addresses = np.flatnonzero(np.isin(words, list(offsets)))
        words[addresses] = [offsets[word] for word in words[addresses].tolist()]
        numbers = (
            len(memory),
            len(addresses),
            offsets[ctypes.addressof(model)],
            offsets[ctypes.addressof(step)],
        )
        header = struct.pack("4q16s", *numbers, level)
        sent = header + (addresses * 8).astype(np.int64).tobytes() + memory
        done = subprocess.run(self._command, input=sent, capture_output=True, check=False)
        if done.returncode == 0:
            for address, size in outputs(model, step):
                ctypes.memmove(address, done.stdout[offsets[address] :][:size], size)
        return done.returncode


def inputs(model: Any, step: Any) -> Iterator[tuple[int | None, int]]:
    """Yield address and size of all memory that a step only reads."""

    def matrix(matrix: Any) -> Iterator[tuple[int | None, int]]:
        yield matrix.weight, matrix.rows * matrix.columns * BYTES[matrix.dtype]
        yield matrix.scales, matrix.rows * 4
        yield matrix.bias, matrix.rows * BYTES[matrix.bias_dtype]

    for whole in (model, step):
        yield ctypes.addressof(whole), ctypes.sizeof(whole)
    layers = model.layers[: model.n_layer]
    yield address_of(model, "layers"), len(layers) * ctypes.sizeof(library.Layer)
    for part in (
        model.wte,
        model.head,
        *(
            part
            for layer in layers
            for part in (layer.c_attn, layer.attn_proj, layer.c_fc, layer.mlp_proj)
        ),
    ):
        yield from matrix(part)
    width = model.n_embd * BYTES[model.dtype]
    for norm in (model.ln_f, *(norm for layer in layers for norm in (layer.ln_1, layer.ln_2))):
        yield norm.weight, width
        yield norm.bias, width
    yield model.wpe, (max(step.positions[: step.count]) + 1) * width
    for name in ("tokens", "slots", "positions"):
        yield address_of(step, name), step.count * 8
    yield address_of(step, "wanted"), step.count


def outputs(model: Any, step: Any) -> Iterator[tuple[int, int]]:
    """Yield address and size of all memory that a step writes."""
    yield address_of(step, "computed"), 8
    yield (
        step.logits,
        sum(ctypes.string_at(address_of(step, "wanted"), step.count)) * model.head.rows * 4,
    )
    cache = model.n_layer * step.batch * step.capacity * model.n_embd * BYTES[step.cache_dtype]
    yield step.keys, cache
    yield step.values, cache


def address_of(whole: ctypes.Structure, name: str) -> int:
    """Return the address in a pointer field of any type."""
    return ctypes.c_void_p.from_buffer(whole, getattr(type(whole), name).offset).value or 0


SHAPES: dict[str, dict[str, Any]] = {
    "three heads of 32": {},
    "odd widths": {"n_embd": 51, "n_head": 3, "n_inner": 37},
    "head of 128": {"n_embd": 256, "n_head": 2, "n_layer": 1},
}
# Tolerances for compilers that fuse multiplications and additions. In the last two, a key or input
# may then round to the neighboring number.
KINDS: dict[str, tuple[Callable[..., GPT2], float]] = {
    "float32": (model_of, 1e-5),
    "bfloat16": (lambda config: model_of(config, torch.bfloat16), 0.01),
    "int8": (lambda config: int8_of(model_of(config)), 0.03),
}


@pytest.mark.parametrize("level", PROCESSORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_cache_are_those_of_this_processor(
    shape: str, kind: str, level: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> list[Tensor]:
        cache = model.new_cache(2, capacity=7)
        return [
            *(Decoder(model).read(part, cache) for part in (ids_of(2, 3), ids_of(2, 2, seed=2))),
            cache.keys,
            cache.values,
        ]

    make, tolerance = KINDS[kind]
    with torch.inference_mode():
        model = make(replace(SMALL, **SHAPES[shape]))
        monkeypatch.setenv(native.VARIABLE, "plain")
        expected = read()
        monkeypatch.delenv(native.VARIABLE)
        monkeypatch.setattr(library, "load", lambda: Emulated(program.path, PROCESSORS[level]))
        assert Decoder(model).name() == f"native {level}"
        found = read()
    other_order = kind == "int8" and level == "dotprod"  # of its sums
    if program.is_exact and not other_order:
        assert all(map(torch.equal, found, expected))
    else:
        assert all(difference(*pair) < tolerance for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("level", PROCESSORS)
@pytest.mark.parametrize("kind", MAKE)
def test_values_that_are_not_finite_reach_the_logits(
    kind: str, level: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "load", lambda: Emulated(program.path, PROCESSORS[level]))
    model = MAKE[kind]()
    for (name, index), value in itertools.product(PLACES[-10::3], VALUES):
        broken = damaged(model, name, index, value)
        with torch.inference_mode():
            logits = Decoder(broken).read([PROMPT], broken.new_cache())
        assert not logits.max().isfinite(), (name, index, value)


def test_a_processor_without_dot_products_is_not_asked_for_them(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "load", lambda: Emulated(program.path, PROCESSORS["plain"]))
    monkeypatch.setenv(native.VARIABLE, "dotprod")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="cannot run dotprod"):
        model = model_of(SMALL)
        Decoder(model).read(ids_of(1, 1), model.new_cache())
