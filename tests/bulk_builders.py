"""A tiny model for commands over many files, and texts that they read."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import GOLDEN, make_model

from gpt2kit.bulk.job import Job
from gpt2kit.bulk.measures import Score
from gpt2kit.bulk.options import Reading
from gpt2kit.bulk.work import Models
from gpt2kit.config import GPT2Config
from gpt2kit.tokenizers import BPETokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "bark", "at", "night", "rain"]


@dataclass(frozen=True)
class Tiny:
    """Loads a tiny model with random weights, in whichever process this is."""

    seed: int = 0

    def __call__(self, device: str | None = None) -> Models:
        config = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
        tokenizer = BPETokenizer.from_folder(GOLDEN / "bpe" / "small")
        assert tokenizer is not None
        return Models(make_model(config, seed=self.seed), tokenizer)


def write_texts(path: Path, n: int, *, seed: int = 0) -> Path:
    """Write a .jsonl file of n short texts of different lengths."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for index in range(n):
            text = " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))
            file.write(json.dumps({"text": text, "id": f"{path.stem}-{index}"}) + "\n")
    return path


def write_words(path: Path, n: int, *, seed: int = 0) -> Path:
    """Write a .jsonl file with a word in each of n rows, those of texts of different lengths."""
    draw = random.Random(seed)
    with path.open("w") as file:
        item = 0
        for _ in range(n):
            item += draw.random() < 0.2
            file.write(json.dumps({"item": item, "word": draw.choice(WORDS)}) + "\n")
    return path


def job(*inputs: Path, out: Path, part_rows: int = 10, **options: Any) -> Job:
    """Return a job that scores some files with a tiny model, in parts of ten rows."""
    reading = options.pop("reading", Reading(part_rows=part_rows))
    return Job(
        tuple(map(str, inputs)),
        out,
        options.pop("work", Score(batch_size=8)),
        reading,
        options.pop("load", Tiny()),
        **options,
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
