"""int8 weights: how they are rounded, what that costs in quality, and the option."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import gpt2kit
from gpt2kit import store
from gpt2kit.checkpoints.load import write_model
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.model import GPT2
from gpt2kit.quantize import Int8GPT2, Int8Linear, quantized, quantized_state, rounded
from gpt2kit.tokenizers.bpe import byte_characters

TEST_DATA = os.environ.get("GPT2KIT_TEST_DATA", "")
TINY = GPT2Config(n_vocab=256, n_ctx=32, n_embd=80, n_head=4, n_layer=2)


@pytest.fixture
def folder() -> Path:
    """The folder of a run with a tiny model, in the format of transformers."""
    path = store.weights_dir() / "tiny"
    path.mkdir()
    (path / "run.json").write_text("{}")
    torch.manual_seed(0)
    write_model(path, GPT2(TINY))
    return path


def int8_of(model: GPT2) -> Int8GPT2:
    state = dict(model.named_parameters())
    result = Int8GPT2(model.config)
    result.load_state_dict(
        dict(quantized_state(model.config, lambda name: state[name].detach())), assign=True
    )
    return result.eval()


# --- rounding -------------------------------------------------------------------------------------


def test_weights_are_within_half_a_step_and_the_largest_of_a_row_becomes_127() -> None:
    weight = torch.randn(2500, 70)
    weight[3] = 0
    whole, scales = quantized(weight)
    assert whole.dtype == torch.int8
    assert whole.abs().amax(dim=1).tolist() == [0 if row == 3 else 127 for row in range(2500)]
    assert ((whole * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()


def test_inputs_are_rounded_in_blocks_of_64_with_a_scale_each() -> None:
    x = torch.randn(3, 150)
    x[:, 64:128] *= 1000  # large numbers in one block do not cost the others precision
    x[1] = 0
    found = rounded(x)
    for block in (slice(0, 64), slice(64, 128), slice(128, 150)):
        step = x[:, block].abs().amax(dim=-1, keepdim=True) / 127
        assert ((found[:, block] - x[:, block]).abs() <= step * 0.5001).all()


def test_a_linear_layer_is_close_to_the_original() -> None:
    original, layer = torch.nn.Linear(256, 100), Int8Linear(100, 256, bias=True)
    layer.weight.data, layer.scales.data = quantized(original.weight.detach())
    layer.bias.data = original.bias.detach()  # type: ignore[union-attr]
    x = torch.randn(50, 256)
    error = (layer(x) - original(x)).pow(2).mean().sqrt() / original(x).pow(2).mean().sqrt()
    assert error < 0.015


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"tie_word_embeddings": False},
        {"bias": False, "qkv_bias": False},
        {"norm": "rmsnorm", "mlp": "swiglu"},
        {"mlp": "none", "positions": "none", "head_bias": True},
        {"head_bias": True, "tie_word_embeddings": False},
        {"head": "none", "n_layer": 0, "n_head": 1, "n_embd": TINY.n_vocab},
    ],
)
def test_every_shape_of_model_can_be_int8(variant: dict[str, object]) -> None:
    model = GPT2(replace(TINY, **variant)).eval()  # type: ignore[arg-type]
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        found, expected = int8_of(model)(ids), model(ids)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_matrices_take_a_quarter_of_the_memory() -> None:
    model = GPT2(TINY)
    size = sum(parameter.nbytes for parameter in int8_of(model).parameters())
    assert size < 0.35 * sum(parameter.nbytes for parameter in model.parameters())


# --- quality, on trained weights ------------------------------------------------------------------


def perplexity(model: GPT2, ids: Tensor, *, by_native: bool) -> float:
    """Return the perplexity of (N, T) ids, read at once or token by token by the native step."""
    with torch.inference_mode():
        if by_native:
            cache, decoder = model.new_cache(len(ids), capacity=ids.shape[1]), Decoder(model)
            logits = torch.stack(
                [
                    decoder.read(ids[:, place : place + 1], cache)
                    for place in range(ids.shape[1] - 1)
                ],
                dim=1,
            )
        else:
            logits = model(ids[:, :-1])
        return math.exp(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        )


@pytest.mark.skipif(
    not Path(TEST_DATA, "models", "shakespeare").is_dir(),
    reason="set GPT2KIT_TEST_DATA to the folder of models/ and corpora/",
)
def test_perplexity_on_trained_weights_is_within_half_a_percent_of_float32(tmp_path: Path) -> None:
    path = shutil.copytree(
        Path(TEST_DATA, "models", "shakespeare"),
        tmp_path / "shakespeare",
        copy_function=shutil.copyfile,
    )
    exact, tokenizer = gpt2kit.load(path)
    model, _ = gpt2kit.load(path, quantize="int8")
    text = Path(TEST_DATA, "corpora", "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert tokenizer is not None
    ids = torch.tensor(tokenizer.encode(text[-20_000:])[: 12 * 256]).view(12, 256)
    expected = perplexity(exact, ids, by_native=False)
    assert abs(perplexity(model, ids, by_native=False) / expected - 1) < 0.005
    few = ids[:8, :64]
    expected = perplexity(exact, few, by_native=False)
    assert abs(perplexity(model, few, by_native=True) / expected - 1) < 0.005
    golden = json.loads((path / "expected.json").read_text())
    greedy = [
        token
        for [token] in gpt2kit.generate_tokens(
            model, [golden["prompt"]], max_tokens=64, sampling=gpt2kit.Sampling(temperature=0)
        )
    ]
    assert [*golden["prompt"], *greedy][:24] == golden["greedy"][:24]


# --- the command line -----------------------------------------------------------------------------


def run(folder: Path, *arguments: str) -> tuple[str, str, int]:
    result = CliRunner().invoke(
        app,
        [
            "generate",
            "a",
            "--model",
            str(folder),
            "--max_tokens",
            "3",
            "--temperature",
            "0",
            *arguments,
        ],
    )
    return result.stdout, result.stderr, result.exit_code


@pytest.fixture
def with_vocabulary(folder: Path) -> Path:
    letters = {letter: number for number, letter in enumerate(byte_characters().values())}
    (folder / "vocab.json").write_text(json.dumps(letters), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def test_statistics_name_int8_and_the_engine(
    with_vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, errors, _ = run(with_vocabulary, "--quantize", "int8", "--stats")
    assert "int8" in errors
    assert ("by native" in errors) == (native.level() is not None)
    monkeypatch.setenv(native.VARIABLE, "0")
    _, errors, _ = run(with_vocabulary, "--stats")
    assert "by torch" in errors


def test_int8_weights_that_were_written_are_named_once_and_no_cache_writes_nothing(
    with_vocabulary: Path,
) -> None:
    # The file appeared without a word.
    before = sorted(with_vocabulary.iterdir())
    out, errors, code = run(with_vocabulary, "--quantize", "int8", "--no_cache")
    assert (code, sorted(with_vocabulary.iterdir())) == (0, before)
    assert "written" not in errors
    same, errors, _ = run(with_vocabulary, "--quantize", "int8")
    assert same == out
    file = store.int8_file(with_vocabulary)
    assert f"int8 weights were written for later starts: {file} (" in errors
    assert file.is_file()
    _, errors, _ = run(with_vocabulary, "--quantize", "int8")
    assert "written" not in errors


def test_an_unknown_quantization_is_one_line(folder: Path) -> None:
    out, errors, code = run(folder, "--quantize", "int7")
    assert (out, code) == ("", 1)
    assert "int7" in errors
    assert "expected int8" in errors
