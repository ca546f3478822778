"""push: a model with a model card, into a repository of the user's on the Hub."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import ModelArgument
from gpt2kit.cli.weights import check_target
from gpt2kit.errors import CheckpointError, ConfigError
from gpt2kit.training.card import CardOptions, Subject, model_card


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("push")(push)


@takes(about=CardOptions)
def push(
    model: ModelArgument,
    repository: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="The repository on the Hub.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see the new repository.")
    ] = False,
    dry_run: Annotated[
        Path | None,
        typer.Option(
            "--dry_run",
            metavar="DIR",
            help="Write what would be pushed into this folder, and upload nothing.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the README.md of the repository, or the folder of --dry_run."
        ),
    ] = False,
    *,
    about: CardOptions,
) -> None:
    """Push a model and a model card to the Hub, into a private repository.

    The card has the figures of the model's run, and how to load it. Neither texts nor states of
    the run are pushed, and of adapters the adapters alone.
    """
    from gpt2kit.store.push import check_repository, push_folder, require_token

    check_repository(repository)
    if dry_run is None:
        require_token()
    with _folder(dry_run, force) as folder:
        subject = _write(folder, model, repository)
        (folder / "README.md").write_text(model_card(subject, about), encoding="utf-8")
        if dry_run is None:
            pushed = push_folder(folder, repository, public=public, replace_card=force)
            if pushed.kept_card:
                output.note("its README.md was left as it is; --force replaces it")
    output.result(pushed.url if dry_run is None else dry_run)
    for line in (*subject.commands, subject.load_in_python):
        if line is not None:
            output.result(line)


@contextlib.contextmanager
def _folder(dry_run: Path | None, force: bool) -> Iterator[Path]:
    """Give a folder to write in: that of --dry_run, or one that is deleted at the end."""
    from gpt2kit.files import new_directory

    if dry_run is not None:
        check_target(dry_run, force, "--dry_run")
        with new_directory(dry_run, replace=force, error=CheckpointError) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gpt2kit-push-") as parent:
        folder = Path(parent, "model")
        folder.mkdir()
        yield folder


def _write(folder: Path, model: str, repository: str) -> Subject:
    """Write what is pushed but the card into an empty folder, and return what the card is about."""
    from gpt2kit.checkpoints.classifiers import WORDS_FILE
    from gpt2kit.checkpoints.load import load_vocabulary, write_checkpoint
    from gpt2kit.checkpoints.vocabularies import none_found
    from gpt2kit.tokenizers.listed import ListedTokenizer
    from gpt2kit.training.adapted import find_adapters

    if adapters := find_adapters(model):
        return _write_adapters(folder, adapters, repository)
    checkpoint = options.open_model(model)
    tokenizer = load_vocabulary(checkpoint, None, fetch=options.fetch_vocabulary)
    write_checkpoint(folder, checkpoint, checkpoint.dtype, tokenizer)
    if tokenizer is None:
        output.note(none_found(checkpoint))
    return Subject(
        repository=repository,
        source=checkpoint.folder,
        config=checkpoint.config,
        reads_text=tokenizer is not None and not isinstance(tokenizer, ListedTokenizer),
        labels_texts=checkpoint.class_head is not None,
        labels_in_words=(folder / WORDS_FILE).is_file(),
    )


def _write_adapters(folder: Path, adapters: Path, repository: str) -> Subject:
    """Write the adapters of a run as a folder of PEFT; their model must be on the Hub."""
    from gpt2kit.checkpoints.classifiers import WORDS_FILE
    from gpt2kit.checkpoints.peft.reading import base_of
    from gpt2kit.store.lookup import HUB_ID
    from gpt2kit.training.adapted import export_peft, find_stack

    path = options.locate(find_stack(str(adapters)).base)
    export_peft(str(adapters), folder, options.locate)
    base = base_of(folder)
    if not HUB_ID.fullmatch(base):
        raise ConfigError(
            f"{adapters}: its adapters lie over a model that is not on the Hub. Run: "
            f"gpt2kit merge {adapters} --out {adapters}-merged, and push that"
        )
    config = options.open_model(str(path)).config
    return Subject(
        repository=repository,
        source=adapters,
        config=config,
        base=base,
        labels_in_words=(folder / WORDS_FILE).is_file(),
    )
