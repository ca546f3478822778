"""The options of fine-tuning as keyword arguments of a function, for editors and type checkers."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from gpt2kit.training.config import Dtype, OptimizerName, Schedule


class FinetuneKeywords(TypedDict, total=False):
    """The options of `gpt2kit.finetune` in Python: `FinetuneOptions` but for the samples."""

    max_steps: int | None
    epochs: float | None
    block_size: int | None
    batch_size: int | None
    accumulate: int | None
    shuffle: bool
    stride: int | None
    schedule: Schedule
    warmup: int | None
    warmdown: int
    weight_decay: float
    beta1: float
    beta2: float
    clip: float
    freeze: str
    seed: int
    dtype: Dtype | None
    checkpointing: bool | None
    compile: bool
    device: str
    eval_every: int | None
    eval_tokens: int
    eval_train: bool
    save_every: int | None
    patience: int
    val_fraction: float
    val: str | Path | None
    encoding: str
    text_field: str
    prompt_field: str | None
    completion_field: str | None
    label_field: str | None
    label_head: bool
    separator: str | None
    model: str | Path
    lora_rank: int
    lora_alpha: float | None
    stack: bool
    fresh_optimizer: bool
    optimizer: OptimizerName
    lr: float | None
    dropout: float | None
