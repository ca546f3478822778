"""Engines: logits beside float64 and torch's, alone and in a batch, whole and in pieces.

B rows, T tokens, V vocabulary
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from conftest import available_levels
from torch import Tensor

from campaigns.drawn_models import config_of, model_of, weights_in, weights_of
from campaigns.number_cases import Check, Floats, Tally
from campaigns.rounding import Expected, expected
from gpt2kit.cache import KVCache
from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.protocol import Nodes
from gpt2kit.model import GPT2

LEVELS = available_levels()
Rows = list[list[int]]


@contextlib.contextmanager
def computing(draw: random.Random, tally: Tally) -> Iterator[None]:
    """Draw how the native step computes: its instructions, and the number of threads."""
    threads, chosen = torch.get_num_threads(), draw.choice((1, 1, 2, 3))
    level = draw.choice(LEVELS) if LEVELS else "0"
    tally.seen.append(f"[{level}, {chosen} threads]")
    torch.set_num_threads(chosen)
    try:
        with mock.patch.dict(os.environ, {native.VARIABLE: level}), torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def drawn_model(draw: random.Random, tally: Tally, dtype: str, varied: bool = False) -> GPT2:
    """Draw a model, and note what it is."""
    config = config_of(draw, varied=varied)
    weights, kind = weights_of(draw, config)
    tally.seen.append(f"[{kind}]")
    return model_of(config, weights, dtype)


def rows_of(draw: random.Random, model: GPT2) -> Rows:
    """Draw rows of different lengths, of which some begin alike."""
    config = model.config
    rows: Rows = []
    for _ in range(draw.randint(1, 4)):
        n = draw.randint(1, min(config.n_ctx, draw.choice((1, 5, 13, 70))))
        start = draw.choice(rows)[: draw.randint(0, n)] if rows and draw.random() < 0.3 else []
        rows.append([*start, *(draw.randrange(config.n_vocab) for _ in range(n - len(start)))])
    return rows


def numbers(tensor: Tensor) -> Floats:
    """Return a tensor as an array."""
    found: Floats = tensor.detach().numpy()
    return found


def pieces(draw: random.Random, n: int) -> list[int]:
    """Draw where n tokens are cut."""
    return sorted({*draw.choices(range(n + 1), k=draw.randint(0, 3)), 0, n})


# --- logits beside float64 ------------------------------------------------------------------------


def logits(dtype: str, *, varied: bool = False) -> Check:
    """Return the check of models of a dtype against float64: all engines, all positions."""

    def check(draw: random.Random, tally: Tally) -> None:
        model = drawn_model(draw, tally, dtype, varied)
        with computing(draw, tally):
            decoder = Decoder(model)
            tally.seen.append(decoder.name())
            rows = rows_of(draw, model)
            weights, seed = weights_in(model), draw.getrandbits(64)
            exact = [expected(model.config, weights, row, dtype, seed) for row in rows]
            read = decoder.read_each(rows, model.new_cache(len(rows)))
            damaged = not all(np.isfinite(each).all() for each in weights.values())
            is_native = decoder.name() != "torch"
            for found, ids, each in zip(read, rows, exact, strict=True):
                may_refuse = damaged and not is_native
                compare(tally, numbers(found), each, f"the engine, {ids}", may_refuse=may_refuse)
                torchs = numbers(model(torch.tensor([ids]), model.new_cache())[0].float())
                compare(tally, torchs, each, f"torch, {ids}", may_refuse=damaged)
            if is_native:
                alone_and_in_pieces(draw, tally, decoder, rows, read)
            else:
                last = read_cut(draw, decoder, rows)
                for row, found, each in zip(rows, last, exact, strict=True):
                    what = f"torch in pieces, {row}"
                    compare(tally, numbers(found)[None], each.last(), what, may_refuse=damaged)

    return check


def compare(
    tally: Tally, found: Floats, exact: Expected, what: str, *, may_refuse: bool = False
) -> None:
    """Compare the logits (T, V) of an engine with those of float64.

    If float64 is unsure, nothing is asked. If it `may_refuse`, as torch with weights that are not
    finite, more may be not finite: it gives later tokens, and padding, the weight 0, and 0 times
    NaN is NaN. And less: if all scores of a token are minus infinity, its attention may be 0.
    """
    tally.refused |= not np.isfinite(exact.logits).all()
    if exact.unsure:
        tally.unsure += len(found)
        return
    for position, own in enumerate(found):
        logits, tolerance = exact.logits[position], exact.tolerance[position]
        if may_refuse:
            logits = np.where(np.isfinite(own), logits, np.nan)
            if exact.unseeing and not np.isfinite(logits).all():
                continue
        if (np.abs(own - logits) > tolerance).any():
            tolerance = exact.wider()[position]
        tally.close(own, logits, tolerance, f"{what}, position {position}")


def read_cut(draw: random.Random, decoder: Decoder, rows: Rows) -> Tensor:
    """Read rows in pieces, several of them beside each other; return the last logits, (B, V)."""
    cache = decoder.new_cache(len(rows), max(map(len, rows)))
    cuts = [pieces(draw, len(row)) for row in rows]
    last: list[Tensor] = [torch.empty(0)] * len(rows)
    while waiting := [b for b, cut in enumerate(cuts) if len(cut) > 1]:
        chosen = sorted(draw.sample(waiting, draw.randint(1, len(waiting))))
        parts = [rows[b][cuts[b][0] : cuts[b][1]] for b in chosen]
        found = decoder.read(parts, cache, slots=chosen)
        for b, own in zip(chosen, found, strict=True):
            cuts[b].pop(0)
            last[b] = own
    return torch.stack(last)


# --- the same bits --------------------------------------------------------------------------------


def alone_and_in_pieces(
    draw: random.Random, tally: Tally, decoder: Decoder, rows: Rows, read: Sequence[Tensor]
) -> None:
    """Compare what rows give together with each alone, in pieces, and scored: the same bits."""
    cut = read_cut(draw, decoder, rows)
    wanted = [draw.randint(1, len(row)) for row in rows]
    scored = torch.split(torch.cat(list(decoder.score(rows, wanted))), wanted)
    for b, row in enumerate(rows):
        alone = decoder.read([row], decoder.new_cache(1, len(row)))[0]
        expected = numbers(read[b])
        tally.same_bits(numbers(alone), expected[-1], f"alone {row}")
        tally.same_bits(numbers(cut[b]), expected[-1], f"in pieces {row}")
        tally.same_bits(numbers(scored[b]), expected[-wanted[b] :], f"scored {row}")


def caches(dtype: str) -> Check:
    """Return the check of a cache whose slots are read, cut short, freed, copied and dropped."""

    def check(draw: random.Random, tally: Tally) -> None:
        model = drawn_model(draw, tally, dtype)
        with computing(draw, tally):
            decoder = Decoder(model)
            n_ctx = model.config.n_ctx
            cache = decoder.new_cache(draw.randint(1, 5), n_ctx)
            held: Rows = [[] for _ in cache.lengths]
            for _ in range(draw.randint(2, 7)):
                change(draw, cache, held)
                tally.equal(cache.lengths, [len(row) for row in held], "lengths")
                free = [slot for slot, row in enumerate(held) if len(row) < n_ctx]
                if not free:
                    continue
                slots = draw.sample(free, draw.randint(1, len(free)))
                new = [
                    draw.choices(range(model.config.n_vocab), k=draw.randint(1, min(9, room)))
                    for room in (n_ctx - len(held[slot]) for slot in slots)
                ]
                found = decoder.read(new, cache, slots=slots)
                for slot, tokens, own in zip(slots, new, found, strict=True):
                    held[slot] = [*held[slot], *tokens]
                    alone = decoder.read([held[slot]], decoder.new_cache(1, n_ctx))[0]
                    tally.same_bits(numbers(own), numbers(alone), f"{held} slot {slot}")

    return check


def change(draw: random.Random, cache: KVCache, held: Rows) -> None:
    """Change a cache between two steps, and what its slots hold."""
    slot, kind = draw.randrange(len(held)), draw.randrange(6)
    if kind == 0:
        cache.free([slot])
        held[slot] = []
    elif kind == 1:
        held[:] = [row[: draw.randint(0, len(row))] for row in held]
        cache.truncate([len(row) for row in held])
    elif kind == 2:
        kept = draw.sample(range(len(held)), draw.randint(1, len(held)))
        cache.keep(kept)
        held[:] = [held[each] for each in kept]
    elif kind == 3:
        source = draw.randrange(len(held))
        length = draw.randint(0, len(held[source]))
        cache.fill([slot], cache, source, length)
        held[slot] = held[source][:length]


def trees(dtype: str) -> Check:
    """Return the check of rows that begin alike and are scored as a tree: as each alone."""

    def check(draw: random.Random, tally: Tally) -> None:
        model = drawn_model(draw, tally, dtype)
        with computing(draw, tally):
            decoder, V = Decoder(model), model.config.n_vocab
            begun = draw.randint(1, max(1, model.config.n_ctx // 2))
            room = model.config.n_ctx - begun
            start = draw.choices(range(V), k=begun)
            ends = [
                draw.choices(range(V), k=draw.randint(1, min(6, room)))
                for _ in range(draw.randint(1, 4))
            ]
            ends = [end for end in ends if room]
            nodes = [(token, 0, i, max(1, len(ends))) for i, token in enumerate(start)]
            for slot, end in enumerate(ends):
                nodes += [(token, slot, begun + i, 1) for i, token in enumerate(end)]
            tree = Nodes(*map(list, zip(*nodes, strict=True)))
            found = torch.cat(list(decoder.score_nodes([tree])))
            alone = decoder.read_each([start], model.new_cache())[0]
            tally.same_bits(numbers(found[:begun]), numbers(alone), f"tree {start}")
            at = begun
            for end in ends:
                whole = decoder.read_each([[*start, *end]], model.new_cache())[0][begun:]
                tally.same_bits(
                    numbers(found[at : at + len(end)]), numbers(whole), f"tree {start} {end}"
                )
                at += len(end)

    return check


def shortlist(dtype: str) -> Check:
    """Return the check that the shortlist leaves out no logit that is among the largest."""

    def check(draw: random.Random, tally: Tally) -> None:
        model = drawn_model(draw, tally, dtype)
        with computing(draw, tally), mock.patch.object(native, "LARGE_HEAD", 0):
            row = rows_of(draw, model)[0]
            whole = numbers(Decoder(model).read([row], model.new_cache())[0])
            k = draw.randint(1, model.config.n_vocab)
            listed = Decoder(model).read([row], model.new_cache(), most_likely=k)[0]
            short = numbers(listed)
            if not np.isfinite(whole).all():
                tally.refused = True
                finite = np.isfinite(short.max(initial=-np.inf))
                tally.require(not np.isnan(whole).any() or not finite, f"NaN lost, {row}")
                return
            least = np.sort(whole)[-k]
            there = short > -np.inf
            tally.same_bits(short[there], whole[there], f"the {k} largest of {row}")
            tally.require(bool(there[whole >= least].all()), f"a large one is missing, {row}")

    return check


ENGINES: dict[str, Callable[[str], Check]] = {
    "logits": logits,
    "caches": caches,
    "trees": trees,
    "shortlist": shortlist,
}
