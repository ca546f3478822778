"""Direct logit attribution: a token's logit as a sum over embeddings, heads, MLPs and biases.

C width, H heads
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.forward import Trace
from gpt2kit.model import GPT2, Attention


@dataclass(frozen=True)
class Contribution:
    """What one part of the model adds to the logit, or difference of logits, that is explained."""

    part: str  # token, position, head, mlp, bias (of a layer's attention, or of the final norm)
    layer: int | None
    head: int | None
    value: float

    @property
    def name(self) -> str:
        if self.part == "bias":
            return (
                "bias of the final norm"
                if self.layer is None
                else f"bias of attention {self.layer}"
            )
        if self.layer is None:
            return f"{self.part} embedding"
        return f"head {self.layer}.{self.head}" if self.part == "head" else f"MLP {self.layer}"


@dataclass(frozen=True)
class Attribution:
    """A token's logit, or its difference from another's, as a sum over the parts of the model."""

    token: int
    against: int | None
    total: float
    contributions: tuple[Contribution, ...]  # in forward order


def check_sum(model: GPT2) -> None:
    """Raise ConfigError for a model whose residual stream is not the sum of its parts' outputs.

    That is a model that normalizes after adding, or whose numbers are too coarse for the sum to
    hold (half precision, int8).
    """
    if not model.config.norm_first:
        raise ConfigError(
            "attribution needs a model that normalizes before each part; this one normalizes "
            "after adding, so that its residual stream is not a sum"
        )
    if model.is_quantized or model.dtype.itemsize < 4:
        raise ConfigError(
            "attribution needs a model in float32 or float64, for an exact sum; use --dtype float32"
        )


def attribute(
    seen: Trace, token: int, against: int | None = None, *, position: int = -1
) -> Attribution:
    """Split the logit of a next token into the contributions of all parts of the model.

    The token is the one that would follow `position`; with `against`, the difference of both logits
    is split. The residual stream is a sum, and the final norm is linear once its scale is fixed:
    the contributions add up to the total. Raises ConfigError for models without such a sum, see
    `check_sum`.
    """
    model, config = seen.model, seen.model.config
    check_sum(model)
    with torch.no_grad():
        towards = _exact(model.head_weight[token])  # (C,)
        if against is not None:
            towards = towards - _exact(model.head_weight[against])
        bias = getattr(model.ln_f, "bias", None)
        of_norm = (
            []
            if bias is None
            else [Contribution("bias", None, None, float(_exact(bias) @ towards))]
        )
        final = _exact(seen.final[0, position])
        if config.norm == "layernorm":
            final = final - final.mean()
        gain = (
            _exact(model.ln_f.get_parameter("weight"))
            / (final.square().mean() + config.layer_norm_epsilon).sqrt()
        )
        towards = towards * gain
        if config.norm == "layernorm":
            # Subtracting the mean of the stream equals subtracting that of the vector it meets.
            towards = towards - towards.mean()
        parts = [*_parts(seen, position)]
        values = (torch.stack([_exact(vector) for *_, vector in parts]) @ towards).tolist()
        logits = _exact(seen.logits[0, position])
        total = float(logits[token] - (0 if against is None else logits[against]))
    found = [
        Contribution(part, layer, head, value)
        for (part, layer, head, _), value in zip(parts, values, strict=True)
    ]
    return Attribution(token, against, total, (*found, *of_norm))


def _exact(tensor: Tensor) -> Tensor:
    return tensor.cpu().double()  # on the CPU: not every device has float64


def _parts(seen: Trace, position: int) -> Iterator[tuple[str, int | None, int | None, Tensor]]:
    """Yield every vector (C,) that was added to the residual stream at one position, by part."""
    yield "token", None, None, seen.token_embeddings[0, position]
    yield "position", None, None, seen.position_embeddings[position]
    for number, layer in enumerate(seen.layers):
        attention = seen.model.get_submodule(f"h.{number}.attn")
        assert isinstance(attention, Attention)
        # Row h is the output of head h alone, the other heads being 0.
        outputs = layer.head_outputs[0, :, position]  # (H, D)
        alone = torch.block_diag(*outputs)  # type: ignore[no-untyped-call]  # (H, C)
        bias = attention.c_proj(torch.zeros_like(alone[0]))  # (C,)
        for head, update in enumerate(attention.c_proj(alone) - bias):
            yield "head", number, head, update
        if seen.model.config.bias:
            yield "bias", number, None, bias
        yield "mlp", number, None, layer.mlp_update[0, position]
