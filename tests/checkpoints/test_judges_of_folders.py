"""Programs that read the folders that `convert` writes: CTranslate2, mlx-lm, optimum.

Each has a virtual environment of its own, in a folder that GPT2KIT_JUDGES names:

    ct2        ctranslate2==4.8.5 with torch and transformers==5.23.0
    mlx        mlx[cpu]==0.32.4 and mlx-lm==0.32.2
    optimum    optimum-onnx[onnxruntime]==0.1.0 and transformers==4.57.6
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model

from gpt2kit.checkpoints.exports import export_onnx
from gpt2kit.checkpoints.load import open_checkpoint, write_model
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

pytestmark = pytest.mark.slow

CONFIG = GPT2Config(n_vocab=512, n_ctx=48, n_embd=64, n_head=4, n_layer=3)
PROMPT = [1, 2, 3, 50, 60, 70, 511, 83]
N = 30  # tokens to write
TOLERANCE = 2e-5

CTRANSLATE2 = """
import json, sys
import ctranslate2, numpy, transformers
from ctranslate2.converters import TransformersConverter
folder, prompt, n, beyond = json.loads(sys.argv[1])
TransformersConverter(folder).convert(folder + "-ct2")
model = ctranslate2.Generator(folder + "-ct2", device="cpu", compute_type="float32")
tokens = transformers.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(prompt)
def write(n):
    how = dict(max_length=n, sampling_topk=1, include_prompt_in_result=False, end_token=[])
    return model.generate_batch([tokens], **how)[0].sequences_ids[0]
try:
    too_long = len(write(beyond))
except RuntimeError as error:
    too_long = str(error)
logits = numpy.array(model.forward_batch([prompt]))[0].tolist()
print("ANSWER" + json.dumps({"logits": logits, "ids": write(n), "too_long": too_long}))
"""

MLX = """
import json, sys
import mlx.core as mx
mx.set_default_device(mx.cpu)
import mlx_lm
from mlx_lm.generate import generate_step
folder, prompt, n, _ = json.loads(sys.argv[1])
try:
    model, tokenizer = mlx_lm.load(folder)
except ValueError as error:
    print("ANSWER" + json.dumps({"refused": str(error)}))
    sys.exit()
logits = model(mx.array([prompt]))[0].tolist()
ids = [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=n)]
text = "The new word was wider."
print("ANSWER" + json.dumps({"logits": logits, "ids": ids, "text": tokenizer.encode(text)}))
"""

OPTIMUM = """
import json, sys
import torch
from optimum.onnxruntime import ORTModelForCausalLM
folder, prompt, n, _ = json.loads(sys.argv[1])
model = ORTModelForCausalLM.from_pretrained(folder)
ids = torch.tensor([prompt, [0, 0, *prompt[:-2]]])
mask = torch.ones_like(ids)
mask[1, :2] = 0
how = dict(max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0)
written = model.generate(ids, attention_mask=mask, **how)[:, len(prompt):].tolist()
logits = model(input_ids=ids[:1], attention_mask=mask[:1]).logits[0].tolist()
print("ANSWER" + json.dumps({"logits": logits, "ids": written}))
"""


def judged(judge: str, script: str, folder: Path) -> dict[str, Any]:
    """Return what a script finds in the environment of a judge."""
    python = Path(os.environ.get("GPT2KIT_JUDGES", "judges")).absolute() / judge / "bin" / "python"
    if not python.exists():
        pytest.skip(f"GPT2KIT_JUDGES has no environment {judge}")
    given = json.dumps([str(folder), PROMPT, N, 2 * CONFIG.n_ctx])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, "-c", script, given], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.rpartition("ANSWER")[2])
    return found


def written(folder: Path, small_bpe: BPETokenizer, **fields: Any) -> tuple[Path, GPT2]:
    """Write a model of random weights and return it."""
    model = make_model(replace(CONFIG, **fields))
    folder.mkdir()
    write_model(folder, model, small_bpe)
    return folder, model


@torch.inference_mode()
def logits_of(model: GPT2) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([PROMPT]))[0]
    return logits


@torch.inference_mode()
def greedy(model: GPT2, prompt: list[int]) -> list[int]:
    """Return the likeliest tokens, each after all before it, without our own generation."""
    ids = [*prompt]
    for _ in range(N):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def difference(found: dict[str, Any], model: GPT2) -> float:
    return float((torch.tensor(found["logits"]) - logits_of(model)).abs().max())


def test_ctranslate2_computes_the_same(tmp_path: Path, small_bpe: BPETokenizer) -> None:
    folder, model = written(tmp_path / "model", small_bpe)
    found = judged("ct2", CTRANSLATE2, folder)
    assert difference(found, model) < TOLERANCE
    assert found["ids"] == greedy(model, PROMPT)
    assert "position" in found["too_long"]  # it raises past n_ctx, and writes nothing wrong


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_norm_epsilon": 1e-2},
        {"layer_norm_epsilon": 1e-6},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=str,
)
def test_what_ctranslate2_takes_for_something_else_is_what_the_page_says(
    tmp_path: Path, small_bpe: BPETokenizer, fields: dict[str, Any]
) -> None:
    folder, model = written(tmp_path / "model", small_bpe, **fields)
    found = judged("ct2", CTRANSLATE2, folder)
    assert difference(found, model) > 3 * TOLERANCE
    plain = make_model(CONFIG)
    plain.load_state_dict(model.state_dict())
    assert difference(found, plain) < TOLERANCE


@pytest.mark.parametrize("fields", [{}, {"layer_norm_epsilon": 1e-2}], ids=["", "epsilon"])
def test_mlx_lm_computes_the_same(
    tmp_path: Path, small_bpe: BPETokenizer, fields: dict[str, Any]
) -> None:
    folder, model = written(tmp_path / "model", small_bpe, **fields)
    found = judged("mlx", MLX, folder)
    assert difference(found, model) < TOLERANCE
    assert found["ids"] == greedy(model, PROMPT)
    assert found["text"] == small_bpe.encode("The new word was wider.")


@pytest.mark.parametrize("fields", [{"tie_word_embeddings": False}, {"n_inner": 96}], ids=str)
def test_mlx_lm_refuses_what_it_does_not_have(
    tmp_path: Path, small_bpe: BPETokenizer, fields: dict[str, Any]
) -> None:
    folder, _ = written(tmp_path / "model", small_bpe, **fields)
    assert "refused" in judged("mlx", MLX, folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_function": "relu"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=str,
)
def test_what_mlx_lm_takes_for_something_else_is_what_the_page_says(
    tmp_path: Path, small_bpe: BPETokenizer, fields: dict[str, Any]
) -> None:
    folder, model = written(tmp_path / "model", small_bpe, **fields)
    found = judged("mlx", MLX, folder)
    assert difference(found, model) > 3 * TOLERANCE
    plain = make_model(CONFIG)
    plain.load_state_dict(model.state_dict())
    assert difference(found, plain) < TOLERANCE


def test_optimum_computes_the_same_from_our_graph(tmp_path: Path, small_bpe: BPETokenizer) -> None:
    folder, model = written(tmp_path / "model", small_bpe)
    export_onnx(tmp_path / "onnx", open_checkpoint(folder), small_bpe)
    found = judged("optimum", OPTIMUM, tmp_path / "onnx")
    assert difference(found, model) < TOLERANCE
    assert found["ids"] == [greedy(model, PROMPT), greedy(model, PROMPT[:-2])]
