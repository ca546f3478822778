"""Training: losses, gradients and dropout beside float64, and int8 weights beside their rule."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from campaigns.drawn_models import config_of
from campaigns.number_cases import Tally
from gpt2kit.attention import scaled_dot_product_attention
from gpt2kit.dropout import dropout
from gpt2kit.model import GPT2
from gpt2kit.quantize import BLOCK, int8_linear, quantized, rounded
from gpt2kit.training import loss as losses

UNIT = 2.0**-24


def tensor_of(draw: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw a tensor of normal numbers."""
    generator = torch.Generator().manual_seed(draw.getrandbits(63))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def loss(draw: random.Random, tally: Tally) -> None:
    """Compare the loss in pieces, and its gradients, with torch's cross entropy in float64.

    How far rounding may lead is measured: by the same loss of weights that are one unit off.
    """
    config = replace(
        config_of(draw, varied=draw.random() < 0.5),
        layer_norm_epsilon=1e-3,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    tally.seen.append(str(config))
    model = GPT2(config)
    for parameter in model.parameters():
        parameter.data = tensor_of(draw, *parameter.shape) * draw.choice((0.02, 0.2))
    T, B = draw.randint(1, min(20, config.n_ctx)), draw.randint(1, 3)
    batch = torch.tensor([draw.choices(range(config.n_vocab), k=T + 1) for _ in range(B)])
    expected, off = float64_gradients(draw, model, batch)
    with (
        mock.patch.object(losses, "FEW_LOGITS", draw.choice((0, 0, 2**22))),
        mock.patch.object(losses, "LOGITS_AT_ONCE", draw.randint(1, 2000)),
        mock.patch.object(losses, "LOGITS_IN_CACHE", draw.randint(1, 500)),
    ):
        found = losses.NextTokenLoss(model)(batch)
        found.backward()
    own = {"loss": found.detach()}
    own |= {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    tally.equal(sorted(own), sorted(expected), "what has a gradient")
    for name, exact in expected.items():
        size = float(exact.abs().max()) + 0.05
        near = 64 * (off[name] + UNIT * size)
        tally.close(own[name].numpy().ravel(), exact.numpy().ravel(), near, f"gradient of {name}")


def float64_gradients(
    draw: random.Random, model: GPT2, batch: Tensor
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return loss and gradients in float64, and how far weights that are one unit off move them."""
    found: list[dict[str, Tensor]] = []
    for unit in (0.0, UNIT, UNIT):
        exact = copy.deepcopy(model).double()
        for parameter in exact.parameters():
            signs = tensor_of(draw, *parameter.shape, dtype=torch.float64).sign()
            parameter.data *= 1 + unit * signs
        logits = exact(batch[:, :-1]).flatten(0, 1)
        own = F.cross_entropy(logits, batch[:, 1:].flatten())
        own.backward()  # type: ignore[no-untyped-call]
        named = exact.named_parameters()
        grads = {name: each.grad for name, each in named if each.grad is not None}
        found.append({"loss": own.detach(), **grads})
    first = found[0]
    off = {
        name: max(float((other[name] - first[name]).abs().max()) for other in found[1:])
        for name in first
    }
    return first, off


def own_dropout(draw: random.Random, tally: Tally) -> None:
    """Compare dropout, and its gradient, with its definition, given the mask that it drew."""
    p, seed = draw.choice((0.1, 0.5, 0.9, draw.uniform(0.01, 0.99))), draw.getrandbits(32)
    x = tensor_of(draw, draw.randint(1, 40), draw.randint(1, 40)).requires_grad_()
    torch.manual_seed(seed)
    y = dropout(x, p, True)
    kept = (y != 0).double()
    grad = tensor_of(draw, *x.shape)
    y.backward(grad)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    for found, source, what in ((y.detach(), x.detach(), "output"), (x.grad, grad, "gradient")):
        expected = (source.double() * kept / (1 - p)).numpy()
        tally.close(found.numpy(), expected, 4 * UNIT * np.abs(expected) + 1e-44, what)
    attention_dropout(draw, tally, p, seed)


def attention_dropout(draw: random.Random, tally: Tally, p: float, seed: int) -> None:
    """Do the same for the weights of attention."""
    B, H, T, D = (draw.randint(1, most) for most in (2, 3, 9, 9))
    causal = draw.random() < 0.7
    eye = torch.eye(T, dtype=torch.float64).expand(B, H, T, T)
    torch.manual_seed(seed)
    kept = scaled_dot_product_attention(torch.zeros(B, H, T, T), eye.float() * 0, eye.float(),
                                        dropout_p=p, is_causal=False) > 0  # fmt: skip
    inputs = [tensor_of(draw, B, H, T, D) for _ in range(3)]
    grad, scale = tensor_of(draw, B, H, T, D), draw.choice((None, 1.0, 0.3))
    torch.manual_seed(seed)
    mine = [each.clone().requires_grad_() for each in inputs]
    out = scaled_dot_product_attention(
        mine[0], mine[1], mine[2], dropout_p=p, is_causal=causal, scale=scale
    )
    out.backward(grad)  # type: ignore[no-untyped-call]
    q, k, v = theirs = [each.double().requires_grad_() for each in inputs]
    scores = q @ k.mT * (1 / math.sqrt(D) if scale is None else scale)
    if causal:
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
    expected = (scores.softmax(-1) * kept / (1 - p)) @ v
    expected.backward(grad.double())  # type: ignore[no-untyped-call]
    pairs = [
        (out, expected.detach()),
        *((a.grad, b.grad) for a, b in zip(mine, theirs, strict=True)),
    ]
    for found, exact in pairs:
        assert found is not None
        assert exact is not None
        near = 64 * (T + D) * UNIT * max(1.0, float(exact.abs().max())) / (1 - p)
        tally.close(found.detach().numpy(), exact.numpy(), near, f"attention {B, H, T, D, p}")


def int8(draw: random.Random, tally: Tally) -> None:
    """Compare int8 weights, rounded inputs and their product with the rule for each."""
    rows, K = draw.randint(1, 20), draw.choice((1, 3, 63, 64, 65, 130))
    factor = draw.choice((1.0, 1e-3, 1e30, 1e-30, 1e-36, 1e-42, 0.0))
    weight = tensor_of(draw, rows, K) * factor
    if draw.random() < 0.3:
        weight[draw.randrange(rows), draw.randrange(K)] = 1e4 * max(factor, 1e-40)
    integers, scales = quantized(weight)
    tally.require(int(integers.abs().max()) <= 127, "beyond 127")
    largest = weight.double().abs().amax(dim=1)
    tally.close(scales.numpy(), (largest / 127).numpy(), UNIT * largest.numpy() + 2e-45, "scales")
    within(tally, weight, integers.double() * scales.double()[:, None], scales[:, None])
    again, _ = quantized(integers.float() * scales[:, None])
    if largest.min() > 1e-30:
        tally.require(torch.equal(again, integers), "rounding twice is not rounding once")
    x = tensor_of(draw, draw.randint(1, 5), K) * draw.choice((1.0, 1e-42, 1e20))
    blocks = F.pad(x, (0, -K % BLOCK)).view(len(x), -1, BLOCK).abs().amax(-1, keepdim=True) / 127
    steps = blocks.expand(-1, -1, BLOCK).flatten(-2)[:, :K]
    within(tally, x, rounded(x).double(), steps)
    product = rounded(x).double() @ (integers.double() * scales.double()[:, None]).T
    if float(x.abs().max()) * 127 * 127 * K < 1e38 and factor <= 1:
        sizes = rounded(x).double().abs() @ (integers.double().abs() * scales.double()[:, None]).T
        off = (4 * UNIT * math.sqrt(K) * sizes + K * 2e-43).numpy()
        found = int8_linear(x, integers, scales, None).numpy()
        tally.close(found, product.numpy(), off, "product")


def within(tally: Tally, exact: Tensor, found: Tensor, steps: Tensor) -> None:
    """Require numbers to be at most half a step off; those below 127 / float32's largest are 0."""
    off = (exact.double() - found).abs()
    allowed = steps.double() * (0.5 + 2**-15) + exact.double().abs() * 4 * UNIT + 1e-44
    tiny = steps.double() * 127 < 3.8e-37
    tally.require(bool(((off <= allowed) | tiny & (found == 0)).all()), "further than half a step")
