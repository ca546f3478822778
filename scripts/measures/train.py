"""train: tokens per second of training on batches of 4 x 256, in bfloat16 with float32 weights."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from measures.timing import Figures, Task, load_hf, load_kit, seconds

BATCH, BLOCK = 4, 256


def hf(kind: str, task: Task) -> Figures:
    """transformers' GPT-2 in a plain loop, with all logits in float32."""
    import torch.nn.functional as F

    model = load_hf("float32", task["model"], task["threads"])
    for part in model.modules():
        if hasattr(part, "p") and task["dropout"] is not None:
            part.p = task["dropout"]

    def loss(ids: Any) -> Any:
        logits = model(ids[:, :-1]).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    return plain_loop(kind, task, model, loss, n_vocab=model.config.vocab_size)


def nanogpt(kind: str, task: Task) -> Figures:
    """nanoGPT's model of the same shape, from a copy of its repository, in the same loop."""
    import torch

    from gpt2kit.checkpoints.load import open_checkpoint

    torch.set_num_threads(task["threads"])
    source = Path(task["nanogpt"]) / "model.py"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not there; --nanogpt is a copy of the repository")
    theirs: Any = _module(source)
    config = open_checkpoint(Path(task["model"])).config
    model = theirs.GPT(
        theirs.GPTConfig(
            block_size=config.n_ctx,
            vocab_size=config.n_vocab,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            dropout=config.resid_pdrop if task["dropout"] is None else task["dropout"],
        )
    )

    def loss(ids: Any) -> Any:
        return model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1]

    return plain_loop(kind, task, model, loss, n_vocab=config.n_vocab)


def _module(path: Path) -> object:
    """Return a module of another project, read from its file."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_loop(
    kind: str, task: Task, model: Any, loss: Callable[[Any], Any], *, n_vocab: int
) -> Figures:
    """Train a model with autocast, clipped gradients and fused AdamW."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, fused=True)

    def step() -> None:
        ids = torch.randint(0, n_vocab, (BATCH, BLOCK + 1))
        with torch.autocast("cpu", getattr(torch, kind)):
            mean = loss(ids)
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = [seconds(step) for _ in range(task["tokens"])][1:]
    return {"tokens_per_second": BATCH * BLOCK / statistics.median(times)}


def kit(kind: str, task: Task) -> Figures:
    """`gpt2kit.train` as `gpt2kit finetune` calls it, without saving a run."""
    import numpy as np

    import gpt2kit
    from gpt2kit.checkpoints.memory import keep_freed_memory
    from gpt2kit.data.corpus import Corpus, CorpusReport
    from gpt2kit.model import GPT2

    keep_freed_memory()
    dtype: Any = kind
    model, _ = load_kit("float32", task["model"], task["threads"])
    if (p := task["dropout"]) is not None:
        weights = model.state_dict()
        model = GPT2(replace(model.config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p))
        model.load_state_dict(weights, assign=True)
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
