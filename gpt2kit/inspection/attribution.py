"""Which part of the model pushed a token: its logit as a sum over embeddings, heads, MLPs and biases.

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
    """What one part of the model adds to the logit, or the difference of logits, that is explained."""

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
    """A token's logit, or how far it is above another's, as a sum over the parts of the model."""

    token: int
    against: int | None
    total: float
    contributions: tuple[Contribution, ...]  # in the order of the forward pass


def check_sum(model: GPT2) -> None:
    """Raise ConfigError for a model whose residual stream is not the sum of what its parts wrote.

    These are models that normalise after adding, and numbers so rounded that it does not hold (half precision, int8).
    """
    if not model.config.norm_first:
        raise ConfigError(
            "attribution needs a model that normalises before each part; this one normalises after, and its stream is no sum"
        )
    if model.is_quantized or model.dtype.itemsize < 4:
        raise ConfigError(
            "attribution needs a model in float32 or float64: fewer bits round the sum away; use --dtype float32"
        )


def attribute(
    seen: Trace, token: int, against: int | None = None, *, place: int = -1
) -> Attribution:
    """Split the logit of a token after a place, less that of another one if given, into what each part wrote for it.

    Direct logit attribution: the residual stream is a sum, and the final norm is linear once its scale is what it was. The
    contributions add up to the total. Raises ConfigError for models without such a sum: see `check_sum`.
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
        final = _exact(seen.final[0, place])
        if config.norm == "layernorm":
            final = final - final.mean()
        gain = (
            _exact(model.ln_f.get_parameter("weight"))
            / (final.square().mean() + config.layer_norm_epsilon).sqrt()
        )
        towards = towards * gain
        if config.norm == "layernorm":
            towards = (
                towards - towards.mean()
            )  # what the norm subtracts from the stream can as well be taken from what reads it
        parts = [*_parts(seen, place)]
        values = (torch.stack([_exact(vector) for *_, vector in parts]) @ towards).tolist()
        logits = _exact(seen.logits[0, place])
        total = float(logits[token] - (0 if against is None else logits[against]))
    found = [
        Contribution(part, layer, head, value)
        for (part, layer, head, _), value in zip(parts, values, strict=True)
    ]
    return Attribution(token, against, total, (*found, *of_norm))


def _exact(tensor: Tensor) -> Tensor:
    return tensor.cpu().double()  # in this order, for not every device has float64


def _parts(seen: Trace, place: int) -> Iterator[tuple[str, int | None, int | None, Tensor]]:
    """Yield every vector (C,) that was added to the residual stream of one place, and who added it."""
    yield "token", None, None, seen.token_embeddings[0, place]
    yield "position", None, None, seen.position_embeddings[place]
    for number, layer in enumerate(seen.layers):
        attention = seen.model.get_submodule(f"h.{number}.attn")
        assert isinstance(attention, Attention)
        alone = torch.block_diag(*layer.head_outputs[0, :, place])  # type: ignore[no-untyped-call]  # (H, C) each head, the others silent
        silence = attention.c_proj(torch.zeros_like(alone[0]))  # (C,) the bias, if there is one
        for head, update in enumerate(attention.c_proj(alone) - silence):
            yield "head", number, head, update
        if seen.model.config.bias:
            yield "bias", number, None, silence
        yield "mlp", number, None, layer.mlp_update[0, place]
