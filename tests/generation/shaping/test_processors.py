"""Processors of the caller's own: what they see, what they may return, and alone as together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import make_model
from torch import Tensor

from gpt2kit import complete, generate, generate_tokens
from gpt2kit.config import GPT2Config
from gpt2kit.errors import GenerationError
from gpt2kit.generation.shaping.processors import RowView
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer


def alternating(logits: Tensor, rows: Sequence[RowView]) -> Tensor:
    """Let even and odd ids take turns, by a count that each row keeps for itself."""
    for own, row in zip(logits, rows, strict=True):
        n, total = row.memory.get("sum", (0, 0))
        total += sum(row.tokens[n:])
        row.memory["sum"] = len(row.tokens), total
        assert total == sum(row.tokens)
        own[(total + row.sample) % 2 :: 2] = -math.inf
    return logits


def test_a_processor_sees_every_row_and_all_logits(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    seen: list[list[RowView]] = []

    def watch(logits: Tensor, rows: Sequence[RowView]) -> Tensor:
        assert logits.shape == (len(rows), small_bpe.n_vocab)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        seen.append(list(rows))
        return logits

    prompts = ["ab", "the end"]
    found = complete(
        tiny_model,
        small_bpe,
        prompts,
        num_samples=2,
        max_tokens=40,
        seed=1,
        logits_processors=watch,
    )
    assert [row.sample for row in seen[0]] == [0, 1, 0, 1]
    lengths = [len(small_bpe.encode(prompt)) for prompt in prompts for _ in range(2)]
    assert [row.prompt_length for row in seen[0]] == lengths
    longest = max(found, key=lambda each: len(each.tokens))
    assert any(list(row.generated) == longest.tokens[:-1] for row in seen[-1])
    plain = complete(tiny_model, small_bpe, prompts, num_samples=2, max_tokens=40, seed=1)
    assert found == plain  # all logits and the shortlist choose the same


@pytest.mark.parametrize("draft", [None, "lookup", "model"])
def test_a_processor_that_remembers_gives_the_same_text_alone_and_in_a_batch(
    tiny_model: GPT2, tiny_config: GPT2Config, small_bpe: BPETokenizer, draft: Any
) -> None:
    options: Any = {"seed": 1, "max_tokens": 30, "logits_processors": [alternating], "top_k": 0}
    options |= {"logprobs": True, "draft": draft}
    if draft == "model":
        options["draft"] = make_model(tiny_config, seed=3)
    prompts = ["ab", "the end of", "xyz"]
    together = complete(tiny_model, small_bpe, prompts, num_samples=2, **options)
    if draft == "lookup":
        assert together == complete(
            tiny_model, small_bpe, prompts, num_samples=2, **{**options, "draft": None}
        )
    for i, prompt in enumerate(prompts):
        total = sum(small_bpe.encode(prompt))
        for sample in range(2):
            (alone,) = complete(tiny_model, small_bpe, prompt, first_sample=sample, **options)
            assert alone == together[2 * i + sample]
            running = total
            for token in alone.tokens:
                assert token % 2 != (running + sample) % 2
                running += token


def test_processors_run_in_their_order_and_before_every_option(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    def only_three(logits: Tensor, rows: Sequence[RowView]) -> Tensor:
        return torch.full_like(logits, -math.inf).index_fill(1, torch.tensor([3, 5]), 0.0)

    def no_more_five(logits: Tensor, rows: Sequence[RowView]) -> Tensor:
        assert logits[0, 5] == 0
        logits[:, 5] = -1000
        return logits

    both: Any = {"logits_processors": (only_three, no_more_five), "max_tokens": 4}
    assert complete(tiny_model, small_bpe, "a", **both)[0].tokens == [3] * 4
    lifted = {**both, "logit_bias": {3: -100}, "max_tokens": 1}
    assert complete(tiny_model, small_bpe, "a", **lifted)[0].tokens == [3]
    banned = small_bpe.decode([3])
    assert complete(tiny_model, small_bpe, "a", **both, ban=banned)[0].tokens == [5] * 4


def test_log_probabilities_are_the_models_own_whatever_a_processor_does(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    def only_seven(logits: Tensor, rows: Sequence[RowView]) -> Tensor:
        logits[:] = -math.inf
        logits[:, 7] = 0
        return logits

    (found,) = complete(
        tiny_model, small_bpe, "ab", max_tokens=1, logits_processors=only_seven, logprobs=True
    )
    with torch.no_grad():
        logits = tiny_model(torch.tensor([small_bpe.encode("ab")]))[0, -1, : small_bpe.n_vocab]
    assert found.logprobs == pytest.approx([logits.log_softmax(dim=-1)[7].item()], abs=1e-5)


def test_generate_tokens_takes_processors_too(tiny_model: GPT2) -> None:
    steps = list(generate_tokens(tiny_model, [[1, 2]], max_tokens=9, logits_processors=alternating))
    assert len(steps) == 9
    assert all(token % 2 != 3 % 2 for token in steps[0])


class Wrong:
    """Returns what it is told to."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self, logits: Tensor, rows: Sequence[RowView]) -> Any:
        return self._value(logits)


def spoiled(value: float, *columns: int) -> Any:
    return lambda logits: logits.index_fill(1, torch.tensor(columns or range(512))[:512], value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda logits: None, r"Wrong returned None, expected a \(1, 512\) float32 tensor"),
        (lambda logits: logits[:, 1:], r"Wrong returned a \(1, 511\) float32 tensor, expected a"),
        (lambda logits: logits.double(), r"Wrong returned a \(1, 512\) float64 tensor"),
        (spoiled(math.nan, 3), r"Wrong returned NaN for sample 0, new token 0; expected finite"),
        (spoiled(math.inf, 3), r"Wrong returned infinity for sample 0"),
        (spoiled(-math.inf), r"Wrong returned minus infinity for every token"),
    ],
)
def test_what_cannot_be_used_is_one_error_that_names_the_processor(
    value: Any, message: str
) -> None:
    model = make_model(GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=1))
    with pytest.raises(GenerationError, match=message):
        list(generate_tokens(model, [[1]], logits_processors=Wrong(value)))


def test_an_error_of_the_processor_itself_comes_through(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    def fails(logits: Tensor, rows: Sequence[RowView]) -> Tensor:
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        generate(tiny_model, small_bpe, "a", logits_processors=fails)
