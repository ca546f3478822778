"""constrain: what a constraint adds to a token, and how long its tables take."""

from __future__ import annotations

import statistics
import time
from typing import Any

from measures.timing import Figures, Task, load_kit, seconds

TURNS = 3
# A state for each character, so that every step comes to new ones; and half of all bytes.
PATTERN = r"[^{}\n]{4000}"


def kit(kind: str, task: Task) -> Figures:
    import gpt2kit

    model, tokenizer = load_kit(kind, task["model"], task["threads"])
    assert tokenizer is not None

    def rate(**options: Any) -> float:
        """Return the tokens per second of one text, without the time to read the prompt."""
        pieces = gpt2kit.stream(
            model,
            tokenizer,
            "an",
            max_tokens=task["tokens"],
            seed=1,
            **{"ignore_eos": True, "top_k": 40, **options},
        )
        next(pieces)
        start = time.perf_counter()
        n = sum(1 for _ in pieces)
        return n / (time.perf_counter() - start)

    def tables(**options: Any) -> float:
        return seconds(
            lambda: gpt2kit.stream(model, tokenizer, "a", max_tokens=1, seed=1, **options)
        )

    first, again = tables(regex=PATTERN), tables(regex=PATTERN)
    lines = [f"{i:05}"[::-1] for i in range(30_000)]
    forbidden = tables(forbid=lines)
    rate(top_k=0)
    cases: dict[str, dict[str, Any]] = {
        "regex": {"regex": PATTERN},
        "valid_utf8": {"valid_utf8": True},
        "all_logits": {"logit_bias": {0: 1e-6}},  # free, but without the shortlist
        "free": {},
    }
    turns = [{name: rate(**options) for name, options in cases.items()} for _ in range(TURNS)]
    rates = {name: statistics.median(turn[name] for turn in turns) for name in cases}
    return {
        "tokens_per_second": rates["regex"],
        **{name: rates[name] for name in ("valid_utf8", "all_logits", "free")},
        "added": rates["all_logits"] / rates["regex"] - 1,
        "tables_s": first,
        "kept_s": again,
        "forbid_30000_s": forbidden,
    }
