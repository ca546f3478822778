"""score: tokens per second of scoring short sentences, alone and in pairs that begin alike."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

from measures.timing import Figures, Task, load_hf, load_kit, seconds


def sentences(task: Task) -> list[list[int]]:
    """Return ids of sentences of 8 to 15 tokens; every second one begins as the one before it."""
    draw = random.Random(0)
    found: list[list[int]] = []
    while sum(map(len, found)) < task["tokens"]:
        one = [draw.randrange(task["n_vocab"]) for _ in range(draw.randint(8, 15))]
        ends = [draw.randrange(task["n_vocab"]) for _ in range(len(one) // 2)]
        found += [one, [*one[: len(one) - len(ends)], *ends]]
    return found


def kit(kind: str, task: Task) -> Figures:
    """`gpt2kit score` and, for pairs, `gpt2kit evaluate --task blimp`, without encoding."""
    from gpt2kit.evaluation.beginnings import text_surprisals
    from gpt2kit.evaluation.surprisal import Window, by_length

    model, _ = load_kit(kind, task["model"], task["threads"])
    texts, batch = sentences(task), task["batch"]
    work = [Window(text, len(text) - 1) for text in texts]
    by_length(model, work[:2])
    n = sum(window.scored for window in work)
    return {
        "tokens_per_second": n / seconds(lambda: by_length(model, work, batch_size=batch)),
        "in_pairs": n / seconds(lambda: text_surprisals(model, texts, batch_size=batch)),
    }


def hf(kind: str, task: Task) -> Figures:
    """Padded batches, and `forward`: one text that is as long as the model allows."""
    import torch

    model = load_hf(kind, task["model"], task["threads"])
    texts = sentences(task)

    def read(ids: Any) -> Any:
        return model(torch.tensor(ids)).logits.float().log_softmax(-1)

    def go() -> None:
        for start in range(0, len(texts), task["batch"]):
            some = texts[start : start + task["batch"]]
            longest = max(map(len, some)) - 1
            logprobs = read([text[:-1] + [0] * (longest - len(text) + 1) for text in some])
            for row, text in zip(logprobs, some, strict=True):
                float(row[range(len(text) - 1), text[1:]].sum())

    n_ctx = model.config.n_positions
    with torch.inference_mode():
        read(texts[:1])
        found = {"tokens_per_second": sum(len(text) - 1 for text in texts) / seconds(go)}
        found["forward"] = n_ctx / seconds(lambda: read([[7] * n_ctx]))
    return found


def texts_of(sentences: Iterable[list[int]], tokenizer: Any) -> list[str]:
    """Return texts that have as many tokens as each sentence has after its first one.

    minicons reads texts: each id is exchanged for one of a whole word, with the space before it.
    """
    pieces = {tokenizer.decode([token]) for token in range(len(tokenizer))}
    words = sorted(piece for piece in pieces if re.fullmatch(" [a-z]+", piece))
    return ["".join(words[token % len(words)] for token in ids[1:]) for ids in sentences]


def minicons(kind: str, task: Task) -> Figures:
    """`sequence_score` after <|endoftext|>, in batches and, as it does by default, `one_by_one`."""
    from minicons.scorer import IncrementalLMScorer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    model = load_hf(kind, task["model"], task["threads"])
    scorer = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    texts = texts_of(sentences(task), tokenizer)
    n = sum(len(tokenizer(text).input_ids) for text in texts)

    def go(batch: int) -> None:
        for start in range(0, len(texts), batch):
            scorer.sequence_score(
                texts[start : start + batch],
                reduction=lambda nats: nats.sum().item(),
                bos_token=True,
            )

    scorer.sequence_score(texts[:2], bos_token=True)
    return {
        "tokens_per_second": n / seconds(go, task["batch"]),
        "one_by_one": n / seconds(go, 1),
    }
