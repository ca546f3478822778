"""Direct logit attribution: a token's logit as a sum over embeddings, heads, MLPs and biases.

C width, H heads
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.forward import Trace
from gpt2kit.model import GPT2, Attention


@dataclass(frozen=True)
class Contribution:
    """What one part of the model adds to the logit, or difference of logits, that is explained."""

    # token, position, head, mlp, bias (of a layer's attention or the final norm), head bias
    part: str
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
        if self.part == "head bias":
            return "bias of the head"
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
    if not model.config.residual:
        raise ConfigError(
            "attribution needs a model with residual connections; in this one each part replaces "
            "the residual stream, which is not a sum"
        )
    if not model.config.norm_first and model.config.norm != "none":
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
    model = seen.model
    check_sum(model)
    with torch.no_grad():
        towards = _direction(model, token)  # (C,)
        if against is not None:
            towards = towards - _direction(model, against)
        of_biases = [*_final_biases(model, towards, token, against)]
        towards = _before_norm(model, towards, _exact(seen.final[0, position]))  # (C,)
        parts = [*_parts(seen, position)]
        values = (torch.stack([_exact(vector) for *_, vector in parts]) @ towards).tolist()
        logits = _exact(seen.logits[0, position])
        total = float(logits[token] - (0 if against is None else logits[against]))
    found = [
        Contribution(part, layer, head, value)
        for (part, layer, head, _), value in zip(parts, values, strict=True)
    ]
    return Attribution(token, against, total, (*found, *of_biases))


def _exact(tensor: Tensor) -> Tensor:
    return tensor.cpu().double()  # on the CPU: not every device has float64


def _direction(model: GPT2, token: int) -> Tensor:
    """Return the vector, (C,), whose product with a hidden state is a token's logit."""
    if model.config.head == "none":  # the hidden state has the logits as its numbers
        return F.one_hot(torch.tensor(token), model.config.n_vocab).double()
    return _exact(model.head_weight[token])


def _final_biases(
    model: GPT2, towards: Tensor, token: int, against: int | None
) -> Iterator[Contribution]:
    """Yield what the biases of the final norm and of the head add, if the model has them."""
    if (bias := getattr(model.ln_f, "bias", None)) is not None:
        yield Contribution("bias", None, None, float(_exact(bias) @ towards))
    if (bias := model.head_bias) is not None:
        value = float(bias[token]) - (0.0 if against is None else float(bias[against]))
        yield Contribution("head bias", None, None, value)


def _before_norm(model: GPT2, towards: Tensor, final: Tensor) -> Tensor:
    """Return the vector that meets the stream before the final norm as `towards` does after it.

    Both are (C,). The norm is linear for `final`, (C,), once its scale is known.
    """
    config = model.config
    if config.norm == "none":
        return towards
    if config.norm == "layernorm":
        final = final - final.mean()
    scale = (final.square().mean() + config.layer_norm_epsilon).sqrt()
    towards = towards * _exact(model.ln_f.get_parameter("weight")) / scale
    # Subtracting the mean of the stream equals subtracting that of the vector it meets.
    return towards - towards.mean() if config.norm == "layernorm" else towards


def _parts(seen: Trace, position: int) -> Iterator[tuple[str, int | None, int | None, Tensor]]:
    """Yield every vector (C,) that was added to the residual stream at one position, by part."""
    yield "token", None, None, seen.token_embeddings[0, position]
    if seen.model.config.positions != "none":
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
        if seen.model.config.mlp != "none":
            yield "mlp", number, None, layer.mlp_update[0, position]
