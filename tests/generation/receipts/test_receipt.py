"""Receipts: they hold what decided a text, and nothing of the text unless asked to."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from conftest import make_model

from gpt2kit import complete
from gpt2kit.generation.receipts.receipt import marks, receipt
from gpt2kit.generation.request import Request
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer


def made(model: GPT2, tokenizer: BPETokenizer, prompt: str, **options: Any) -> Any:
    with_text = options.pop("with_text", False)
    request = Request(max_tokens=20, **options)
    completions = complete(model, tokenizer, prompt, request)
    found = receipt(model, tokenizer, request, completions, with_text=with_text)
    return json.loads(json.dumps(found)), completions


def test_a_receipt_holds_no_text_and_no_prompt_unless_asked_to(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    prompt = "a secret prompt, never told"
    found, (completion,) = made(tiny_model, small_bpe, prompt, seed=1)
    whole = json.dumps(found, ensure_ascii=False)
    assert "secret" not in whole
    assert completion.text not in whole
    assert str(completion.tokens)[1:-1] not in whole
    found, _ = made(tiny_model, small_bpe, prompt, seed=1, with_text=True)
    assert found["prompts"][0]["text"] == prompt
    assert found["texts"][0]["text"] == completion.text


def test_marks_cannot_be_made_without_the_prompt_and_depend_on_all_tokens_before() -> None:
    one, other = marks("a", [5, 6, 7]), marks("b", [5, 6, 7])
    assert len(one) == len(other) == 12
    assert all(one[i : i + 4] != other[i : i + 4] for i in (0, 4, 8))
    changed = marks("a", [5, 8, 7])
    assert changed[:4] == one[:4]
    assert changed[4:8] != one[4:8]
    assert changed[8:] != one[8:]


def test_equal_weights_have_one_digest_and_others_another(
    tiny_model: GPT2, small_bpe: BPETokenizer, tiny_config: Any
) -> None:
    first, _ = made(tiny_model, small_bpe, "a", seed=1)
    again, _ = made(make_model(tiny_config), small_bpe, "a", seed=1)
    assert first == again
    with torch.no_grad():
        tiny_model.wte.weight[3, 3] += 1
    changed, _ = made(tiny_model, small_bpe, "a", seed=1)
    assert changed["weights"] != first["weights"]


def test_a_receipt_names_versions_engine_dtype_threads_and_processors(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    def unchanged(logits: Any, rows: Any) -> Any:
        return logits

    found, _ = made(tiny_model, small_bpe, "a", logits_processors=unchanged)
    assert found["versions"].keys() == {"gpt2kit", "torch", "numpy", "python"}
    assert found["computed"]["dtype"] == "float32"
    assert found["computed"]["threads"] == torch.get_num_threads()
    assert found["computed"]["engine"].split()[0] in ("native", "torch")
    assert found["processors"][0].endswith("unchanged")
    assert isinstance(found["options"]["seed"], int)  # the one that was drawn


@pytest.mark.parametrize("name", ["logprobs", "top_logprobs"])
def test_what_is_only_reported_is_no_option_of_the_text(
    tiny_model: GPT2, small_bpe: BPETokenizer, name: str
) -> None:
    found, _ = made(tiny_model, small_bpe, "a", **{name: 1 if name == "top_logprobs" else True})
    assert name not in found["options"]
