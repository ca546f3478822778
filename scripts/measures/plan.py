"""plan: the memory that gpt2kit plans for a training, and the peak of a process that does it."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from measures.timing import Figures, Task, peak_memory

STEPS = 3  # the first one makes the optimizer's averages; validation and a saved state follow

# The size of the model, the rank of adapters, the tokens that are predicted in each row if examples
# are learned, and fields of the TrainConfig.
CASES: dict[str, dict[str, Any]] = {
    "distilgpt2": {"size": "distilgpt2"},
    "distilgpt2 LoRA": {"size": "distilgpt2", "lora_rank": 8},
    "distilgpt2 checkpointing": {"size": "distilgpt2", "checkpointing": True},
    "distilgpt2 accumulate 4": {"size": "distilgpt2", "accumulate": 4},
    "distilgpt2 examples": {"size": "distilgpt2", "predicted": 64},
    "distilgpt2 LoRA examples": {"size": "distilgpt2", "lora_rank": 8, "predicted": 8},
    "124M": {"size": "124M"},
    "124M batch 2": {"size": "124M", "batch_size": 2},
    "124M float32": {"size": "124M", "dtype": "float32"},
    "124M 4 x 1024": {"size": "124M", "batch_size": 4, "block_size": 1024},
    "124M accumulate 4": {"size": "124M", "accumulate": 4},
    "124M checkpointing": {"size": "124M", "checkpointing": True},
    "124M LoRA": {"size": "124M", "lora_rank": 8},
    "355M batch 4": {"size": "355M", "batch_size": 4},
    "355M checkpointing": {"size": "355M", "checkpointing": True},
    "355M LoRA": {"size": "355M", "lora_rank": 8},
}


def kit(kind: str, task: Task) -> Figures:
    """Do three steps of a training that validates and saves, then plan the same training."""
    import torch

    import gpt2kit
    import gpt2kit.cli.training_report  # what `gpt2kit finetune` imports needs memory, too
    from gpt2kit import lora
    from gpt2kit.checkpoints.adapters import save_adapters
    from gpt2kit.checkpoints.load import build_model, open_checkpoint, write_model
    from gpt2kit.checkpoints.memory import keep_freed_memory
    from gpt2kit.training import plan
    from gpt2kit.training.outline import Outline
    from gpt2kit.training.run import Run
    from gpt2kit.training.settings import Settings

    torch.set_num_threads(task["threads"])
    changes = {"dtype": kind, "batch_size": 8, "block_size": 256, **CASES[task["case"]]}
    del changes["size"]
    rank, predicted = changes.pop("lora_rank", 0), changes.pop("predicted", None)
    config = gpt2kit.TrainConfig(
        max_steps=STEPS, optimizer="adamw", warmup=1, eval_every=2, save_every=2, **changes
    )
    model = build_model(open_checkpoint(Path(task["model"])))
    if rank:
        lora.add_adapters(model, rank)
    keep_freed_memory()
    write = partial(save_adapters, base="124M", base_sha256="") if rank else write_model
    settings = Settings(
        command="finetune", options={}, corpus="", start="", model=model.config, training=config
    )
    with tempfile.TemporaryDirectory(dir=task["work"]) as folder:
        run = Run(Path(folder) / "run", settings, write=write)
        batches = (corpus if predicted is None else partial(examples, predicted))(
            model.config.n_vocab, config
        )
        for _ in gpt2kit.train(model, batches, config, run=run):
            pass
        run.close()
    peak = peak_memory()  # before the plan is made, which needs a little memory itself
    planned = plan.memory(Outline.of(model, predicted), config, torch.device("cpu")).total
    return {"planned_GB": planned / 1e9, "measured_GB": peak / 1e9, "error": planned / peak - 1}


def examples(predicted: int, n_vocab: int, config: Any) -> Any:
    """Return random examples, each as long as a row: for the steps, and two batches to validate."""
    import numpy as np

    from gpt2kit.data.example_rows import NOTHING, Encoded, ExampleCorpus

    text = corpus(n_vocab, config)
    parts: list[list[Encoded]] = []
    for ids in (text.train_ids, text.val_ids):
        read = ids[: len(ids) // config.block_size * config.block_size].astype(np.int32)
        rows = read.reshape(-1, config.block_size)
        targets = rows.copy()
        targets[:, :-predicted] = NOTHING
        parts.append([*map(Encoded, rows, targets)])
    train, val = parts
    return ExampleCorpus(train, val, text.report, "")


def corpus(n_vocab: int, config: Any) -> Any:
    """Return random ids: enough for the steps, and two batches to validate with."""
    import numpy as np

    from gpt2kit.data.corpus import Corpus, CorpusReport

    window, part = config.block_size, config.batch_size // config.accumulate
    ids = np.random.default_rng(0).integers(0, n_vocab, 2 * STEPS * config.batch_size * window)
    train_ids = ids.astype(np.uint16)
    val_ids = train_ids[: 2 * part * window + 1]
    report = CorpusReport([], 1, 0, 0, None, None, len(train_ids), len(val_ids), None)
    return Corpus(train_ids, val_ids, report, "")
