"""Models of every kind that an engine reads, and how far its logits are from torch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.engine.decoder import Decoder
from gpt2kit.generation.prompts import PromptReader
from gpt2kit.generation.request import Request
from gpt2kit.generation.row import Row
from gpt2kit.model import GPT2
from gpt2kit.quantize import Int8GPT2, quantized_state

SMALL = GPT2Config(n_vocab=301, n_ctx=48, n_embd=96, n_head=3, n_layer=3)

# Of float32 logits, as a share of the largest: the same sums in another order.
TOLERANCE = 2e-5


def block_of(model: GPT2, layer: int) -> Any:
    return model.h[layer]


def model_of(config: GPT2Config, dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT2:
    """A model with weights that are large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=generator)
            * (0.15 if parameter.ndim == 2 else 0.3)
        )
        if "ln_" in name and name.endswith("weight"):
            parameter.add_(1)
    return model.to(dtype).eval()


def int8_of(model: GPT2) -> Int8GPT2:
    result = Int8GPT2(model.config)
    state = dict(model.named_parameters())
    result.load_state_dict(
        dict(quantized_state(model.config, lambda name: state[name].detach())), assign=True
    )
    return result.eval()


def ids_of(*shape: int, V: int = SMALL.n_vocab, seed: int = 1) -> Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def torch_logits(model: GPT2, ids: Tensor, cache: KVCache) -> Tensor:
    return model.head(model.hidden(ids, cache)[:, -1])


def difference(found: Tensor, expected: Tensor) -> float:
    return float(
        (found.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1)
    )


def read_prompts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], cache: KVCache
) -> tuple[list[Tensor], list[int]]:
    """Read prompts into free slots; return the logits (V,) after each, and the slots."""
    config = decoder.model.config
    reader = PromptReader(decoder, cache, n_vocab=config.n_vocab)
    rows = [Row(prompt, Request(), config) for prompt in prompts]
    reader.queue.extend(rows)
    found = {read.row: read for read in reader.read(None)}
    logits = [found[row].logits for row in rows]
    return [each for each in logits if each is not None], [found[row].slot for row in rows]
