"""The receipt of an answer, for `gpt2kit replay`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2kit.generation.receipts.receipt import receipt
from gpt2kit.generation.text import Completion, Piece
from gpt2kit.serve.answers import EncodedPrompt
from gpt2kit.serve.completions import CompletionRequest
from gpt2kit.serve.models import Loaded
from gpt2kit.serve.worker import Sample


def receipt_of(
    loaded: Loaded,
    asked: CompletionRequest,
    model: str,
    prompts: Sequence[EncodedPrompt],
    pieces: Mapping[Sample, Sequence[Piece]],
) -> dict[str, Any]:
    """Return the receipt of all texts that were written for a request, without the texts."""
    request = dataclasses.replace(asked.request, num_samples=asked.samples)
    completions = [
        Completion(
            prompt=prompts[sample.prompt].text,
            text="".join(piece.text for piece in own),
            tokens=[piece.token for piece in own],
            finish_reason=(own[-1].finish_reason if own else None) or "context",
            seed=request.drawn_seed,
            sample=sample.row.sample,
        )
        for sample, own in pieces.items()
    ]
    return receipt(
        loaded.model,
        loaded.tokenizer,
        request,
        completions,
        source={"model": model, "dtype": str(loaded.model.dtype).removeprefix("torch.")}
        | ({"steer": [*loaded.steer]} if loaded.steer else {})
        | ({"dtype": "auto", "quantize": "int8"} if loaded.model.is_quantized else {}),
        weights=loaded.weights_sha256,
    )
