"""Read prompts into a cache, and what several of them have in common only once.

V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine.decoder import PIECE, Decoder

Ids = tuple[int, ...]


def read_prompts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], cache: KVCache, slots: Sequence[int]
) -> Tensor:
    """Read prompt i into slots[i] of the cache, which must be empty; return (prompts, V) logits.

    The logits are those after each prompt's last token, in float32 or wider. Equal prompts are read
    once, and so are the pieces with which several prompts begin. On a CPU the numbers are the same,
    bit for bit, as if each prompt were read alone: it would be read in the same pieces.
    """
    same: dict[Ids, list[int]] = {}  # a prompt, and its indices in the list
    for index, prompt in enumerate(prompts):
        same.setdefault(tuple(prompt), []).append(index)
    # In this order each prompt has most in common with the one before it.
    ordered = sorted(same)
    firsts = [slots[same[prompt][0]] for prompt in ordered]
    for prompt, slot, following, following_slot in zip(
        ordered, firsts, ordered[1:], firsts[1:], strict=False
    ):
        shared = _shared(prompt, following)
        known = cache.lengths[slot]
        if shared > known:
            decoder.read([prompt[known:shared]], cache, slots=[slot], wanted=0)
        if shared:
            cache.fill([following_slot], cache, slot, shared)
    rests = [prompt[cache.lengths[slot] :] for prompt, slot in zip(ordered, firsts, strict=True)]
    logits = decoder.read(rests, cache, slots=firsts)  # (different prompts, V)
    for prompt, slot in zip(ordered, firsts, strict=True):
        others = [slots[index] for index in same[prompt][1:]]
        if others:
            cache.fill(others, cache, slot)
    where = {index: i for i, prompt in enumerate(ordered) for index in same[prompt]}
    return logits[[where[index] for index in range(len(prompts))]]


def refill(decoder: Decoder, cache: KVCache, contents: Mapping[int, Sequence[int]]) -> None:
    """Replace what some slots of a cache hold by these tokens."""
    cache.truncate([0 if b in contents else length for b, length in enumerate(cache.lengths)])
    texts = {slot: tokens for slot, tokens in contents.items() if tokens}
    if texts:
        read_prompts(decoder, list(texts.values()), cache, list(texts))


def _shared(one: Ids, other: Ids) -> int:
    """Return how many tokens of two prompts can be read once: whole pieces, and not all tokens."""
    length = min(common_length(one, other), len(one) - 1, len(other) - 1)
    return length // PIECE * PIECE


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    return next(
        (i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other),
        min(len(a), len(b)),
    )
