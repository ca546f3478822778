"""The native step computes on ARM what it computes here: cross-compiled, and run by an emulator.

Needs a C compiler for ARM and qemu; on Debian the packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user.
"""

from __future__ import annotations

import ctypes
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
from test_native import SMALL, difference, ids_of, int8_of, model_of
from torch import Tensor

from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.native import library
from gpt2kit.model import GPT2

ROUNDED = "gcc, every product rounded"  # as x86 does without its newer instructions: then every bit is the same
COMPILERS = {
    "gcc": ["aarch64-linux-gnu-gcc"],
    "clang": ["clang", "--target=aarch64-linux-gnu"],
    ROUNDED: ["aarch64-linux-gnu-gcc", "-ffp-contract=off"],
}
SOURCES = Path(native.__file__).parent
BYTES = (4, 2, 1)  # of a number, by its kind
# A processor without dot products, and one with everything.
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
    is_exact: bool  # whether it gives the very bits of this machine's plain level


@pytest.fixture(scope="module", params=COMPILERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The step as a program for ARM, compiled as setup.py does it but for what the name says, every warning an error."""
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
    """Stands for the native library: every step runs in an emulator, on a copy of the memory that it uses."""

    def __init__(self, program: Path, processor: str) -> None:
        self._command = ["qemu-aarch64", "-cpu", processor, str(program)]

    def best_level(self) -> bytes:
        return subprocess.run(
            [*self._command, "level"], capture_output=True, check=True
        ).stdout.strip()

    def find_kernels(self, level: bytes) -> bool:
        return True

    def scratch_bytes(self, model: Any, step: Any) -> int:
        return 0  # it takes its own

    def decode_step(self, model: Any, step: Any, level: bytes) -> int:
        """Send what the step reads, with distances for addresses, and take what it wrote."""
        model, step = model._obj, step._obj
        places: dict[int, int] = {}  # where a piece of our memory lies in the copy
        memory = bytearray()
        for address, size in [*inputs(model, step), *outputs(model, step)]:
            if (
                address and address not in places
            ):  # not NULL, and a head that is the embedding too once
                places[address] = len(memory)
                memory += ctypes.string_at(address, size).ljust((size + 63) // 64 * 64 or 64, b"\0")
        words = np.frombuffer(memory, dtype=np.int64)
        addresses = np.flatnonzero(np.isin(words, list(places)))
        words[addresses] = [places[word] for word in words[addresses].tolist()]
        numbers = (
            len(memory),
            len(addresses),
            places[ctypes.addressof(model)],
            places[ctypes.addressof(step)],
        )
        header = struct.pack("4q16s", *numbers, level)
        sent = header + (addresses * 8).astype(np.int64).tobytes() + memory
        done = subprocess.run(self._command, input=sent, capture_output=True, check=False)
        if done.returncode == 0:
            for address, size in outputs(model, step):
                ctypes.memmove(address, done.stdout[places[address] :][:size], size)
        return done.returncode


def inputs(model: Any, step: Any) -> Iterator[tuple[int | None, int]]:
    """Yield address and bytes of everything that a step reads and does not write."""

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
    """Yield address and bytes of what a step writes."""
    yield address_of(step, "computed"), 8
    yield (
        step.logits,
        sum(ctypes.string_at(address_of(step, "wanted"), step.count)) * model.head.rows * 4,
    )
    cache = model.n_layer * step.batch * step.capacity * model.n_embd * BYTES[step.cache_dtype]
    yield step.keys, cache
    yield step.values, cache


def address_of(whole: ctypes.Structure, name: str) -> int:
    """The address in a field of any pointer's type."""
    return ctypes.c_void_p.from_buffer(whole, getattr(type(whole), name).offset).value or 0


SHAPES: dict[str, dict[str, Any]] = {
    "three heads of 32": {},
    "odd widths": {"n_embd": 51, "n_head": 3, "n_inner": 37},
    "head of 128": {"n_embd": 256, "n_head": 2, "n_layer": 1},
}
# What a product that is not rounded may do: in the last two, a key, or an input, is now and then rounded to the other side.
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
    if program.is_exact and (kind, level) != (
        "int8",
        "dotprod",
    ):  # that takes its sums in another order
        assert all(map(torch.equal, found, expected))
    else:
        assert all(difference(*pair) < tolerance for pair in zip(found, expected, strict=True))


def test_a_processor_without_dot_products_is_not_asked_for_them(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "load", lambda: Emulated(program.path, PROCESSORS["plain"]))
    monkeypatch.setenv(native.VARIABLE, "dotprod")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="cannot run dotprod"):
        model = model_of(SMALL)
        Decoder(model).read(ids_of(1, 1), model.new_cache())
