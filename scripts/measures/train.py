"""train: tokens per second of training on batches of 4 x 256, in bfloat16 with float32 weights."""

from __future__ import annotations

import statistics
from typing import Any

from measures.timing import Figures, Task, load_hf, load_kit, seconds

BATCH, BLOCK = 4, 256


def hf(kind: str, task: Task) -> Figures:
    """A plain loop around transformers' GPT-2.

    It has autocast, all logits in float32, clipped gradients and fused AdamW.
    """
    import torch
    import torch.nn.functional as F

    model = load_hf("float32", task["model"], task["threads"])
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, fused=True)

    def step() -> None:
        ids = torch.randint(0, model.config.vocab_size, (BATCH, BLOCK + 1))
        with torch.autocast("cpu", getattr(torch, kind)):
            logits = model(ids[:, :-1]).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {
        "tokens_per_second": BATCH
        * BLOCK
        / statistics.median([seconds(step) for _ in range(task["tokens"])][1:])
    }


def kit(kind: str, task: Task) -> Figures:
    """`gpt2kit.train` as `gpt2kit finetune` calls it, without saving a run."""
    import numpy as np

    import gpt2kit
    from gpt2kit.checkpoints.memory import keep_freed_memory
    from gpt2kit.data.corpus import Corpus, CorpusReport

    keep_freed_memory()
    dtype: Any = kind
    model, _ = load_kit("float32", task["model"], task["threads"])
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, 100_000).astype(np.uint16)
    report = CorpusReport([], 1, 0, 0, None, None, len(ids), 0, None)
    config = gpt2kit.TrainConfig(
        max_steps=task["tokens"],
        block_size=BLOCK,
        batch_size=BATCH,
        optimizer="adamw",
        lr=3e-5,
        dtype=dtype,
        warmup=1,
    )
    reports = gpt2kit.train(model, Corpus(ids, ids[:0], report, ""), config)
    return {
        "tokens_per_second": statistics.median(
            [report.tokens_per_second for report in reports if report.tokens_per_second][1:]
        )
    }
