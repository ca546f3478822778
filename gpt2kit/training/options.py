"""What a user can say about a training: the options of `train` and `finetune`, each once.

An option that is None was not given, and is chosen to suit the text, the model and the machine:
its help says how, in the words of `default`. What the options lead to is a `TrainConfig`, from
which many of them have their rule and their help.

Nothing here imports torch, so that `--help` is instant.
"""

# ruff: noqa: RUF009 (each field is made by a function call, which is what they are for)
from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpt2kit.config import Activation, GPT2Config, Head, Mlp, Norm, Positions
from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option, rules, same_option, shortened
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.training.config import Dtype, OptimizerName, Schedule, TrainConfig

_config = functools.partial(same_option, TrainConfig)
_shape = functools.partial(same_option, GPT2Config, group="Model")
_text = functools.partial(option, group="Corpus")
_train = functools.partial(_config, group="Training")
_samples = functools.partial(option, group="Samples")
_sampling = functools.partial(same_option, Sampling, group="Samples")
_saving = functools.partial(_config, group="Validation and saving")

DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
PARTS = "embeddings, norms, attention, mlp, head, blocks:0-5"  # that can be frozen


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options that `train` and `finetune` share.

    Raises ConfigError for a value that breaks its rule.
    """

    BLOCK_SIZE: ClassVar[int] = 256
    MOST_WARMUP: ClassVar[int] = 100
    VALIDATIONS: ClassVar[int] = 20

    max_steps: int | None = _train("max_steps", None)
    epochs: float | None = option(
        None, "Passes over the training text, instead of --max_steps.", group="Training", above=0
    )
    block_size: int | None = _train(
        "block_size",
        None,
        default=f"{BLOCK_SIZE}, or less for a short text",
    )
    batch_size: int | None = _train("batch_size", None)
    accumulate: int | None = _train("accumulate", None, default="as few as fit in memory")
    shuffle: bool = _train("shuffle")
    stride: int | None = _train("stride")
    schedule: Schedule = _train("schedule")
    warmup: int | None = _train(
        "warmup", None, default=f"a tenth of the steps, at most {MOST_WARMUP}"
    )
    warmdown: int = _train("warmdown")
    weight_decay: float = _train("weight_decay")
    beta1: float = _train("beta1")
    beta2: float = _train("beta2")
    clip: float = _train("clip")
    freeze: str = option(
        "", f"Parts to leave untrained, separated by commas: {PARTS}.", group="Training"
    )
    seed: int = _train("seed")

    dtype: Dtype | None = _config(
        "dtype", None, default="the faster one on this device", group="Speed and memory"
    )
    checkpointing: bool | None = _config(
        "checkpointing",
        None,
        default="if it would not fit in memory otherwise",
        group="Speed and memory",
    )
    compile: bool = _config("compile", group="Speed and memory")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, …", group="Speed and memory")

    eval_every: int | None = _saving(
        "eval_every", None, default=f"the steps divided by {VALIDATIONS}"
    )
    eval_tokens: int = _saving("eval_tokens")
    eval_train: bool = _saving("eval_train", True)
    save_every: int | None = _saving("save_every", None, default="as eval_every")
    patience: int = _saving("patience", 5)

    val_fraction: float = _text(
        0.1,
        "Share of the corpus to validate with: the end of a text, or some of the examples.",
        at_least=0,
        below=1,
    )
    val: str | None = _text(None, "Another text, or table of examples, to validate with.")
    encoding: str = _text("utf-8", "Encoding of the corpus.")
    text_field: str = _text(
        "text", "The field of a .jsonl file, or column of a table, that holds the text."
    )

    sample_every: int | None = _samples(
        None, "Steps between samples; 0 writes none.", default="as eval_every", at_least=0
    )
    sample_tokens: int = _samples(100, "Tokens of a sample.", at_least=0)
    sample_count: int = same_option(
        Request, "num_samples", help="Samples each time.", group="Samples"
    )
    sample_temperature: float = _sampling("temperature")
    sample_top_k: int = _sampling("top_k")
    sample_top_p: float = _sampling("top_p")
    prompt: str | None = _samples(
        None, "The text that samples continue.", default="how the validation text begins"
    )
    stop_when_copied: float = _samples(
        1.0,
        "Stop when this share of a sample is copied from the corpus; 1 never stops.",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.max_steps is not None and self.epochs is not None:
            raise ConfigError("max_steps and epochs are both given; leave one out")

    @property
    def sampling(self) -> Sampling:
        """How the tokens of samples are chosen."""
        return Sampling(
            temperature=self.sample_temperature, top_k=self.sample_top_k, top_p=self.sample_top_p
        )

    def without_effect(self) -> dict[str, str]:
        """Return options that have no effect together with the others, each with the reason."""
        idle = {} if self.val is None else {"val_fraction": "--val names a text to validate with"}
        if self.schedule != "constant":
            idle["warmdown"] = "it is for --schedule constant"
        return idle


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions):
    """The options of `train`: a new model."""

    MAX_STEPS: ClassVar[int] = 2000
    BATCH_SIZE: ClassVar[int] = 16
    N_EMBD: ClassVar[int] = 192

    recipe: str | None = option(
        None, "Take the options of a recipe (see gpt2kit recipes); those given here win."
    )
    max_steps: int | None = _train("max_steps", None, default=str(MAX_STEPS))
    batch_size: int | None = _train("batch_size", None, default=str(BATCH_SIZE))
    optimizer: OptimizerName = _train("optimizer")
    lr: float = _train("lr")
    dropout: float = option(
        0.1, "Dropout probability, everywhere in the model.", group="Training", at_least=0, below=1
    )
    embd_pdrop: float | None = _shape("embd_pdrop", None, group="Training", default="as dropout")
    attn_pdrop: float | None = _shape("attn_pdrop", None, group="Training", default="as dropout")
    resid_pdrop: float | None = _shape("resid_pdrop", None, group="Training", default="as dropout")

    tokenizer: Literal["char", "word", "bpe"] = option(
        "char", "What becomes a token: a character, a word, or a piece of one.", group="Vocabulary"
    )
    vocabulary: str | None = option(
        None,
        "With bpe: use the vocabulary of this model instead of learning one from the corpus.",
        group="Vocabulary",
        metavar="MODEL",
    )
    n_vocab: int = option(
        1024, "With bpe: size of the vocabulary to learn.", group="Vocabulary", at_least=1
    )
    replace: tuple[str, ...] = option(
        (),
        "With word: replace what a regular expression finds by a marker, in the corpus and in "
        "every later prompt: '[0-9]+=<NUM>'. May be repeated.",
        group="Vocabulary",
        metavar="REGEX=<NAME>",
    )
    markers: str = option(
        "",
        "With word: markers to add, any of pad,bos,eos,unk: bos and eos stand around each "
        "document, eos ends generation, unk stands for unknown words, pad is reserved.",
        group="Vocabulary",
    )

    n_layer: int = _shape("n_layer", 6)
    n_head: int = _shape("n_head", 6)
    n_embd: int | None = _shape(
        "n_embd", None, default=f"{N_EMBD}, or the size of the vocabulary without a head"
    )
    n_inner: int | None = _shape("n_inner")
    activation_function: Activation = _shape("activation_function")
    norm: Norm = _shape("norm")
    norm_first: bool = _shape("norm_first")
    mlp: Mlp = _shape("mlp")
    residual: bool = _shape("residual")
    positions: Positions = _shape("positions")
    bias: bool = _shape("bias")
    qkv_bias: bool = _shape("qkv_bias")
    tie_word_embeddings: bool = _shape("tie_word_embeddings")
    head: Head = _shape("head")
    head_bias: bool = _shape("head_bias")

    def __post_init__(self) -> None:
        super().__post_init__()
        is_list = isinstance(self.replace, tuple | list)  # a list in a recipe, and in run.json
        if not is_list or not all(isinstance(each, str) for each in self.replace):
            raise ConfigError(f"replace is {shortened(self.replace)}, expected a list of texts")

    def without_effect(self) -> dict[str, str]:
        """Return options that have no effect together with the others, each with the reason."""
        idle = super().without_effect()
        if self.tokenizer != "word":
            idle |= dict.fromkeys(("replace", "markers"), "it is for --tokenizer word")
        if self.tokenizer != "bpe":
            idle |= dict.fromkeys(("vocabulary", "n_vocab"), "it is for --tokenizer bpe")
        elif self.vocabulary is not None:
            idle["n_vocab"] = "--vocabulary says how many tokens"
        if self.norm == "none":
            idle["norm_first"] = "there is no norm"
        if self.mlp != "plain":
            idle["activation_function"] = "it is for --mlp plain"
        if self.mlp == "none":
            idle["n_inner"] = "there is no MLP"
        if self.head == "none":
            idle["tie_word_embeddings"] = "there is no head"
        return idle

    def shape(self, n_vocab: int) -> dict[str, Any]:
        """Return the fields of the new model's GPT2Config, but for n_ctx."""
        names = rules(GPT2Config).keys() & rules(TrainOptions).keys()
        shape = {name: getattr(self, name) for name in names} | {"n_vocab": n_vocab}
        if self.n_embd is None:
            shape["n_embd"] = n_vocab if self.head == "none" else self.N_EMBD
        for name in DROPOUTS:
            shape[name] = self.dropout if shape[name] is None else shape[name]
        return shape


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """The options of `finetune`: a model that exists."""

    EPOCHS: ClassVar[float] = 3.0
    BATCH_SIZE: ClassVar[int] = 8
    LR: ClassVar[float] = 1e-4
    LORA_LR: ClassVar[float] = 1e-3  # adapters are small, and start from zero

    model: str = option(
        "124M",
        "The model to start from: a size, a folder, a checkpoint, or a Hub id.",
        metavar="MODEL",
    )
    lora_rank: int = option(
        0,
        "Train low-rank adapters of this rank instead of the weights; 0 trains the weights.",
        at_least=0,
    )
    lora_alpha: float | None = option(
        None,
        "The output of the adapters is multiplied by this number divided by their rank.",
        default="twice the rank",
        above=0,
    )
    stack: bool = option(
        False,
        "If --model is a run of adapters: train new ones over them, instead of training these "
        "further.",
    )
    prompt_field: str | None = _text(
        None, "The column with the prompts of examples.", default="prompt"
    )
    completion_field: str | None = _text(
        None, "The column with the completion of each prompt.", default="completion"
    )
    label_field: str | None = _text(
        None,
        "The column with a label for each text: learn to classify. The model learns to complete "
        "a text with its label, as a word.",
    )
    label_head: bool = option(
        False,
        "Learn the labels with a linear layer on the last token of a text, instead of as words.",
        group="Corpus",
    )
    separator: str | None = _text(
        None,
        "What stands between a prompt and its completion, or a text and its label.",
        default="two newlines; for instructions, that of their template",
    )
    fresh_optimizer: bool = option(
        False,
        "If --model is a run: start the optimizer anew, instead of with what the run kept of it.",
        group="Training",
    )
    max_steps: int | None = _train("max_steps", None, default=f"{EPOCHS:g} epochs")
    block_size: int | None = _train(
        "block_size",
        None,
        default=f"{TrainingOptions.BLOCK_SIZE}; less for a short text or a small model, more for "
        "long examples",
    )
    batch_size: int | None = _train(
        "batch_size", None, default=f"{BATCH_SIZE}, or rows with about 8 examples together"
    )
    optimizer: OptimizerName = _train("optimizer", "adamw")
    lr: float | None = _train("lr", None, default=f"{LR:g}; {LORA_LR:g} with --lora_rank")
    dropout: float | None = option(
        None,
        "Dropout probability, everywhere in the model.",
        group="Training",
        default="the model's own",
        at_least=0,
        below=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_head and self.lora_rank:
            raise ConfigError(
                "label_head and lora_rank are both given, but adapters are saved without a head; "
                "leave one out"
            )

    def without_effect(self) -> dict[str, str]:
        """Return options that have no effect together with the others, each with the reason."""
        idle = super().without_effect()
        if not self.lora_rank:
            idle |= dict.fromkeys(("lora_alpha", "stack"), "it is for --lora_rank")
        if self.label_field is None:
            idle["label_head"] = "it is for --label_field"
        else:
            of_pairs = ("prompt_field", "completion_field")
            idle |= dict.fromkeys(of_pairs, "--label_field is for texts and labels")
        if self.label_head:
            idle["separator"] = "--label_head reads the texts alone"
        return idle


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run is kept, and what may happen to the one that is there."""

    out: Path | None = option(
        None,
        "The run's folder.",
        group="Run",
        metavar="DIR",
        default="CORPUS-MODEL, in ./weights if that exists, else in the system's cache",
    )
    resume: bool = option(
        False,
        "Continue the run in --out exactly where it stopped; with a larger --max_steps it is "
        "extended.",
        group="Run",
    )
    force: bool = option(False, "Replace the run that is in --out.", group="Run")
    keep_states: bool = option(
        False, "Keep every saved state, instead of the newest ones only.", group="Run"
    )
    shard: bool = option(
        False,
        "Divide the model among the processes of torchrun, if one device cannot hold it.",
        group="Speed and memory",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.resume and self.force:
            raise ConfigError("resume and force are both given; one continues, the other replaces")
