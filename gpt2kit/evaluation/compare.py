"""Two models of one shape: the distance of their weights, its effect on a text, and their mixtures.

Tensors are read one by one from the files; a model is built only to measure on a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gpt2kit.checkpoints.load import load_vocabulary, read_checked
from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor
from gpt2kit.data.ids import Ids
from gpt2kit.errors import CheckpointError, ConfigError
from gpt2kit.evaluation.surprisal import standard_error
from gpt2kit.inspection import part_of
from gpt2kit.tokenizers import Tokenizer, identity


def check_alike(a: Checkpoint, b: Checkpoint) -> Tokenizer | None:
    """Return the vocabulary that two models share, or None if neither has one.

    Raises CheckpointError, naming the difference, if their configurations or vocabularies differ.
    """
    ours, theirs = asdict(a.config), asdict(b.config)
    different = [
        f"{name} {ours[name]} and {theirs[name]}"
        for name in ours
        if ours[name] != theirs[name] and not name.endswith("_pdrop")
    ]
    if different:
        raise CheckpointError(
            f"{a.path} and {b.path} have different shapes: {', '.join(different)}"
        )
    tokenizers = [
        tokenizer for tokenizer in (load_vocabulary(a), load_vocabulary(b)) if tokenizer is not None
    ]
    if len({identity(tokenizer) for tokenizer in tokenizers}) > 1:
        sizes = " and ".join(f"{tokenizer.n_vocab:,}" for tokenizer in tokenizers)
        raise CheckpointError(
            f"{a.path} and {b.path} have different vocabularies, of {sizes} tokens: "
            "an id does not mean the same text in both"
        )
    return tokenizers[0] if tokenizers else None


# --- weights --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartDifference:
    """The distance of two models in one part; norms are Euclidean, over all of its tensors."""

    part: str  # "token embedding", "attention" …, or "all"
    layer: int | None  # None for embeddings, final norm and head
    parameters: int
    norm: float  # of the first model's tensors
    difference: float  # norm of second minus first
    relative: float | None  # difference / norm; None if the norm is 0


def weight_differences(a: Checkpoint, b: Checkpoint) -> list[PartDifference]:
    """Return the distance of each part, in forward order, then of all; reads tensor by tensor."""
    squares: dict[tuple[str, int | None], list[float]] = {}
    for name in a.config.shapes():
        ours, theirs = read_checked(a, name).double(), read_checked(b, name).double()
        layer = int(name.split(".")[1]) if name.startswith("h.") else None
        for key in ((part_of(name), layer), ("all", None)):
            sums = squares.setdefault(key, [0, 0.0, 0.0])
            sums[0] += ours.numel()
            sums[1] += float(ours.square().sum())
            sums[2] += float((theirs - ours).square().sum())
    squares["all", None] = squares.pop(("all", None))  # move it to the end
    return [
        PartDifference(
            part,
            layer,
            int(count),
            norm**0.5,
            difference**0.5,
            (difference / norm) ** 0.5 if norm else None,
        )
        for (part, layer), (count, norm, difference) in squares.items()
    ]


def blend(a: Checkpoint, b: Checkpoint, alpha: float) -> Checkpoint:
    """Return the model whose weights are (1 - alpha) · a + alpha · b, to be read tensor by tensor.

    Sums are computed in float32 or wider, and stored in the wider of both dtypes. Alpha 0 and 1
    give a and b exactly. Raises ConfigError for an alpha outside of 0 to 1 and what `check_alike`
    raises; reading a tensor raises CheckpointFormatError if a or b is damaged.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha is {alpha}, expected from 0 (only the first model) to 1 (only the second)"
        )
    check_alike(a, b)
    for each in (a, b):
        if each.class_head is not None:
            raise ConfigError(f"{each.path} has a head for labels, and heads are not mixed")

    def mix(name: str) -> StoredTensor:
        dtype = torch.promote_types(a.tensors[name].dtype, b.tensors[name].dtype)
        precise = torch.promote_types(dtype, torch.float32)

        def read(_: Tensor | None) -> Tensor:
            if alpha in (0, 1):  # lerp would turn -0.0 into 0.0
                return read_checked(b if alpha else a, name).to(dtype)
            return torch.lerp(
                read_checked(a, name).to(precise), read_checked(b, name).to(precise), alpha
            ).to(dtype)

        return StoredTensor(a.tensors[name].shape, dtype, read)

    return Checkpoint(
        a.path, f"blend of {a.path} and {b.path}", a.config, {name: mix(name) for name in a.tensors}
    )


# --- a text ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenChange:
    """A token that one model predicts better than the other."""

    position: int  # in the text, from 0
    before: str  # the text before it
    token: str
    surprisal_a: float  # nats
    surprisal_b: float
    change: float  # b - a: negative if the second model predicts it better


@dataclass(frozen=True)
class TextDifference:
    """How well two models of one vocabulary predict a text."""

    tokens: int  # scored
    loss_a: float  # nats per token
    loss_b: float
    change: float  # b - a: negative if the second model is better
    standard_error: float | None  # of the change, for independent tokens
    better: int  # tokens that the second model predicts better
    worse: int
    # The largest improvements, then the largest losses, each beginning with the largest
    changes: list[TokenChange]


_CONTEXT = 16  # tokens shown before a changed token


def text_difference(
    a: Tensor, b: Tensor, ids: Ids, tokenizer: Tokenizer, *, top: int = 10
) -> TextDifference:
    """Compare two models' `token_surprisals`, (n - 1,) each, of the same (n,) ids.

    Lists the `top` tokens that the second model predicts better, and as many that it predicts
    worse.
    """
    change = b - a

    def listed(order: Tensor) -> Iterator[TokenChange]:
        for index in order.tolist():
            position = index + 1  # the first token has no surprisal
            before = tokenizer.decode(ids[max(0, position - _CONTEXT) : position].tolist())
            token = tokenizer.decode([int(ids[position])])
            yield TokenChange(
                position, before, token, float(a[index]), float(b[index]), float(change[index])
            )

    order = change.argsort(stable=True)
    best = order[:top][change[order[:top]] < 0]
    worst = order.flip(0)[:top][change[order.flip(0)[:top]] > 0]
    return TextDifference(
        tokens=len(change),
        loss_a=float(a.mean()),
        loss_b=float(b.mean()),
        change=float(change.mean()),
        standard_error=standard_error(change),
        better=int((change < 0).sum()),
        worse=int((change > 0).sum()),
        changes=[*listed(best), *listed(worst)],
    )
