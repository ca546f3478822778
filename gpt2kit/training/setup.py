"""From options to a training: its model, its corpus and its configuration, chosen where nothing was said.

for report in finetune("divina.txt", model="124M", out="weights/divina"):
    print(report.step, report.train_loss, report.val_loss)
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpt2kit import lora, store
from gpt2kit.checkpoints.adapters import load_adapters, save_adapters
from gpt2kit.checkpoints.load import (
    build_model,
    load_vocabulary,
    open_checkpoint,
    pick_device,
    write_model,
)
from gpt2kit.config import GPT2Config
from gpt2kit.data.corpus import Corpus, load_corpus, split_documents
from gpt2kit.data.texts import Text, read_texts
from gpt2kit.errors import ConfigError, TokenizerError, TrainingError
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import CharTokenizer, Tokenizer, WordTokenizer, load_tokenizer
from gpt2kit.tokenizers.learn import learn_bpe
from gpt2kit.tokenizers.listed import ListedTokenizer
from gpt2kit.training import plan, recipes
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks, join
from gpt2kit.training.loop import train
from gpt2kit.training.loss import best_dtype
from gpt2kit.training.optim import freeze
from gpt2kit.training.records import StepReport
from gpt2kit.training.run import Run
from gpt2kit.training.settings import Command, Settings
from gpt2kit.training.sharding import shard

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRAIN_FIELDS = {field.name for field in fields(TrainConfig)}
_MODEL_FIELDS = {field.name for field in fields(GPT2Config)} - {"n_vocab", "n_ctx"}
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_FLAGS = ("out", "resume", "force", "tensorboard", "json", "shard")
_OPTIONS = _TRAIN_FIELDS | {  # of `finetune`
    *(
        "epochs",
        "dropout",
        "freeze",
        "lora_rank",
        "lora_alpha",
        "val_fraction",
        "val",
        "encoding",
        "text_field",
        "device",
    ),
}

Locate = Callable[[str], Path]  # finds a model by its name


@dataclass(frozen=True)
class Setup:
    """A training that is ready to start."""

    name: str  # of the model it starts from, or of the recipe
    options: Mapping[str, Any]  # as given and as the recipe has them
    texts: Text | None  # None where the corpus is ids
    corpus: Corpus
    tokenizer: Tokenizer
    model: GPT2
    config: TrainConfig
    folder: Path
    settings: Settings
    ranks: Ranks
    write: Callable[[Path, GPT2], None]  # puts the model into a folder,
    read: Callable[[Path, GPT2], None]  # and sets the model to what is in one

    def open_run(self, *, resume: bool = False, force: bool = False) -> Run:
        """Return the folder to train in, held by this process; raises TrainingError where it is taken."""
        return Run(
            self.folder,
            self.settings,
            resume=resume,
            force=force,
            write=self.write,
            ranks=self.ranks,
        )

    @property
    def train_documents(self) -> list[str]:
        """Return the text that is trained on."""
        if self.texts is None:
            return []
        held_out = 0.0 if "val" in self.options else self.options.get("val_fraction", 0.1)
        return split_documents(self.texts.documents, held_out)[0]


def finetune(
    corpus: str | Path,
    *,
    model: str | Path = "124M",
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    shard: bool = False,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Iterator[StepReport]:
    """Fine-tune a model that is on this machine on a text, and report every step, as `gpt2kit finetune` does without its pictures.

    Window, steps, learning rate, precision, parts of a batch and when to stop suit the text, the model and the machine; `options` are
    the command's, under the same names: `max_steps=300, lr=1e-4, lora_rank=8`. The best weights are in the folder `out`, a model for
    `load`, by default one named after text and model; a run that is there is gone on with (`resume`), replaced (`force`) or refused.
    What cannot be is a Gpt2KitError at once, before the first report.
    """
    if unknown := sorted(options.keys() - _OPTIONS):
        near = difflib.get_close_matches(unknown[0], _OPTIONS, 1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(_OPTIONS))}"
        raise ConfigError(f"finetune has no option {unknown[0]!r}; {advice}")
    given = (
        options
        | {"model": str(model), "resume": resume, "shard": shard}
        | ({} if out is None else {"out": Path(out)})
    )
    setup = set_up("finetune", str(corpus), given)
    run = setup.open_run(resume=resume, force=force)

    def reports() -> Iterator[StepReport]:
        try:
            yield from train(
                setup.model, setup.corpus, setup.config, run=run, ranks=setup.ranks, stop=stop
            )
        finally:
            run.close()

    return reports()


def set_up(
    kind: Command, source: str, given: Mapping[str, Any], *, locate: Locate = store.find
) -> Setup:
    """Return the training that `train` or `finetune` is asked for; refuses what cannot be before anything is written."""
    options = {name: value for name, value in given.items() if name not in _FLAGS}
    if "recipe" in options:
        options = _unless_given(recipes.read(options["recipe"]).options, options) | options
    name = (
        options.get("recipe", "gpt") if kind == "train" else Path(options.get("model", "124M")).name
    )
    folder = given.get("out") or store.weights_dir() / f"{Path(source).stem}-{name}"
    stored = Settings.read(Path(folder)) if given.get("resume") else None
    if stored is not None:
        if stored.command != kind:
            raise TrainingError(f"{folder} was started with {stored.command}, not with {kind}")
        options = {**stored.options, **options}
    _check_effects(given, options)
    if "max_steps" in options and "epochs" in options:
        raise ConfigError("max_steps and epochs are both given; leave one out")
    ranks = join(shard=given.get("shard", False))
    # What is to be divided stays in memory until then: it may not fit on one device.
    device = torch.device("cpu") if ranks.sharded else pick_device(options.get("device", "auto"))
    tokenizer, texts, build = (_from_scratch if kind == "train" else _from_weights)(
        source, options, locate
    )
    if not _can_write(
        tokenizer, options.get("prompt", "")
    ):  # said now, and not after a whole training
        if "prompt" in given:
            raise ConfigError(
                f"prompt is {given['prompt']!r}, which the text's vocabulary cannot write; expected characters or words of it"
            )
        del options["prompt"]  # a recipe's, made for another text
    corpus = _corpus(source, texts, tokenizer, options)
    model = build(corpus.fit_block_size(options.get("block_size", 256))).to(device)
    start = weights_sha256(model)
    write, read = partial(write_model, tokenizer=tokenizer), _read_weights
    if rank := options.get("lora_rank", 0):
        lora.add_adapters(model, rank, alpha=options.get("lora_alpha"), seed=options.get("seed", 0))
        write = partial(save_adapters, base=options.get("model", "124M"), base_sha256=start)
        read = load_adapters
    freeze(model, options.get("freeze", ""))
    if ranks.sharded:
        shard(model, ranks)
    settled = {name: options[name] for name in options.keys() & _TRAIN_FIELDS}
    config = (
        replace(stored.training, **settled)
        if stored
        else _configuration(kind, settled, options, model, corpus, ranks)
    )
    settings = Settings(
        command=kind,
        options=options,
        corpus=corpus.sha256,
        start=start,
        model=model.config,
        training=config,
    )
    return Setup(
        name,
        options,
        texts,
        corpus,
        tokenizer,
        model,
        config,
        Path(folder),
        settings,
        ranks,
        write,
        read,
    )


def weights_sha256(model: GPT2) -> str:
    """Return the sha256 of all parameters, trainable or not."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_effects(given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that was given, and that the others leave without effect."""
    is_bpe = options.get("tokenizer") == "bpe"
    idle = {
        "vocabulary": None if is_bpe else "it is for --tokenizer bpe",
        "n_vocab": "--vocabulary says how many tokens"
        if "vocabulary" in options
        else None
        if is_bpe
        else "it is for --tokenizer bpe",
        "lora_alpha": None if options.get("lora_rank") else "it is for --lora_rank",
        "val_fraction": "--val names a text to validate with" if "val" in options else None,
    }
    for name, why in idle.items():
        if name in given and why:
            raise ConfigError(f"--{name} has no effect here: {why}; leave it out")


def _unless_given(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's options without those that another option, which was given, is about."""
    about = {"max_steps": "epochs", "epochs": "max_steps", **dict.fromkeys(_DROPOUTS, "dropout")}
    return {name: value for name, value in recipe.items() if about.get(name) not in given}


# --- what to start from ----------------------------------------------------------------------------------------------

_Start = tuple[Tokenizer, Text | None, Callable[[int], GPT2]]


def _from_scratch(source: str, options: Mapping[str, Any], locate: Locate) -> _Start:
    """Return a new tokenizer, the text, and what makes a new model with so many positions."""
    texts = _texts(source, options)
    tokenizer = _tokenizer(texts, options, locate)
    shape: dict[str, Any] = {"n_layer": 6, "n_head": 6, "n_embd": 192}
    shape |= {name: options[name] for name in options.keys() & _MODEL_FIELDS} | _dropout(
        options, 0.1
    )

    def build(block_size: int) -> GPT2:
        model = GPT2(GPT2Config(n_vocab=tokenizer.n_vocab, n_ctx=block_size, **shape))
        model.init_weights(torch.Generator().manual_seed(options.get("seed", 0)))
        return model

    return tokenizer, texts, build


def _tokenizer(texts: Text | None, options: Mapping[str, Any], locate: Locate) -> Tokenizer:
    kind = options.get("tokenizer", "char")
    if kind not in ("char", "word", "bpe"):
        raise ConfigError(f"tokenizer is {kind!r}, expected char, word or bpe")
    if kind == "bpe" and "vocabulary" in options:
        tokenizer = load_tokenizer(locate(options["vocabulary"]))
        if tokenizer is None:
            raise TokenizerError(
                f"{options['vocabulary']} has no vocabulary; expected vocab.json and merges.txt in it"
            )
        return tokenizer
    if texts is None:
        raise TokenizerError(
            "a corpus of ids needs the vocabulary it was made with: --tokenizer bpe --vocabulary MODEL"
        )
    if kind == "bpe":
        held_out = 0.0 if "val" in options else options.get("val_fraction", 0.1)
        return learn_bpe(
            split_documents(texts.documents, held_out)[0], options.get("n_vocab", 1024)
        )
    every = (
        texts.joined
        if "val" not in options
        else texts.joined + _read(options["val"], options).joined
    )
    return CharTokenizer.from_text(every) if kind == "char" else WordTokenizer.from_text(every)


def _from_weights(source: str, options: Mapping[str, Any], locate: Locate) -> _Start:
    """Return a model's tokenizer, the text, and what reads the model's weights."""
    name = options.get("model", "124M")
    texts = _texts(source, options)  # first, for a model may have to be downloaded
    checkpoint = open_checkpoint(locate(name))
    tokenizer = load_vocabulary(checkpoint)
    if tokenizer is None:
        raise TokenizerError(
            f"{name} has no vocabulary beside its weights; put vocab.json and merges.txt there"
        )
    if texts is not None and isinstance(tokenizer, ListedTokenizer):
        _check_known(name, tokenizer, texts)
    changed = replace(checkpoint, config=replace(checkpoint.config, **_dropout(options, None)))
    return tokenizer, texts, lambda _: build_model(changed)


def _check_known(name: str, tokenizer: ListedTokenizer, texts: Text) -> None:
    """Raise TokenizerError for a text with characters or words that a model cannot learn, for it has no tokens for them."""
    pieces = dict.fromkeys(
        piece for document in texts.documents for piece in tokenizer.cut(document)
    )
    if unknown := [piece for piece in pieces if tokenizer.id_of(piece) is None]:
        raise TokenizerError(
            f"{name} knows {tokenizer.n_vocab:,} {tokenizer.what}s, and not {len(unknown):,} of the text's, such as "
            f"{', '.join(map(repr, unknown[:3]))}; take a model that knows every text, such as 124M, or a new one: gpt2kit train"
        )


def _read_weights(folder: Path, model: GPT2) -> None:
    model.load_state_dict(build_model(open_checkpoint(folder)).state_dict())


def _dropout(options: Mapping[str, Any], default: float | None) -> dict[str, Any]:
    """Return the model's dropout fields: those given by their own names, else `dropout`, else the default."""
    everywhere = options.get("dropout", default)
    return {
        name: value for name in _DROPOUTS if (value := options.get(name, everywhere)) is not None
    }


def _can_write(tokenizer: Tokenizer, text: str) -> bool:
    try:
        tokenizer.encode(text)
    except TokenizerError:
        return False
    return True


def _read(source: str, options: Mapping[str, Any]) -> Text:
    return read_texts(
        source,
        encoding=options.get("encoding", "utf-8"),
        text_field=options.get("text_field", "text"),
    )


def _texts(source: str, options: Mapping[str, Any]) -> Text | None:
    return None if Path(source).suffix in (".npy", ".bin") else _read(source, options)


def _corpus(
    source: str, texts: Text | None, tokenizer: Tokenizer, options: Mapping[str, Any]
) -> Corpus:
    passed = {
        name: options[name]
        for name in ("encoding", "val_fraction", "text_field")
        if name in options
    }
    val = Path(options["val"]) if "val" in options else None
    return load_corpus(texts or Path(source), tokenizer, val=val, **passed)


# --- how to train ----------------------------------------------------------------------------------------------------


def _configuration(
    kind: str,
    settled: dict[str, Any],
    options: Mapping[str, Any],
    model: GPT2,
    corpus: Corpus,
    ranks: Ranks,
) -> TrainConfig:
    """Return the training configuration: what was given, and for the rest what suits the start, the corpus and the machine."""
    scratch = kind == "train"
    block_size = min(corpus.fit_block_size(settled.get("block_size", 256)), model.config.n_ctx)
    if settled.get("block_size", 0) > model.config.n_ctx:
        limit = (
            "the text has two windows of at most {} tokens"
            if scratch
            else "the model has {} positions"
        )
        raise ConfigError(
            f"block_size is {settled['block_size']}, but {limit.format(model.config.n_ctx)}"
        )
    batch_size = settled.get(
        "batch_size", ranks.world_size * math.ceil((16 if scratch else 8) / ranks.world_size)
    )
    epochs = options.get("epochs", None if scratch else 3.0)
    if epochs is not None and epochs <= 0:
        raise ConfigError(f"epochs is {epochs}, expected more than 0")
    steps = (
        2000
        if epochs is None
        else max(1, round(epochs * len(corpus.train_ids) / (block_size * batch_size)))
    )
    steps = settled.get("max_steps", steps)
    eval_every = settled.get("eval_every", max(1, math.ceil(steps / 20)))
    defaults: dict[str, Any] = {
        "optimizer": "muon" if scratch else "adamw",
        "lr": 3e-3 if scratch else 1e-3 if options.get("lora_rank") else 1e-4,
        "warmup": min(100, steps // 10),
        "patience": 5,
        "dtype": best_dtype(model.device, model.config.n_embd),
        "save_every": eval_every,
    }
    sizes = {
        "max_steps": steps,
        "block_size": block_size,
        "batch_size": batch_size,
        "eval_every": eval_every,
    }
    config = TrainConfig(**(defaults | settled | sizes))
    free = plan.free_memory(model.device)
    return (
        config
        if free is None
        else plan.fit(model, config, ranks.least(free), fixed=set(settled), ranks=ranks)
    )
