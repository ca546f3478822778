"""Prompts into a cache: what several of them have in common is read once.

B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine.decoder import Decoder

# A common beginning is read by itself from so many tokens on: below, passing over the weights once more costs what it saves.
WORTH_SHARING = 32

Ids = tuple[int, ...]


def read_prompts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], cache: KVCache, places: Sequence[int]
) -> Tensor:
    """Read each prompt into its place, an emptied row of the cache, and return the logits after it: (len(prompts), V).

    Equal prompts are read once, and so are long beginnings that several share; then what is left of prompts of equal length
    is read together, so that nothing is padded.
    """
    numbers: dict[Ids, list[int]] = {}  # a prompt, and where in the list it is
    for number, prompt in enumerate(prompts):
        numbers.setdefault(tuple(prompt), []).append(number)
    model = decoder.model
    logits = torch.empty(
        (len(prompts), model.config.n_vocab),
        dtype=torch.promote_types(model.dtype, torch.float32),
        device=model.device,
    )
    beginnings: dict[Ids, KVCache] = {}
    for (beginning, length), group in _groups(list(numbers)).items():
        if beginning and beginning not in beginnings:
            beginnings[beginning] = model.new_cache(1, capacity=len(beginning))
            decoder.read(torch.tensor([beginning], device=model.device), beginnings[beginning])
        theirs = [
            [places[number] for number in numbers[prompt]] for prompt in group
        ]  # rows of the cache
        is_whole = theirs == [[row] for row in range(cache.batch_size)]
        own = cache if is_whole else model.new_cache(len(group), capacity=length)
        if beginning:
            own.fill(range(len(group)), beginnings[beginning], 0)
        ids = torch.tensor(
            [prompt[len(beginning) :] for prompt in group], device=model.device
        )  # (different prompts, T)
        found = decoder.read(ids, own)  # (different prompts, V)
        for row, prompt in enumerate(group):
            logits[numbers[prompt]] = found[row]
            if not is_whole:
                cache.fill(theirs[row], own, row)
    return logits


def refill(decoder: Decoder, cache: KVCache, contents: Mapping[int, Sequence[int]]) -> None:
    """Let some rows of a cache hold these tokens and no others."""
    cache.truncate([0 if row in contents else length for row, length in enumerate(cache.lengths)])
    prompts = {row: tokens for row, tokens in contents.items() if tokens}
    if prompts:
        read_prompts(decoder, list(prompts.values()), cache, list(prompts))


def _groups(prompts: Sequence[Ids]) -> dict[tuple[Ids, int], list[Ids]]:
    """Sort different prompts by the beginning that they share with others, () for none, and by length."""
    families: dict[tuple[Ids, bool], list[Ids]] = {}
    for prompt in prompts:
        families.setdefault((prompt[:WORTH_SHARING], len(prompt) > WORTH_SHARING), []).append(
            prompt
        )
    groups: dict[tuple[Ids, int], list[Ids]] = {}
    for family in families.values():
        beginning = _common_beginning(family) if len(family) > 1 else ()
        for prompt in family:
            groups.setdefault((beginning, len(prompt)), []).append(prompt)
    return groups


def _common_beginning(prompts: Sequence[Ids]) -> Ids:
    """Return what all of these begin with, and leave a token of each to be read after it."""
    length = common_length(
        min(prompts), max(prompts)
    )  # in the order of tuples, all others lie between these
    return prompts[0][: min(length, min(map(len, prompts)) - 1)]


def common_length(some: Sequence[int], others: Sequence[int]) -> int:
    """Return with how many equal tokens two sequences begin."""
    return next(
        (i for i, (one, other) in enumerate(zip(some, others, strict=False)) if one != other),
        min(len(some), len(others)),
    )
