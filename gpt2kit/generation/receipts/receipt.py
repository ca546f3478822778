"""Make the receipt of texts: digests of all that decided them, the options, and who computed them.

A receipt is a dictionary that can be written as JSON. It holds neither prompts nor texts unless
asked to, only their sha256. For each token it has a mark of four hexadecimal digits, made from the
prompt and all tokens up to this one: with the prompt one can tell which token is the first that
differs, and without it the marks say nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gpt2kit.checkpoints.device import processor_name
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.snapshot import weights_sha256
from gpt2kit.errors import ConfigError
from gpt2kit.generation.request import Request
from gpt2kit.generation.shaping.processors import name_of
from gpt2kit.generation.speculate import Draft
from gpt2kit.generation.text import Completion
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, identity

VERSION = 1  # of the format

# Options that decide nothing about the text, and what a receipt has elsewhere.
NOT_OPTIONS = ("sampling", "logprobs", "top_logprobs", "prompt_logprobs", "logits_processors")
# Options that are lists of lines, which a receipt without texts has by their digest only.
LINES = ("allow", "forbid")


def receipt(
    model: GPT2,
    tokenizer: Tokenizer,
    request: Request,
    completions: Sequence[Completion],
    *,
    draft: Draft | None = None,
    source: Mapping[str, Any] | None = None,
    weights: str | None = None,
    with_text: bool = False,
) -> dict[str, Any]:
    """Return the receipt of what `complete` returned for a request.

    `source` says how the model was loaded, for who replays; the receipt has it as it is. The
    weights are hashed as they are in memory, so equal weights have one digest whatever file they
    came from. That takes about a second for each GB, unless `weights` gives the digest that
    `weights_sha256` has for this model. What hooks add is in no digest: `source` must name it as
    "steer", or ConfigError is raised.
    """
    if not (source or {}).get("steer") and any(
        module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    ):
        raise ConfigError(
            "the model has hooks (edits, or a steering vector for the first positions), which "
            "change texts and which a receipt does not hold; make it with generate --steer"
        )
    prompts = list(dict.fromkeys(each.prompt for each in completions))
    return {
        "receipt": VERSION,
        "source": dict(source or {}),
        "weights": weights or weights_sha256(model),
        "config": {
            name: value
            for name, value in dataclasses.asdict(model.config).items()
            if not name.endswith("_pdrop")  # of training only
        },
        "tokenizer": identity(tokenizer),
        "options": _options(request, with_text),
        "draft": _draft(draft),
        "processors": [name_of(each) for each in request.logits_processors],
        "computed": computed_by(model, request, draft),
        "versions": versions(),
        "prompts": [
            {"sha256": sha256_of(prompt)} | ({"text": prompt} if with_text else {})
            for prompt in prompts
        ],
        "texts": [
            {
                "prompt": prompts.index(each.prompt),
                "sample": each.sample,
                "finish_reason": each.finish_reason,
                "sha256": sha256_of(each.text),
                "marks": marks(each.prompt, each.tokens),
            }
            | ({"text": each.text} if with_text else {})
            for each in completions
        ],
    }


def sha256_of(text: str) -> str:
    """Return the sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def marks(prompt: str, tokens: Sequence[int]) -> str:
    """Return four hexadecimal digits for each token, which depend on all before and the prompt."""
    state = hashlib.sha256(b"marks of a receipt\0" + prompt.encode(errors="surrogatepass")).digest()
    found = []
    for token in tokens:
        state = hashlib.sha256(state + token.to_bytes(8, "little")).digest()
        found.append(state.hex()[:4])
    return "".join(found)


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    from gpt2kit import __version__

    return {
        "gpt2kit": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def computed_by(model: GPT2, request: Request, draft: Draft | None) -> dict[str, Any]:
    """Return who computes: engine, device, dtype, threads, processor."""
    decoder = Decoder(model, compile=request.compile)
    on_cuda = model.device.type == "cuda"
    return {
        "engine": decoder.name(1 if draft is None else 2),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantize": "int8" if model.is_quantized else None,
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name() if on_cuda else processor_name(),
    }


def _options(request: Request, with_text: bool) -> dict[str, Any]:
    """Return the options of a request by name, those of its sampling among them."""
    values = {each.name: getattr(request, each.name) for each in dataclasses.fields(request)}
    values |= dataclasses.asdict(request.sampling)
    options = {name: value for name, value in values.items() if name not in NOT_OPTIONS}
    for name in LINES:
        if options.get(name) and not with_text:
            options[name] = digest_of_lines(options[name])
    return options


def digest_of_lines(lines: Sequence[str]) -> dict[str, Any]:
    """Return what a receipt says of a list of lines."""
    return {"lines": len(lines), "sha256": sha256_of("\n".join(lines))}


def _draft(draft: Draft | None) -> str | dict[str, str] | None:
    """Return what a receipt says of a draft."""
    return {"weights": weights_sha256(draft)} if isinstance(draft, GPT2) else draft
