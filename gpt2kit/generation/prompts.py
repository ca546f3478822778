"""Read prompts into a cache, and what several of them have in common only once.

B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine.decoder import Decoder
from gpt2kit.model import precise

# Shared beginnings of fewer tokens are read with each prompt: another pass over the weights would
# cost more than it saves.
WORTH_SHARING = 32

Ids = tuple[int, ...]


def read_prompts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], cache: KVCache, rows: Sequence[int]
) -> Tensor:
    """Read prompt i into row rows[i] of the cache, which must be empty; return (prompts, V) logits.

    The logits are those after each prompt's last token. Equal prompts are read once, and so are
    long beginnings that several prompts share. The rests of equal length are then read together,
    so that nothing is padded.
    """
    wanted: dict[Ids, list[int]] = {}  # a prompt, and its indices in the list
    for index, prompt in enumerate(prompts):
        wanted.setdefault(tuple(prompt), []).append(index)
    model = decoder.model
    logits = precise(
        torch.empty((len(prompts), model.config.n_vocab), dtype=model.dtype, device=model.device)
    )
    beginnings: dict[Ids, KVCache] = {}
    for (beginning, length), group in _groups(list(wanted)).items():
        if beginning and beginning not in beginnings:
            beginnings[beginning] = model.new_cache(1, capacity=len(beginning))
            decoder.read(torch.tensor([beginning], device=model.device), beginnings[beginning])
        targets = [[rows[index] for index in wanted[prompt]] for prompt in group]
        is_whole = targets == [[row] for row in range(cache.batch_size)]
        own = cache if is_whole else model.new_cache(len(group), capacity=length)
        if beginning:
            own.fill(range(len(group)), beginnings[beginning], 0)
        rests = [prompt[len(beginning) :] for prompt in group]
        found = decoder.read(torch.tensor(rests, device=model.device), own)  # (group, V)
        for i, prompt in enumerate(group):
            logits[wanted[prompt]] = found[i]
            if not is_whole:
                cache.fill(targets[i], own, i)
    return logits


def refill(decoder: Decoder, cache: KVCache, contents: Mapping[int, Sequence[int]]) -> None:
    """Replace what some rows of a cache hold by these tokens."""
    cache.truncate([0 if row in contents else length for row, length in enumerate(cache.lengths)])
    prompts = {row: tokens for row, tokens in contents.items() if tokens}
    if prompts:
        read_prompts(decoder, list(prompts.values()), cache, list(prompts))


def _groups(prompts: Sequence[Ids]) -> dict[tuple[Ids, int], list[Ids]]:
    """Group different prompts by the beginning they share with others, () for none, and length."""
    families: dict[tuple[Ids, bool], list[Ids]] = {}
    for prompt in prompts:
        key = prompt[:WORTH_SHARING], len(prompt) > WORTH_SHARING
        families.setdefault(key, []).append(prompt)
    groups: dict[tuple[Ids, int], list[Ids]] = {}
    for family in families.values():
        beginning = _common_beginning(family) if len(family) > 1 else ()
        for prompt in family:
            groups.setdefault((beginning, len(prompt)), []).append(prompt)
    return groups


def _common_beginning(prompts: Sequence[Ids]) -> Ids:
    """Return the beginning that all share, leaving one token of each to be read after it."""
    # In the order of tuples, all prompts lie between the smallest and the largest.
    length = common_length(min(prompts), max(prompts))
    return prompts[0][: min(length, min(map(len, prompts)) - 1)]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    return next(
        (i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other),
        min(len(a), len(b)),
    )
