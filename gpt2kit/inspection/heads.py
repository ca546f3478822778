"""What kind of head each attention head is: previous token, duplicate token, induction, copying.

Two definitions are in use, and give other numbers. On a sequence of random tokens that is repeated
once, the *weight* of a kind is the mean attention weight at the positions that such a head looks
at: induction is the mean of pattern[q, q - (L - 1)] over the diagonal (Nanda 2022; Olsson et al.
2022). The *share* of a kind is the part of a head's whole attention, in any text, that goes to such
positions: `detect_head` of TransformerLens with its default measure "mul". A sequence of random
tokens gives an induction head at most half of it, because nothing is repeated in its first half.

    B sequences, L tokens that are repeated, T = 2 L tokens of a sequence, H heads, D head size,
    C width, V vocabulary
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gpt2kit.data.window import check_ids
from gpt2kit.errors import ConfigError
from gpt2kit.inspection.forward import trace
from gpt2kit.lora import weight_of
from gpt2kit.model import GPT2, Attention
from gpt2kit.tokenizers import Tokenizer

_LENGTH = 50
_TOKENS_AT_ONCE = 1024  # whose attention and logits are in memory together


@dataclass(frozen=True)
class RandomTokens:
    """Sequences of random tokens, each followed by its repetition, on which heads are tried.

    Every token below `n_vocab` but those in `first` is equally likely; `first` stands before each
    sequence, as TransformerLens puts the end marker before a text. NumPy promises that the raw
    output of its PCG64 stays the same, so that a seed gives the same tokens in every version.
    """

    n_vocab: int
    length: int = 50  # L
    sequences: int = 10  # B
    seed: int = 0
    first: tuple[int, ...] = ()

    @property
    def ids(self) -> Tensor:
        """The sequences: (B, F + 2 L) int64, with the F tokens of `first`."""
        allowed = np.setdiff1d(np.arange(self.n_vocab), self.first)
        raw = np.random.PCG64(self.seed).random_raw(self.sequences * self.length)
        drawn = allowed[(raw % len(allowed)).astype(np.int64)]
        once = torch.from_numpy(drawn).view(self.sequences, self.length)
        before = torch.tensor(self.first, dtype=torch.int64).expand(self.sequences, -1)
        return torch.cat((before, once, once), dim=1)


def random_tokens(
    model: GPT2,
    tokenizer: Tokenizer | None = None,
    *,
    length: int | None = None,
    sequences: int = 10,
    seed: int = 0,
    first: Literal["bos", "none"] = "none",
) -> RandomTokens:
    """Return the random tokens for a model: of its tokenizer's tokens, without the end marker.

    The length is 50 by default, or what fits twice into the window. With `first` "bos" the end
    marker stands before them. Raises ConfigError for sequences that the model's window does not
    hold, and for an end marker that the vocabulary does not have.
    """
    stop_id = None if tokenizer is None else tokenizer.stop_id
    if first == "bos" and stop_id is None:
        raise ConfigError("first is 'bos', but this vocabulary has no <|endoftext|>; use 'none'")
    n_vocab = model.config.n_vocab
    if tokenizer is not None:
        n_vocab = min(n_vocab, tokenizer.n_vocab)
    most = (model.config.n_ctx - (first == "bos")) // 2
    if length is None:
        length = min(_LENGTH, most)
    if not 2 <= length <= most:
        raise ConfigError(
            f"length is {length}, but this model reads {model.config.n_ctx:,} tokens at once; "
            f"expected from 2 to {most} random tokens, which are read twice"
        )
    if sequences < 1:
        raise ConfigError(f"sequences is {sequences}, expected 1 or more")
    before = (stop_id,) if first == "bos" and stop_id is not None else ()
    return RandomTokens(n_vocab, length, sequences, seed, before)


@dataclass(frozen=True)
class HeadScores:
    """What one head attends to, from 0 to 1, and whether it copies, from -1 to 1."""

    layer: int
    head: int
    previous: float  # mean weight of the token before, on random tokens
    duplicate: float  # mean weight of the same token in the first copy
    induction: float  # mean weight of the token after it
    previous_share: float  # of the attention in a text, by TransformerLens's detector
    duplicate_share: float
    induction_share: float
    copying: float | None  # of its OV circuit, see `ov_copying`

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.head}"


def head_scores(
    model: GPT2, tokens: RandomTokens | None = None, *, text: Sequence[int] | None = None
) -> list[HeadScores]:
    """Return the scores of every head, by layer and head.

    The shares are those of a `text`, as ids, and otherwise of the random tokens. Raises ConfigError
    for a model without heads, and for a text of one token or of more than the window.
    """
    config = model.config
    if not config.n_layer:
        raise ConfigError("this model has no layers, so it has no heads to score")
    tokens = tokens or random_tokens(model)
    weights, shares = _measured(model, tokens.ids, tokens.length, len(tokens.first))
    if text is not None:
        shares = _measured(model, _checked(model, text), 1, 0)[1]
    copying = ov_copying(model) if _has_ov_circuit(model) else None
    found = []
    for layer, head in itertools.product(range(config.n_layer), range(config.n_head)):
        previous, duplicate, induction = weights[:, layer, head].tolist()
        previous_share, duplicate_share, induction_share = shares[:, layer, head].tolist()
        found.append(
            HeadScores(
                layer,
                head,
                previous,
                duplicate,
                induction,
                previous_share,
                duplicate_share,
                induction_share,
                None if copying is None else float(copying[layer, head]),
            )
        )
    return found


def _checked(model: GPT2, text: Sequence[int]) -> Tensor:
    """Return a text's ids, (1, T), or raise ConfigError for a text that cannot be measured."""
    check_ids(text, model.config.n_vocab)
    if not 2 <= len(text) <= model.config.n_ctx:
        raise ConfigError(
            f"the text has {len(text):,} tokens, expected from 2 to {model.config.n_ctx:,}, which "
            "the model reads at once"
        )
    return torch.tensor([text])


def _measured(model: GPT2, ids: Tensor, length: int, first: int) -> tuple[Tensor, Tensor]:
    """Return weights and shares of each kind, (3, layers, H) each, as means over the sequences."""
    rows = max(1, _TOKENS_AT_ONCE // ids.shape[1])
    weights, shares = [], []
    for some in torch.split(ids, rows):
        patterns = torch.stack(
            [layer.weights.double().cpu() for layer in trace(model, some, neurons=False).layers],
            dim=1,
        )  # (B, layers, H, T, T)
        weights.append(torch.stack([*_on_diagonals(patterns[..., first:, first:], length)], dim=1))
        shares.append(torch.stack([*_shares(patterns, some)], dim=1))
    return torch.cat(weights).mean(dim=0), torch.cat(shares).mean(dim=0)


def _on_diagonals(patterns: Tensor, length: int) -> Iterator[Tensor]:
    """Yield the mean weight of the token before, of the same and of the one after it: (B, …, H)."""
    for offset in (-1, -length, 1 - length):
        yield patterns.diagonal(offset, -2, -1).mean(dim=-1)


def _shares(patterns: Tensor, ids: Tensor) -> Iterator[Tensor]:
    """Yield the share of attention at the positions of each of TransformerLens's three patterns."""
    for wanted in detection_patterns(ids):  # (B, T, T)
        inside = (patterns * wanted[:, None, None]).sum(dim=(-2, -1))
        yield inside / patterns.sum(dim=(-2, -1))


def detection_patterns(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where previous-token, duplicate-token and induction heads look: (B, T, T) of 0 and 1.

    A duplicate is any earlier occurrence of the query's token; an induction head looks at the
    tokens after these, but not at the query itself.
    """
    T = ids.shape[1]
    same = (ids[:, :, None] == ids[:, None, :]).double().tril(-1)  # (B, T, T)
    after = torch.roll(same, 1, dims=2)
    after[:, :, 0] = 0
    previous = torch.ones(T - 1, dtype=torch.float64).diag(-1).expand(len(ids), -1, -1)
    return previous, same, after.tril()


# --- the OV circuit -------------------------------------------------------------------------------


def _has_ov_circuit(model: GPT2) -> bool:
    """Whether a head's path to the logits is a product of matrices, which can be read."""
    config = model.config
    return (config.norm_first or config.norm == "none") and not model.is_quantized


def ov_copying(model: GPT2) -> Tensor:
    """Return how much each head copies the tokens that it attends to: (layers, H) float64.

    It is the sum of the eigenvalues of the full OV circuit, which turns each token attended to into
    logits, divided by the sum of their absolute values (Elhage et al. 2021): 1 if every direction
    raises the logits of the tokens that have it, -1 if it lowers them. The circuit has the norms'
    gains and centering, not their scale, and no biases; logits are taken relative to their mean
    over the vocabulary, as TransformerLens does. Raises ConfigError for a model that normalizes
    after adding, in which the circuit is not a product of matrices, and for int8 weights.
    """
    if not _has_ov_circuit(model):
        raise ConfigError(
            "copying needs a model that normalizes before each part, so that a head's path to the "
            "logits is a matrix, and whose weights are not int8"
        )
    config = model.config
    embedding = model.wte.weight.detach().double().cpu()  # (V, C)
    head = torch.eye(config.n_embd).double()
    if config.head != "none":
        head = model.head_weight.detach().double().cpu()  # (V, C)
    head = _with_gain(head - head.mean(dim=0), model.ln_f)
    # The eigenvalues of a V x V product of thin matrices are those of the D x D product around.
    between = head.T @ embedding  # (C, C)
    found = []
    for layer in range(config.n_layer):
        attention = model.get_submodule(f"h.{layer}.attn")
        assert isinstance(attention, Attention)
        _, _, values = weight_of(attention.c_attn).detach().double().cpu().chunk(3)  # (C out, C in)
        values = _with_gain(values, model.get_submodule(f"h.{layer}.ln_1"))
        outputs = weight_of(attention.c_proj).detach().double().cpu()  # (C, C)
        of_heads = torch.split(values, config.head_size), torch.split(outputs, config.head_size, 1)
        for value, output in zip(*of_heads, strict=True):  # (D, C), (C, D)
            eigenvalues = torch.linalg.eigvals(value @ between.T @ output)  # (D,)
            total = eigenvalues.abs().sum()
            found.append(eigenvalues.sum().real / total if total else total)
    return torch.stack(found).view(config.n_layer, config.n_head)


def _with_gain(readers: Tensor, norm: nn.Module) -> Tensor:
    """Return what reads a norm's output, (n, C), as what reads its input but for the scale."""
    if not isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return readers
    readers = readers * norm.get_parameter("weight").detach().double().cpu()
    return (
        readers - readers.mean(dim=1, keepdim=True) if isinstance(norm, nn.LayerNorm) else readers
    )
