"""How far rounding may take the logits of a model from float64: Monte Carlo arithmetic.

`gpt2kit.reference` computes a text in float64 several times: once exactly, and DRAWS times with
random errors in everything that an engine rounds, of the size that its dtype allows (Parker 1997,
Monte Carlo Arithmetic). How far these go apart says how sensitive this model is to rounding, for
this text: the tolerance is FACTOR times that. So it is tight for a harmless model, a few units of
the last digit, and wide only where a model magnifies rounding. What rounding does seldom, such as
turning the sign of a saturated activation, few draws may miss: a text that is not within its
tolerance is drawn MORE_DRAWS times before it counts as wrong.

    T tokens, C width, K columns of a matrix, V vocabulary
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any
from unittest import mock

import numpy as np

from campaigns.number_cases import Floats
from gpt2kit import reference
from gpt2kit.config import GPT2Config

DRAWS, MORE_DRAWS = 3, 40
FACTOR = 16
# Half of the distance from 1 to the next number of a dtype.
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "int8": 2.0**-24}
# The absolute error of a number. Processors' products of bfloat16 take what is smaller as 0.
TINIEST = {"float32": 2.0**-149, "bfloat16": 2.0**-126, "int8": 2.0**-149}
LARGEST = 1e38  # of a number that a sum in float32 is sure to hold
BLOCK = 64  # numbers of an input that share a scale
# How near to a half a number may be to be rounded to either side: far more than the engines differ,
# because one that is rounded to the other side moves all that come after it.
TIE = 0.02


@dataclass(frozen=True)
class Expected:
    """What float64 says of a text, and how far from it rounding may lead.

    logits     after each token, (T, V)
    tolerance  of each position, (T, 1)
    wider      computes the tolerance with MORE_DRAWS
    unsure     whether a number on the way is beyond float32, or a score of attention so large that
               rounding it decides where attention goes: then nothing is promised
    unseeing   whether all scores of a token are minus infinity, of which the weights are NaN; torch
               may take such a token as one that sees nothing
    """

    logits: Floats
    tolerance: Floats
    wider: Callable[[], Floats]
    unsure: bool
    unseeing: bool

    def last(self) -> Expected:
        """Return what is expected after the last token."""
        tolerance = self.tolerance[-1:]
        return replace(self, logits=self.logits[-1:], tolerance=tolerance, wider=self._last_wider)

    def _last_wider(self) -> Floats:
        return self.wider()[-1:]


def expected(
    config: GPT2Config, weights: Mapping[str, Floats], ids: Sequence[int], dtype: str, seed: int
) -> Expected:
    """Compute a text in float64, exactly and with random errors."""
    exact = Arithmetic(dtype, None)
    logits = exact.logits(config, weights, ids)
    finite = np.where(np.isfinite(logits), np.abs(logits), 0).max(axis=1, keepdims=True)

    @cache
    def tolerance(draws: int) -> Floats:
        spread = np.zeros((len(ids), 1))
        for number in range(draws):
            noisy = Arithmetic(dtype, random.Random(seed + number))
            off = np.abs(noisy.logits(config, weights, ids) - logits)
            off[~np.isfinite(off)] = 0
            spread = np.maximum(spread, off.max(axis=1, keepdims=True))
        allowed: Floats = FACTOR * (spread + UNIT[dtype] * finite + 2.0**-139) + exact.one_step
        return allowed

    return Expected(
        logits,
        tolerance(DRAWS),
        partial(tolerance, MORE_DRAWS),
        unsure=exact.peak > LARGEST or exact.wild,
        unseeing=exact.unseeing,
    )


class Arithmetic:
    """The parts of the reference, with the rounding of int8 weights and of a bfloat16 cache.

    With a source of `noise`, all inputs and outputs have random errors, too.
    """

    def __init__(self, dtype: str, noise: random.Random | None) -> None:
        self.dtype = dtype
        self.unit = UNIT[dtype]
        self.peak = 0.0  # the largest number that may have been computed
        self.wild = False  # whether rounding a score changes its weight by more than a quarter
        self.unseeing = False  # whether all scores of a token are minus infinity
        # By how much a logit moves if an input of the head is rounded to the next int8, and all
        # weights of the head that are too small are taken as 0.
        self.one_step = 0.0
        self._rng = None if noise is None else np.random.default_rng(noise.getrandbits(64))

    def logits(self, config: GPT2Config, weights: Mapping[str, Floats], ids: Sequence[int]) -> Any:
        """Return the logits after each of the ids, (T, V)."""
        with self._in_reference():
            found = reference.logits(config, weights, ids)
            if np.isfinite(found).all():
                return found
            # The reference gives later tokens the weight 0, and 0 times NaN is NaN.
            prefixes = (ids[: n + 1] for n in range(len(ids)))
            return np.stack([reference.logits(config, weights, each)[-1] for each in prefixes])

    @contextlib.contextmanager
    def _in_reference(self) -> Iterator[None]:
        softmax = reference.softmax
        activations = {
            name: self._activation(function) for name, function in reference.ACTIVATION.items()
        }

        def noisy_norm(config: GPT2Config, w: Any, name: str, x: Any) -> Any:
            x = self.off(x)
            self._note(len(x[0]) * _largest(x) ** 2 if config.norm != "none" else _largest(x))
            y = self.off(self.norm(config, w, name, x))
            self._note(_largest(y))
            if name != "ln_f" or config.head == "none":
                return y
            head = w["wte.weight" if config.tie_word_embeddings else "lm_head.weight"]
            self._note_product(y, head)
            step = _largest(y) / 127 * _largest(head) if self.dtype == "int8" else 0.0
            self.one_step = step + len(y[0]) * _largest(y) * TINIEST[self.dtype]
            return self.input_of(y)

        def noisy_softmax(scores: Any) -> Any:
            self._note(_largest(scores))
            self.unseeing |= bool((scores == -np.inf).all(axis=-1).any())
            self.wild |= _largest(scores) * self.unit > 0.25
            return self.off(softmax(self.off(scores)))

        with (
            mock.patch.object(reference, "linear", self.linear),
            mock.patch.object(reference, "norm", noisy_norm),
            mock.patch.object(reference, "softmax", noisy_softmax),
            mock.patch.dict(reference.ACTIVATION, activations),
            np.errstate(all="ignore"),
        ):
            yield

    def _activation(self, function: Any) -> Any:
        def noisy(x: Any) -> Any:
            self._note(_largest(x) ** 3)
            y = self.off(function(x))
            # float64 itself adds to 1 what is far below it.
            return y if self._rng is None else y + 2.0**-50 * x * self._drawn(x.shape)

        return noisy

    def norm(self, config: GPT2Config, w: Any, name: str, x: Any) -> Any:
        """As in the reference, with an error of the mean."""
        if config.norm == "none":
            return x
        if config.norm == "layernorm":
            x = x - x.mean(axis=1, keepdims=True) + self._error_of(x)
        scale = np.sqrt((x**2).mean(axis=1, keepdims=True) + config.layer_norm_epsilon)  # (T, 1)
        return x / scale * w[name + ".weight"] + reference.bias(w, name)

    def _error_of(self, x: Any) -> Any:
        """Return errors of one unit of float32 of the largest number of each row."""
        if self._rng is None:
            return 0.0
        return np.abs(x).max(axis=1, keepdims=True) * UNIT["float32"] * self._drawn(x.shape)

    def linear(self, w: Mapping[str, Floats], name: str, x: Any) -> Any:
        """x W^T + b, (T, K) -> (T, out), as the dtype rounds it."""
        weight = w[name + ".weight"].astype(np.float64)
        x = self.input_of(x)
        product = x @ weight.T
        self._note_product(x, weight)
        if self._rng is not None:
            # The error of a sum, which is in float32, grows with the number of its terms.
            size = np.sqrt(x**2 @ (weight**2).T) * math.sqrt(len(weight[0])) * UNIT["float32"]
            size += np.abs(x).sum(axis=1, keepdims=True) * TINIEST[self.dtype]
            product = product + self._drawn(product.shape) * size
        y = self.off(product + reference.bias(w, name))
        if name.endswith("c_attn"):
            C = len(weight) // 3
            self._note_product(y[:, :C], y[:, C : 2 * C])
            if self.dtype != "float32":  # keys and values go to a cache in bfloat16
                y[:, C:] = self._bfloat16(y[:, C:])
        return y

    def input_of(self, x: Any) -> Any:
        """Return the input of a matrix, (T, K), as it is multiplied: of int8 ones it is rounded."""
        x = self.off(x)
        if self.dtype != "int8":
            return x
        T, K = x.shape
        blocks = np.zeros((T, -(-K // BLOCK) * BLOCK))
        blocks[:, :K] = x
        blocks = blocks.reshape(T, -1, BLOCK)
        largest = np.abs(blocks).max(axis=-1, keepdims=True)
        factor = np.where(largest < 127 / np.finfo(np.float32).max, 0, 127 / largest)
        rounded = np.rint(np.clip(blocks * factor + self._moved(blocks.shape), -127, 127))
        return (rounded * (largest / 127)).reshape(T, -1)[:, :K]

    def _bfloat16(self, x: Any) -> Any:
        """Round to eight bits."""
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.rint(mantissa * 256 + self._moved(x.shape)), exponent - 8)

    def _moved(self, shape: tuple[int, ...]) -> Any:
        """Return by how much numbers are moved before they are rounded to integers."""
        return 0.0 if self._rng is None else self._rng.uniform(-TIE, TIE, shape)

    def off(self, x: Any) -> Any:
        """Return numbers with an error of one unit each, of random sign."""
        if self._rng is None:
            return x
        drawn = self._drawn(x.shape)
        return x * (1 + self.unit * drawn) + TINIEST[self.dtype] * drawn

    def _drawn(self, shape: tuple[int, ...]) -> Any:
        assert self._rng is not None
        return self._rng.choice((-1.0, 1.0), shape)

    def _note_product(self, x: Any, weight: Any) -> None:
        """Note how large a sum of products can become; int8 ones get their scale last."""
        largest = max(_largest(weight), 127 if self.dtype == "int8" else 0)
        self._note(len(weight[0]) * _largest(x) * largest)

    def _note(self, largest: float) -> None:
        self.peak = max(self.peak, largest)


def _largest(x: Any) -> float:
    """Return the largest size of all numbers that are finite."""
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
