"""An explanation as one web page that needs no network and no other file.

The page is `page.html` with one JSON object in it, which the page's script draws. Attention as a
whole would be too large (150 million numbers for 12 layers of 12 heads on 1,024 tokens), so only
the largest entries of each row are kept: two bytes for the distance, one for the square root of the
weight. What each token becomes without a head takes two bytes.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from gpt2kit.inspection.explanation import Explanation
from gpt2kit.inspection.switching import Switched
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import StreamDecoder

_BUDGET = 12_000_000  # bytes of attention, before base64
_PARTS_OF_A_BIT = 1024  # which two bytes hold up to 64 bits
_MOST, _FEWEST = 16, 2  # entries kept of each row


def entries_to_keep(model: GPT2, n_tokens: int) -> int:
    """Return how many entries of each row of attention fit into a page that still opens quickly."""
    rows = max(1, model.config.n_layer * model.config.n_head * n_tokens)
    return max(_FEWEST, min(_MOST, _BUDGET // (3 * rows)))


def write_page(
    found: Explanation,
    token_bytes: Callable[[int], bytes],
    *,
    model: str,
    head: tuple[int, int] | None = None,
    words: Sequence[Mapping[str, Any]] = (),
    switched: Switched | None = None,
) -> str:
    """Return the page of an explanation, as HTML.

    `token_bytes` gives the bytes of a token, `model` is the name to show, `head` the layer and head
    to show first. Words have a word, first and end, the positions of their tokens, and surprisal
    and surprisal_corrected in bits. With `switched` the reader can switch heads off.
    """
    shown = json.dumps(
        _data(found, token_bytes, model, head, switched) | {"words": list(words)},
        ensure_ascii=False,
        separators=(",", ":"),
    )
    # No text can end the script element, or open a comment in it.
    shown = shown.replace("<", "\\u003c")
    page = files("gpt2kit.inspection").joinpath("page.html").read_text(encoding="utf-8")
    return page.replace("{{data}}", shown).replace("{{title}}", html.escape(model), 1)


def _data(
    found: Explanation,
    token_bytes: Callable[[int], bytes],
    model: str,
    head: tuple[int, int] | None,
    switched: Switched | None,
) -> dict[str, Any]:
    """Return the data of the page's script, which names each token once, by its id."""
    decoder = StreamDecoder(token_bytes)
    pieces = [decoder.feed(token) for token in found.ids]
    pieces[-1] += decoder.finish()
    used = set(found.ids) | {
        each.token for expected in found.expectations for each in expected.alternatives
    }
    data: dict[str, Any] = {
        "model": model,
        "bits": found.surprisal,
        "ids": found.ids,
        "pieces": pieces,  # the text; a token that ends inside a character has an empty piece
        "starts": found.starts,
        "surprisal": [_short(each.surprisal) for each in found.expectations],
        "ranks": [each.rank for each in found.expectations],
        "alternatives": [
            [[each.token, _short(each.probability)] for each in expected.alternatives]
            for expected in found.expectations
        ],
    }
    if found.lens:
        used |= set(found.lens.tokens.flatten().tolist())
        shares = [[_short(share) for share in row] for row in found.lens.probabilities.T.tolist()]
        data["lens"] = {
            "tokens": found.lens.tokens.T.tolist(),
            "probabilities": shares,
        }  # [position][layer]
    if found.strongest and found.strongest.weights.numel():
        _, layers, heads, n = found.strongest.weights.shape
        data["attention"] = {
            "layers": layers,
            "heads": heads,
            "n": n,
            "first": head or (0, 0),
            "distances": base64.b64encode(
                found.strongest.distances.numpy().astype("<u2").tobytes()
            ).decode(),
            "weights": base64.b64encode(found.strongest.weights.numpy().tobytes()).decode(),
        }
    if found.attribution:
        used |= {
            token
            for token in (found.attribution.token, found.attribution.against)
            if token is not None
        }
        parts = [[each.name, _short(each.value)] for each in found.attribution.contributions]
        data["attribution"] = {
            "token": found.attribution.token,
            "against": found.attribution.against,
            "total": _short(found.attribution.total),
            "parts": parts,
        }
    if switched:
        data["switched"] = _without_heads(switched)
        used |= set(switched.tokens.flatten().tolist())
    data["names"] = {
        token: token_bytes(token).decode("utf-8", errors="backslashreplace")
        for token in sorted(used)
    }
    return data


def _without_heads(switched: Switched) -> dict[str, Any]:
    """Return what a page says of each head: the surprisals, (L, H, T), in 1/1024 of a bit."""
    layers, heads, _ = switched.surprisal.shape
    rounded = (switched.surprisal * _PARTS_OF_A_BIT).round().clamp(max=2**16 - 1)
    return {
        "layers": layers,
        "heads": heads,
        "bits": base64.b64encode(rounded.numpy().astype("<u2").tobytes()).decode(),
        "next": [
            [
                [[token, _short(share)] for token, share in zip(*likely, strict=True)]
                for likely in zip(*of_layer, strict=True)
            ]
            for of_layer in zip(
                switched.tokens.tolist(), switched.probabilities.tolist(), strict=True
            )
        ],  # [layer][head]
    }


def _short(value: float | None) -> float | None:
    """Round to four digits, all that a page shows."""
    return None if value is None else float(f"{value:.4g}")
