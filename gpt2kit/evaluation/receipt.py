"""What a table of surprisals was computed with, and a sentence on it for a Methods section."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from gpt2kit import __version__
from gpt2kit.engine.snapshot import weights_sha256
from gpt2kit.evaluation.criteria_options import CriteriaOptions
from gpt2kit.evaluation.perplexity import default_stride
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, identity, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

_UNITS = {"2": "bits", "e": "nats", "10": "decimal digits (base 10)"}
_PUNCTUATION = {
    "keep": "Punctuation was kept with its word",
    "split": "Punctuation at the edges of words was split off",
    "drop": "The tokens of punctuation at the edges of words were left out of the sums",
}
_FIRST = {
    "bos": "after the end-of-text token",
    "none": "without a token before it, so that the first token has no surprisal",
}
_BOUNDARY = {"whitespace": "white space or the end of the text", "space": "a space"}


def described(
    name: str, model: GPT2, tokenizer: Tokenizer | None, options: WordOptions | CriteriaOptions
) -> dict[str, Any]:
    """Return what identifies a model: its name, digests of weights and vocabulary, its windows."""
    tokenizer = require_tokenizer(tokenizer, name)
    n_ctx = model.config.n_ctx
    return {
        "name": name,
        "weights_sha256": weights_sha256(model),
        "vocabulary_sha256": identity(tokenizer),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantized": model.is_quantized,
        "device": str(model.device),
        "n_ctx": n_ctx,
        "stride": default_stride(n_ctx) if options.stride is None else options.stride,
        "first": options.first if start_of_text(tokenizer) else "none",
    }


def receipt(
    models: Sequence[Mapping[str, Any]],
    options: WordOptions,
    *,
    unit: str,
    texts: int,
    units: int,
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the receipt of a table as an object for JSON."""
    return {
        "gpt2kit": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "input": dict(source),
        "models": [dict(model) for model in models],
        "options": {"unit": unit, **asdict(options)},
        "texts": texts,
        "units": units,
        "methods": sentence(models, options, unit=unit, texts=texts, units=units),
    }


def sentence(
    models: Sequence[Mapping[str, Any]],
    options: WordOptions,
    *,
    unit: str,
    texts: int,
    units: int,
) -> str:
    """Return what a Methods section says about the figures."""
    names = " and ".join(
        f"{each['name']} (weights {each['weights_sha256'][:12]}, {each['dtype']}; each text read "
        f"{_FIRST[each['first']]}, in windows of {each['n_ctx']:,} tokens that begin "
        f"{each['stride']:,} tokens apart)"
        for each in models
    )
    measured = f"{units:,} {unit}{'s' * (units != 1)}"
    if unit != "text":
        measured += f" in {texts:,} text{'s' * (texts != 1)}"
    words = [
        f"The surprisal of {measured} was computed in {_UNITS[options.base]} by gpt2kit "
        f"{__version__} with {names}."
    ]
    if unit != "text":
        words.append(f"{_PUNCTUATION[options.punctuation]}.")
    if unit != "token":
        words.append(
            f"The surprisal of a {unit} is the sum over its tokens; the corrected surprisal "
            "includes that it ends, not that it begins (Pimentel & Meister 2024; "
            f"Oh & Schuler 2024), where {_BOUNDARY[options.boundary]} ends a word."
        )
    return " ".join(words)
