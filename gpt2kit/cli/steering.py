"""--steer: a model is steered after it was loaded, and stderr says how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2kit.cli import output

if TYPE_CHECKING:
    from gpt2kit.generation.request import Request
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer


def check_steer(typed: Sequence[str]) -> None:
    """Raise ConfigError, which shows the syntax, for a --steer that is not understood."""
    if typed:
        from gpt2kit.inspection.steering import parse

        for each in typed:
            parse(each)


def steer_for(
    typed: Sequence[str],
    model: GPT2,
    tokenizer: Tokenizer | None,
    prompts: Sequence[str],
    request: Request,
) -> None:
    """Steer a model for good, and note the strength of each vector beside the prompts' stream.

    Raises ConfigError for prompts that a vector does not go with: see
    `gpt2kit.inspection.steering.check_texts`.
    """
    if not typed:
        return
    import torch

    from gpt2kit.errors import ConfigError
    from gpt2kit.inspection.steering import check_texts, steer, steering_of, strength_of
    from gpt2kit.tokenizers import require_tokenizer
    from gpt2kit.tokenizers.listed import start_of_text

    tokenizer = require_tokenizer(tokenizer, "the model")
    vectors = [steering_of(each, model, tokenizer) for each in typed]
    if not prompts and (first := next((each for each in vectors if not each.everywhere), None)):
        raise ConfigError(
            f"{first.name!r} is for the first positions of a prompt; give the prompt: "
            "generate PROMPT --steer …"
        )
    encoded = [tokenizer.encode(prompt, special=request.special) for prompt in prompts]
    encoded = [ids or start_of_text(tokenizer) for ids in encoded]
    check_texts(
        vectors,
        [len(ids) for ids in encoded],
        max_tokens=request.max_tokens,
        overflow=request.overflow,
        n_ctx=model.config.n_ctx,
    )
    for each in vectors:
        where = "every position" if each.everywhere else _first(len(each.vectors))
        added, beside = each.norm, ""
        if encoded and encoded[0]:
            ids = torch.tensor([encoded[0][: model.config.n_ctx]])
            added, stream = strength_of(model, each, ids)
            beside = f", where the prompt's have {stream:.1f} ({added / stream:.0%})"
        scaled = "" if each.unit is None else ", in proportion to each position's scale"
        line = f"steering: {each.name}: adds a vector of norm {added:.1f} at {where}"
        output.note(line, scaled, beside, dim=True)
    for each in vectors:
        steer(model, each)


def _first(n: int) -> str:
    return "the first position" if n == 1 else f"the first {n} positions"
