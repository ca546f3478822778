"""From options to a training that is ready to start: its model, its corpus, its configuration.

for report in finetune("divina.txt", model="124M", out="weights/divina"):
    print(report.step, report.train_loss, report.val_loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch

from gpt2kit import lora, store
from gpt2kit.checkpoints.adapters import load_adapters, read_adapters, save_adapters
from gpt2kit.checkpoints.classifiers import (
    LabelWords,
    add_class_head,
    class_head,
    restore_class_head,
)
from gpt2kit.checkpoints.device import described
from gpt2kit.checkpoints.load import build_model, open_checkpoint, resolve_device, write_model
from gpt2kit.data.batches import Batches
from gpt2kit.errors import ConfigError, TrainingError, advice_on_memory
from gpt2kit.fields import build, check_names
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer
from gpt2kit.training import plan, recipes, start
from gpt2kit.training.adapted import digest_of, digest_over, find_adapters, put_adapters
from gpt2kit.training.carried import Carried
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.configure import Options, configure, reconfigure
from gpt2kit.training.distributed import Ranks, join
from gpt2kit.training.keywords import FinetuneKeywords
from gpt2kit.training.loop import train
from gpt2kit.training.optim import freeze
from gpt2kit.training.options import DROPOUTS, FinetuneOptions, RunOptions, TrainOptions
from gpt2kit.training.outline import Outline
from gpt2kit.training.published import is_here
from gpt2kit.training.records import StepReport
from gpt2kit.training.rehearsal import Memory
from gpt2kit.training.run import Run
from gpt2kit.training.settings import Command, Settings
from gpt2kit.training.sharding import shard
from gpt2kit.training.start import Locate, Start
from gpt2kit.training.states import STATES, States

Given = Mapping[str, Any]  # options that were given, by name; unchecked


@dataclass(frozen=True)
class Setup:
    """A training that is ready to start."""

    name: str  # of the model that it starts from, or of the recipe
    options: Options
    start: Start
    corpus: Batches
    model: GPT2
    config: TrainConfig
    settings: Settings
    folder: Path  # of the run
    ranks: Ranks
    files: ModelFiles
    device: torch.device  # to train on; the model of a plan is on the meta device
    carried: Carried | None = None  # the averages of the run whose weights it starts from

    @property
    def outline(self) -> Outline:
        """What decides how much memory and time the model needs."""
        return Outline.of(self.model, self.corpus.predicted_in_row(self.config.block_size))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.start.tokenizer

    @property
    def train_documents(self) -> list[str]:
        """The documents that are trained on; none if the corpus is a file of ids."""
        if self.has_labels:  # it learns no text
            return []
        if (purpose := self.start.purpose) is not None:
            examples, _ = purpose.parts(self.options.val_fraction)
            return [each.prompt + each.completion for each in examples]
        return start.train_documents(self.start.text, self.options)

    @property
    def has_labels(self) -> bool:
        """Whether it learns to classify."""
        purpose = self.start.purpose
        return purpose is not None and bool(purpose.examples.labels)

    def train(self, run: Run, stop: Callable[[], bool]) -> Iterator[StepReport]:
        """Train, saving in a run's folder, and yield a report of every step."""
        yield from train(
            self.model,
            self.corpus,
            self.config,
            run=run,
            ranks=self.ranks,
            stop=stop,
            begin=self.carried.put if self.carried else lambda _: None,
        )

    def memory_needed(self) -> Memory:
        """Return the memory that this training needs, in each process."""
        return plan.memory(self.outline, self.config, self.device, self.ranks)

    def less_memory(self, needed: Memory) -> dict[str, Memory]:
        """Return options with which this training needs less than `needed`, the least first."""
        can_adapt = isinstance(self.options, FinetuneOptions)
        found = plan.alternatives(
            self.outline, self.config, self.device, self.ranks, can_adapt=can_adapt
        )
        return plan.savings(found, needed)

    def memory_advice(self) -> str:
        """Return what to say if this training runs out of memory: figures, and what needs less."""
        free = plan.free_memory(self.device)
        needed = self.memory_needed()
        return plan.advice(needed, free, self.less_memory(needed))

    def open_run(self, options: RunOptions) -> Run:
        """Return the folder to train in, held by this process.

        Raises TrainingError if the folder is taken.
        """
        return Run(
            self.folder,
            self.settings,
            resume=options.resume,
            force=options.force,
            keep_states=options.keep_states,
            write=self.files.write,
            ranks=self.ranks,
        )


@dataclass(frozen=True)
class ModelFiles:
    """How the best weights are saved: as a whole model, or as adapters beside one."""

    write: Callable[[Path, GPT2], None]  # saves the model in a folder
    read: Callable[[Path, GPT2], None]  # sets the model to what is in a folder


def finetune(
    corpus: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    keep_states: bool = False,
    shard: bool = False,
    stop: Callable[[], bool] = lambda: False,
    **options: Unpack[FinetuneKeywords],
) -> Iterator[StepReport]:
    """Fine-tune a model that is on this machine on a text, yielding a report of every step.

    What is not given is chosen as `gpt2kit finetune` chooses it, to suit the text, the model and
    the machine; `options` are that command's, under the same names: `model="355M", lora_rank=8`.
    The best weights end up in the folder `out`, a model for `gpt2kit.load`; by default its name is
    made of text and model. If a run is there already, it is continued (`resume`), replaced
    (`force`), or refused. Raises a Gpt2KitError for anything wrong, before the first report.
    """
    check_names(options, FinetuneKeywords.__annotations__, what="finetune")
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if value is not None
    }
    run_options = RunOptions(
        out=None if out is None else Path(out),
        resume=resume,
        force=force,
        keep_states=keep_states,
        shard=shard,
    )
    setup = set_up("finetune", str(corpus), given, run_options)
    run = setup.open_run(run_options)

    def reports() -> Iterator[StepReport]:
        try:
            with advice_on_memory(setup.memory_advice):
                yield from setup.train(run, stop)
        finally:
            run.close()

    return reports()


def set_up(
    command: Command,
    source: str,
    given: Given,
    run: RunOptions | None = None,
    *,
    locate: Locate = store.find,
    with_weights: bool = True,
) -> Setup:
    """Return the training that `train` or `finetune` is asked for.

    Without weights it is one to plan and not to do: the model is on the meta device, and a
    published one need not be on this machine. Raises a Gpt2KitError for anything wrong, before a
    file is written.
    """
    run = run or RunOptions()
    # As run.json has them, with which they are compared when the run is resumed:
    given = {name: [*value] if isinstance(value, tuple) else value for name, value in given.items()}
    folder = run.out or store.weights_dir() / f"{start.corpus_name(source)}-{_name(command, given)}"
    before = _settings_before(command, folder) if run.resume else None
    earlier = before.options if before else {}
    # A resumed run has its recipe's options already, below those that were given beside it.
    is_resumed_recipe = given.get("recipe") == earlier.get("recipe")
    every = over(earlier, given if is_resumed_recipe else _with_recipe(given))
    every = _with_adapters(command, every)
    options = _options(command, every)
    _check_effects(given, options)
    ranks = join(shard=run.shard)
    # A model that is going to be divided stays in memory: one device may not hold it.
    device = torch.device("cpu") if ranks.sharded else resolve_device(options.device)

    begin = _begin(source, options, locate, with_weights=with_weights)
    if options.prompt is not None and not start.can_write(begin.tokenizer, options.prompt):
        if "prompt" in given:  # said now, and not after a whole training
            raise ConfigError(
                f"prompt is {options.prompt!r}, which the text's vocabulary cannot write; "
                "expected characters or words of it"
            )
        every = {name: value for name, value in every.items() if name != "prompt"}
        options = _options(command, every)  # the recipe's prompt was meant for another text
    corpus = start.read_corpus(source, begin, options)
    n_ctx = corpus.fit_block_size(options.block_size or options.BLOCK_SIZE)
    if with_weights:
        model = begin.build(n_ctx).to(device)
        sha256 = digest_of(model, begin.below)
    else:
        model, sha256 = begin.outline(n_ctx), ""
    files = _prepare(model, options, sha256, begin, ranks)
    device = model.device if with_weights else resolve_device(options.device)
    if before is None:
        config = configure(options, model, corpus, ranks, device)
    else:
        config = reconfigure(options, every, before.training, corpus)
    settings = Settings(
        command=command,
        options=every,
        corpus=corpus.sha256,
        start=digest_over(begin.adapters) if begin.adapters else sha256,
        model=model.config,
        training=config,
        device=described(device),
    )
    is_begun = before is not None and States(folder / STATES, ranks).newest() is not None
    carried = _carried(options, begin, model, config) if with_weights and not is_begun else None
    name = _name(command, every)
    return Setup(
        name, options, begin, corpus, model, config, settings, folder, ranks, files, device, carried
    )


def _carried(options: Options, begin: Start, model: GPT2, config: TrainConfig) -> Carried | None:
    """Return the optimizer's averages of the run that a model is from, unless they start anew."""
    if isinstance(options, TrainOptions) or options.fresh_optimizer or begin.path is None:
        return None
    return Carried.find(begin.path, model, config.optimizer)


def _name(command: Command, given: Given) -> str:
    """Return the second part of a run's default name."""
    if command == "train":
        return str(given.get("recipe", "gpt"))
    model = Path(given.get("model", FinetuneOptions.model))
    return model.name or model.resolve().name


def _settings_before(command: Command, folder: Path) -> Settings:
    """Return the settings of the run that is to be resumed."""
    before = Settings.read(folder)
    if before.command != command:
        raise TrainingError(f"{folder} was started with {before.command}, not with {command}")
    return before


def _with_recipe(given: Given) -> Given:
    """Return the given options over those of the recipe among them."""
    if "recipe" not in given:
        return given
    recipe = recipes.read(given["recipe"])
    if recipe.steps:
        raise ConfigError(
            f"recipe is {recipe.name!r}, a series that gpt2kit train runs in turn; "
            f"expected one of its recipes: {', '.join(recipe.steps)}"
        )
    return over(recipe.options, given)


def over(lower: Given, upper: Given) -> dict[str, Any]:
    """Return options, those of `upper` in place of those of `lower` that are about the same."""
    replaced = {"max_steps": "epochs", "epochs": "max_steps", **dict.fromkeys(DROPOUTS, "dropout")}
    kept = {name: value for name, value in lower.items() if replaced.get(name) not in upper}
    return {**kept, **upper}


def _with_adapters(command: Command, every: dict[str, Any]) -> dict[str, Any]:
    """Return options with the rank and alpha of the adapters that are to be trained further."""
    folder = None
    if command == "finetune" and not every.get("stack"):
        folder = find_adapters(every.get("model", FinetuneOptions.model))
    if folder is None:
        return every
    about = read_adapters(folder)
    own = {"lora_rank": about["rank"], "lora_alpha": about["alpha"]}
    for name, value in own.items():
        if every.get(name, value) != value:
            raise ConfigError(
                f"{name} is {every[name]}, but that of the adapters in {folder} is {value}; leave "
                "it out, train new adapters over these with --stack, or make a model of them with: "
                f"gpt2kit merge {folder}"
            )
    return {**every, **own}


def _options(command: Command, every: Given) -> Options:
    if command == "train":
        return build(TrainOptions, every, what=command)
    return build(FinetuneOptions, every, what=command)


def _check_effects(given: Given, options: Options) -> None:
    """Raise ConfigError if a given option changes nothing beside the others."""
    for name, why in options.without_effect().items():
        if name in given:
            raise ConfigError(f"--{name} has no effect here: {why}; leave it out")


def _begin(source: str, options: Options, locate: Locate, *, with_weights: bool) -> Start:
    if isinstance(options, TrainOptions):
        return start.from_scratch(source, options, locate)
    has_adapters = find_adapters(options.model) is not None
    if not (with_weights or has_adapters or is_here(options.model)):
        return start.from_catalogue(source, options)
    return start.from_weights(source, options, locate)


def _prepare(model: GPT2, options: Options, sha256: str, begin: Start, ranks: Ranks) -> ModelFiles:
    """Add adapters, freeze and divide a model, as the options say; return how to save it."""
    files = ModelFiles(partial(write_model, tokenizer=begin.tokenizer), _read_weights)
    purpose = begin.purpose
    if purpose is not None and purpose.with_head:
        labels = purpose.examples.labels
        add_class_head(model, labels, seed=options.seed, weight=purpose.head)
    if isinstance(options, FinetuneOptions) and options.lora_rank:
        base = options.model
        if begin.adapters is not None:
            base = read_adapters(begin.adapters)["base"]
        if begin.adapters is not None and model.device.type != "meta":
            put_adapters(begin.adapters, model, sha256)
        else:
            lora.add_adapters(model, options.lora_rank, alpha=options.lora_alpha, seed=options.seed)
        write = partial(save_adapters, base=base, base_sha256=sha256)
        files = ModelFiles(write, load_adapters)
    if purpose is not None and purpose.words is not None:
        files = replace(files, write=partial(_with_words, files.write, purpose.words))
    freeze(model, options.freeze)
    if ranks.sharded and model.device.type != "meta":
        shard(model, ranks)
    return files


def _with_words(
    write: Callable[[Path, GPT2], None], words: LabelWords, folder: Path, model: GPT2
) -> None:
    """Write a model that classifies by words, and these."""
    write(folder, model)
    words.write(folder)


def _read_weights(folder: Path, model: GPT2) -> None:
    checkpoint = open_checkpoint(folder)
    found = build_model(checkpoint)
    if class_head(model) is not None:
        restore_class_head(found, checkpoint)
    model.load_state_dict(found.state_dict())
