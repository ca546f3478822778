"""evaluate: tokens per second of scoring a text, in batches of windows that overlap by half."""

from __future__ import annotations

from pathlib import Path

from measures.timing import SEED_TOKEN, Figures, Task, load_hf, load_kit, seconds


def text_of(task: Task) -> tuple[list[int], int]:
    """Return ids that whole windows cover, and their stride."""
    from gpt2kit.checkpoints.load import open_checkpoint

    config = open_checkpoint(Path(task["model"])).config
    stride = config.n_ctx // 2
    n = config.n_ctx + stride * max(1, task["tokens"] // stride - 2) + 1
    return [(SEED_TOKEN + 7 * position) % config.n_vocab for position in range(n)], stride


def kit(kind: str, task: Task) -> Figures:
    """`gpt2kit.evaluate` without the time to encode the text."""
    import numpy as np

    from gpt2kit.evaluation.perplexity import token_surprisals

    ids, stride = text_of(task)
    model, _ = load_kit(kind, task["model"], task["threads"])
    token_surprisals(model, np.array(ids[:65]), stride=stride)
    taken = seconds(
        lambda: token_surprisals(model, np.array(ids), stride=stride, batch_size=task["batch"])
    )
    return {"tokens_per_second": (len(ids) - 1) / taken}


def hf(kind: str, task: Task) -> Figures:
    """The loop of transformers' page on perplexity, several windows at once."""
    import torch

    ids, stride = text_of(task)
    model = load_hf(kind, task["model"], task["threads"])
    n_ctx = model.config.n_positions
    starts = range(0, len(ids) - n_ctx, stride)

    def go() -> None:
        for first in range(0, len(starts), task["batch"]):
            read = torch.tensor(
                [ids[start : start + n_ctx] for start in starts[first : first + task["batch"]]]
            )
            labels = read.clone()
            labels[0 if first else 1 :, : n_ctx - stride] = -100
            with torch.inference_mode():
                float(model(read, labels=labels).loss)

    with torch.inference_mode():
        model(torch.tensor([ids[:64]]))
    return {"tokens_per_second": (len(ids) - 1) / seconds(go)}
