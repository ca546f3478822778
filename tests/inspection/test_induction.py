"""An induction head forms in training, and what it computes is lost without it.

The whole way, from random weights, takes a minute: see tests/cli/test_circuits.py. Here the first
layer looks at the token before, and the second begins with a weak match that training sharpens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.inspection import Ablation, Part, head_scores, of_repetition, random_tokens
from gpt2kit.model import GPT2

V, T = 48, 16  # tokens of the vocabulary, positions
C = 2 * V + T  # parts of the stream: the token, its position, and the token before it
TOKEN, POSITION, BEFORE = slice(0, V), slice(V, V + T), slice(V + T, C)


@torch.no_grad()
def beginning() -> GPT2:
    """Return a model of two heads: one for the token before, and one that hardly matches."""
    shape = {"n_vocab": V, "n_ctx": T, "n_embd": C, "n_head": 1, "n_layer": 2}
    model = GPT2(GPT2Config(**shape, mlp="none")).eval()  # type: ignore[arg-type]
    model.init_weights(torch.Generator().manual_seed(0))
    model.wte.weight[:, TOKEN] += torch.eye(V)
    model.get_parameter("wpe.weight")[:, POSITION] += torch.eye(T)
    # What queries, keys and values read of the stream, and where the head writes.
    parts: tuple[tuple[Tensor, Tensor, Tensor, slice], ...] = (
        (3 * read(POSITION).roll(-1, 0), 3 * read(POSITION), read(TOKEN), BEFORE),
        (read(TOKEN), read(BEFORE), read(TOKEN), TOKEN),
    )
    for layer, (*inputs, written) in enumerate(parts):
        matrices = model.get_parameter(f"h.{layer}.attn.c_attn.weight").view(3, C, C)
        for matrix, each in zip(matrices, inputs, strict=True):
            matrix[: len(each)] += each
        model.get_parameter(f"h.{layer}.attn.c_proj.weight")[written, :V] += torch.eye(V)
    return model


def read(part: slice) -> Tensor:
    """Return the matrix that reads a part of the stream: (n, C)."""
    return torch.eye(C)[part]


def train(model: GPT2, steps: int) -> None:
    """Train on random tokens that come again after 6 to 8 of them; only copies count."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        length = torch.randint(6, T // 2 + 1, (32, 1), generator=generator)
        once = torch.randint(V, (32, T), generator=generator)
        ids = once.gather(1, torch.arange(T) % length)  # (B, T)
        is_copy = torch.arange(1, T) >= length  # (B, T - 1)
        loss = F.cross_entropy(model(ids)[:, :-1][is_copy], ids[:, 1:][is_copy])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_an_induction_head_forms_and_the_second_copy_needs_it() -> None:
    model = beginning()
    tokens = random_tokens(model, sequences=20)
    before, weak = head_scores(model, tokens)
    assert before.previous > 0.95
    assert weak.induction < 0.4
    train(model, steps=120)
    _, formed = head_scores(model, tokens)
    assert formed.induction > 0.8
    texts = of_repetition(tokens)
    heads = [Part("head", 0, 0), Part("head", 1, 0)]
    for effect in Ablation(model, heads, "mean", texts).effects(texts):
        assert effect.before < 1
        assert effect.change > 2, effect.name
