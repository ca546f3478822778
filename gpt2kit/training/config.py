"""How to train: every choice that the loop needs, made and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option

Dtype = Literal["float32", "bfloat16"]
OptimizerName = Literal["muon", "adamw"]
Schedule = Literal["cosine", "linear", "constant"]

LARGEST_SEED = 2**63 - 1  # that torch's generators take


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. The defaults are for a small model from scratch.

    Raises ConfigError for a value that breaks its rule. A field that is added must have the default
    that leaves older runs as they were: their run.json lacks it.
    """

    max_steps: int = option(help="Number of training steps in all.", at_least=1)
    block_size: int = option(
        256, "Length of a window, or of a row of examples, in tokens.", at_least=1
    )
    batch_size: int = option(
        16, "Windows, or rows of examples, in each step: of all processes together.", at_least=1
    )
    accumulate: int = option(
        1, "Parts that a batch is cut into, to save memory: one is computed at a time.", at_least=1
    )
    shuffle: bool = option(
        True,
        "Read the windows in random order, another one in each pass; otherwise as in the text.",
    )
    stride: int | None = option(
        None,
        "Tokens from the beginning of a window to that of the next; fewer than block_size let "
        "windows overlap.",
        default="block_size",
        at_least=1,
    )
    optimizer: OptimizerName = option(
        "muon",
        "muon: Muon updates the matrices of the blocks, AdamW the rest; adamw: AdamW updates "
        "everything.",
    )
    lr: float = option(3e-3, "Highest learning rate.", above=0)
    schedule: Schedule = option("linear", "How the learning rate falls after the warm-up.")
    warmup: int = option(50, "Steps during which the learning rate rises.", at_least=0)
    warmdown: int = option(
        0,
        "With --schedule constant: how many of the last steps let the learning rate fall to nearly "
        "zero.",
        at_least=0,
    )
    weight_decay: float = option(
        0.01,
        "In each step, matrices and embeddings shrink by this share times the learning rate.",
        at_least=0,
    )
    beta1: float = option(0.9, "Decay rate of AdamW's average of gradients.", at_least=0, below=1)
    beta2: float = option(
        0.95, "Decay rate of AdamW's average of their squares.", at_least=0, below=1
    )
    clip: float = option(
        1.0, "Scale a gradient with a larger norm down to this norm; 0 never does.", at_least=0
    )
    dtype: Dtype = option(
        "float32", "Precision of matrix products; weights and optimizer are float32."
    )
    checkpointing: bool = option(
        False, "Recompute each block in the backward pass, which saves memory."
    )
    compile: bool = option(False, "Compile the model with torch, which takes a while at the start.")
    eval_every: int = option(100, "Steps between validations.", at_least=1)
    eval_tokens: int = option(
        2**18, "Use at most this many tokens of the validation text.", at_least=1
    )
    eval_train: bool = option(
        False,
        "At each validation, also measure the loss of the training text, in the same way and on as "
        "many tokens.",
    )
    save_every: int = option(100, "Steps between saved states.", at_least=1)
    patience: int = option(
        0, "Stop after this many validations without a lower loss; 0 never stops.", at_least=0
    )
    seed: int = option(
        0,
        "Seed of new weights, of the order of the windows, and of dropout.",
        at_least=0,
        at_most=LARGEST_SEED,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.warmup >= self.max_steps:
            raise ConfigError(
                f"warmup is {self.warmup}, expected less than the {self.max_steps} steps in all"
            )
        if self.warmup + self.warmdown > self.max_steps:
            raise ConfigError(
                f"warmdown is {self.warmdown}, expected at most {self.max_steps - self.warmup}: "
                "the steps after the warm-up"
            )
        if self.stride is not None and self.stride > self.block_size:
            raise ConfigError(
                f"stride is {self.stride}, expected at most block_size, which is "
                f"{self.block_size}: more would leave tokens out"
            )
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate is {self.accumulate}, expected a divisor of batch_size, "
                f"which is {self.batch_size}"
            )
