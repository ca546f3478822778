"""The native step: the same logits as torch, and torch wherever it cannot run."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import compiled
from engine_builders import (
    SMALL,
    TOLERANCE,
    block_of,
    difference,
    ids_of,
    int8_of,
    model_of,
    torch_logits,
)

from gpt2kit.config import ACTIVATIONS
from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.native import library
from gpt2kit.errors import ConfigError
from gpt2kit.generation.request import Sampling
from gpt2kit.generation.text import generate_tokens
from gpt2kit.model import GPT2

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are too small for more threads
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def assert_native(model: GPT2) -> None:
    assert Decoder(model).name() == f"native {native.level()}"


def compare(model: GPT2, tolerance: float = TOLERANCE, batch: int = 2) -> None:
    """Read three pieces of text with the native step and with torch, and compare the results."""
    assert_native(model)
    decoder, ours, theirs = (
        Decoder(model),
        model.new_cache(batch, capacity=20),
        model.new_cache(batch, capacity=20),
    )
    for number, n in enumerate((5, 1, 2)):
        ids = ids_of(batch, n, V=model.config.n_vocab, seed=number)
        assert difference(decoder.read(ids, ours), torch_logits(model, ids, theirs)) < tolerance
    assert ours.lengths == theirs.lengths == [8] * batch
    if model.config.n_layer:
        assert difference(ours.keys[..., :8, :], theirs.keys[..., :8, :]) < tolerance
        assert difference(ours.values[..., :8, :], theirs.values[..., :8, :]) < tolerance


# --- the same logits as torch --------------------------------------------------------------------


@compiled
def test_float32_logits_are_those_of_torch(level: str) -> None:
    compare(model_of(SMALL))


@compiled
def test_bfloat16_logits_are_closer_to_float64_than_those_of_torch(level: str) -> None:
    model = model_of(SMALL, torch.bfloat16)
    assert_native(model)
    exact = model_of(SMALL, torch.bfloat16).double()
    ids = ids_of(2, 7)
    expected = torch_logits(exact, ids, exact.new_cache(2))
    ours = difference(Decoder(model).read(ids, model.new_cache(2)), expected)
    assert ours < 0.01
    assert ours < difference(torch_logits(model, ids, model.new_cache(2)), expected)


@compiled
def test_int8_logits_are_those_of_torch(level: str) -> None:
    # A key may round to the neighboring bfloat16, or an input to the neighboring int8.
    compare(int8_of(model_of(SMALL)), tolerance=0.01)


VARIANTS = {
    **{f"activation {name}": {"activation_function": name} for name in ACTIVATIONS},
    "untied head": {"tie_word_embeddings": False},
    "no biases": {"bias": False, "qkv_bias": False},
    "no bias on q, k, v": {"qkv_bias": False},
    "inner width": {"n_inner": 50},
    "odd widths": {"n_embd": 51, "n_head": 3, "n_inner": 37},
    "one head": {"n_head": 1},
    "head of 128": {"n_embd": 256, "n_head": 2},
    "no layers": {"n_layer": 0},
    "epsilon": {"layer_norm_epsilon": 0.1},
    "unscaled": {"scale_attn_weights": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "one token": {"n_vocab": 1},
}


@compiled
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_gpt2_has_the_same_logits(variant: str, level: str) -> None:
    compare(model_of(replace(SMALL, **VARIANTS[variant])))


@compiled
@pytest.mark.parametrize(
    "variant",
    [
        {"norm": "rmsnorm"},
        {"norm_first": False},
        {"mlp": "swiglu"},
        {"positions": "sinusoidal"},
        {"norm": "none"},
        {"residual": False},
        {"mlp": "none"},
        {"positions": "none"},
        {"head_bias": True},
        {"head": "none", "n_layer": 0, "n_embd": SMALL.n_vocab, "n_head": 1},
    ],
)
def test_torch_runs_models_of_other_shapes(variant: dict[str, object]) -> None:
    model = model_of(replace(SMALL, **variant))  # type: ignore[arg-type]
    assert Decoder(model).name() == "torch"
    ids, cache = ids_of(1, 3), model.new_cache()
    assert torch.equal(Decoder(model).read(ids, cache), torch_logits(model, ids, model.new_cache()))


@compiled
@pytest.mark.parametrize(
    "make",
    [
        model_of,
        lambda config: int8_of(model_of(config)),
        lambda config: model_of(config, torch.bfloat16),
    ],
)
def test_a_row_is_the_same_alone_in_a_batch_and_with_any_number_of_threads(
    make: object, level: str
) -> None:
    model: GPT2 = make(SMALL)  # type: ignore[operator]
    ids = ids_of(7, 2)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(Decoder(model).read(ids, model.new_cache(7)))
    alone = torch.cat(
        [Decoder(model).read(ids[row : row + 1], model.new_cache()) for row in range(7)]
    )
    assert all(torch.equal(logits, alone) for logits in found)


@compiled
def test_rows_of_different_lengths_after_truncate_keep_and_fill(
    level: str,
) -> None:
    model = model_of(SMALL)
    decoder, ours, theirs = (
        Decoder(model),
        model.new_cache(3, capacity=24),
        model.new_cache(3, capacity=24),
    )
    for cache in (ours, theirs):
        model.hidden(ids_of(3, 9), cache)
        cache.truncate([9, 4, 1])
    for number in range(3):
        ids = ids_of(3, 1, seed=number)
        assert difference(decoder.read(ids, ours), torch_logits(model, ids, theirs)) < TOLERANCE
    other = model.new_cache(capacity=5)
    model.hidden(ids_of(1, 5), other)
    for cache in (ours, theirs):
        cache.keep([2, 0])
        cache.fill([1], other, 0)
    ids = ids_of(2, 2)
    assert difference(decoder.read(ids, ours), torch_logits(model, ids, theirs)) < TOLERANCE
    assert ours.lengths == theirs.lengths == [6, 7]


@compiled
def test_a_long_prompt_is_read_in_several_steps() -> None:
    model = int8_of(model_of(replace(SMALL, n_ctx=300)))
    ids = ids_of(1, 270)
    whole, single = model.new_cache(), model.new_cache()
    found = Decoder(model).read(ids, whole)
    for position in range(270):
        expected = Decoder(model).read(ids[:, position : position + 1], single)
    assert torch.equal(found, expected)
    assert torch.equal(whole.keys[..., :270, :], single.keys[..., :270, :])


ROWS = [[5, 6, 7, 8], [9], [], list(range(20))]  # more tokens than one step reads


@compiled
@pytest.mark.parametrize(
    "make",
    [
        model_of,
        lambda config: int8_of(model_of(config)),
        lambda config: model_of(config, torch.bfloat16),
    ],
)
def test_several_tokens_of_a_row_have_the_logits_that_they_have_one_at_a_time(
    make: object, level: str
) -> None:
    model: GPT2 = make(SMALL)  # type: ignore[operator]
    decoder, together = Decoder(model), model.new_cache(4)
    decoder.read(ids_of(4, 3), together)
    together.truncate([3, 1, 2, 0])
    found = decoder.read_each(ROWS, together)
    assert together.lengths == [7, 2, 2, 20]
    for row, tokens in enumerate(ROWS):
        single = model.new_cache()
        decoder.read(ids_of(4, 3)[row : row + 1], single)
        single.truncate([[3, 1, 2, 0][row]])
        expected = [decoder.read(torch.tensor([[token]]), single) for token in tokens]
        assert torch.equal(found[row], torch.cat([torch.empty(0, SMALL.n_vocab), *expected]))
        assert torch.equal(
            together.keys[:, row, :, : single.lengths[0]], single.keys[:, 0, :, : single.lengths[0]]
        )


# Widths and heads that are no multiple of a vector, more inputs than a block has, and more columns.
UNEVEN = replace(SMALL, n_ctx=100, n_embd=84, n_head=4, n_inner=900, n_layer=2)
CUTS = ((1,), (2, 3, 90), (7, 40), (13, 14, 15, 33, 80), (16, 32, 48, 64, 80))


@compiled
@pytest.mark.parametrize("n_embd", [84, 64, 16])
@pytest.mark.parametrize(
    "make",
    [
        model_of,
        lambda config: int8_of(model_of(config)),
        lambda config: model_of(config, torch.bfloat16),
    ],
    ids=["float32", "int8", "bfloat16"],
)
def test_a_prompt_has_the_same_bits_however_it_is_cut_and_beside_other_rows(
    make: object, n_embd: int, level: str
) -> None:
    """Compilers fused a multiplication with an addition in one of two loops for the same sum."""
    config = replace(UNEVEN, n_embd=n_embd)
    model: GPT2 = make(config)  # type: ignore[operator]
    decoder, prompt = Decoder(model), ids_of(97, V=config.n_vocab, seed=3).tolist()
    single = model.new_cache()
    expected = [decoder.read([[token]], single)[0] for token in prompt]
    for cuts in ((), *CUTS):
        cache, ends = model.new_cache(4), [*cuts, len(prompt)]
        decoder.read([[1] * 5, [2]], cache, slots=[0, 3])
        for start, end in zip([0, *cuts], ends, strict=True):
            beside = [[3], prompt[start:end], [4, 5]]
            found = decoder.read(beside, cache, slots=[0, 2, 3])[1]
            assert torch.equal(found, expected[end - 1])
        assert torch.equal(cache.keys[:, 2, :, :97], single.keys[:, 0, :, :97])
        assert torch.equal(cache.values[:, 2, :, :97], single.values[:, 0, :, :97])


@compiled
def test_damaged_weights_give_no_finite_logits() -> None:
    model = model_of(SMALL)
    block_of(model, 1).mlp.c_fc.weight[3, 4] = float("nan")
    assert not Decoder(model).read(ids_of(1, 1), model.new_cache()).isfinite().any()


# --- generation ----------------------------------------------------------------------------------


@compiled
def test_generation_gives_the_same_tokens_with_and_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(replace(SMALL, n_ctx=16))
    for sampling in (Sampling(temperature=0), Sampling(temperature=0.7, top_k=5)):
        prompts = [[1, 2, 3], [4], [5, 6, 7, 8]]
        found = list(
            generate_tokens(model, prompts, max_tokens=30, sampling=sampling, seed=3)
        )  # slides
        monkeypatch.setenv(native.VARIABLE, "0")
        assert Decoder(model).name() == "torch"
        assert found == list(
            generate_tokens(model, prompts, max_tokens=30, sampling=sampling, seed=3)
        )
        monkeypatch.delenv(native.VARIABLE)


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "avx1024")
    with pytest.raises(ConfigError, match="avx1024"):
        native.level()


@compiled
@pytest.mark.parametrize("struct", ["Matrix", "Norm", "Layer", "Model", "Sketch", "Step"])
def test_a_library_of_other_structs_is_refused(
    struct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing compared the structs of Python with those of C."""
    fields = (*getattr(library, struct)._fields_, ("new", ctypes.c_double))
    monkeypatch.setattr(library, struct, type(struct, (ctypes.Structure,), {"_fields_": fields}))
    with pytest.raises(ConfigError, match="compiled from other sources.*build_ext --inplace"):
        library.check(library.load(), Path("_step.so"))


@compiled
def test_a_library_of_other_activation_functions_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "ACTIVATIONS", ACTIVATIONS[::-1])
    with pytest.raises(ConfigError, match="compiled from other sources"):
        library.check(library.load(), Path("_step.so"))


def test_an_older_library_is_refused() -> None:
    with pytest.raises(ConfigError, match="compiled from other sources"):
        library.check(ctypes.CDLL(None), Path("_step.so"))


# --- threads and processes -----------------------------------------------------------------------


@compiled
def test_several_threads_can_decode_at_once() -> None:
    torch.set_num_threads(3)
    model, ids = model_of(SMALL), ids_of(1, 4)
    expected = Decoder(model).read(ids, model.new_cache())
    wrong = []

    def work() -> None:
        with torch.inference_mode():
            decoder = Decoder(model)
            for _ in range(50):
                if not torch.equal(decoder.read(ids, model.new_cache()), expected):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_can_decode() -> None:
    program = """
import os, torch
from gpt2kit import GPT2, GPT2Config
from gpt2kit.engine.decoder import Decoder
torch.set_num_threads(2)
model = GPT2(GPT2Config(n_vocab=11, n_ctx=8, n_embd=32, n_head=2, n_layer=2)).eval()
with torch.inference_mode():
    read = lambda: Decoder(model).read(torch.tensor([[1]]), model.new_cache())
    expected = read()
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(read(), expected) else 3)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0


# --- compiling -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["cc", "clang", "no-such-compiler"])
def test_it_is_compiled_by_any_compiler_and_left_out_without_one(
    compiler: str, tmp_path: Path
) -> None:
    if (
        compiler == "clang"
        and subprocess.run(["which", "clang"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no clang here")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(tmp_path / "lib"),
        "--build-temp",
        str(tmp_path / "temp"),
    ]
    environment = os.environ | {"CC": compiler, "LDSHARED": f"{compiler} -shared"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "lib").rglob("_step*"))
    assert len(built) == (compiler != "no-such-compiler")
    for path in built:
        library.check(ctypes.CDLL(str(path)), path)
