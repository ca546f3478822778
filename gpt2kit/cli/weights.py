"""download, models, rm, convert and verify: the models on this machine, and their formats."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.cli import options, output
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import Device, Force, Json, ModelArgument, NoVerify
from gpt2kit.cli.output import human_size

if TYPE_CHECKING:
    from gpt2kit.checkpoints.stored import Checkpoint
    from gpt2kit.store import InstalledModel
    from gpt2kit.tokenizers import Tokenizer


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (download, models, rm, convert, verify):
        app.command(command.__name__)(command)


def download(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="124M, 355M, 774M, 1558M, distilgpt2, or a Hub id such as org/name; "
            "org/name/FOLDER is a sparse autoencoder.",
        ),
    ],
    source: Annotated[
        Literal["hub", "openai"],
        typer.Option("--source", help="openai has the original TensorFlow files."),
    ] = "hub",
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="A branch, tag or commit of the Hub.", show_default=False),
    ] = None,
    force: Force = False,
    no_verify: Annotated[
        bool, typer.Option("--no_verify", help="Check sizes but no hashes.")
    ] = False,
) -> None:
    """Fetch weights and check their hashes; an interrupted download continues where it stopped."""
    from gpt2kit.cli.progress import download_with_bars

    output.result(
        download_with_bars(
            model, source=source, revision=revision, force=force, verify=not no_verify
        )
    )


def models(json: Json = False) -> None:
    """List the models on this machine, then its sparse autoencoders."""
    from gpt2kit import store

    names = ("name", "size", "source", "format", "path")
    rows = [
        (each.name, each.size, _source(each), form(each.path), str(each.path))
        for listed, form in (
            (store.installed(), _format),
            (store.installed_saes(), _format_of_sae),
        )
        for each in listed
    ]
    if json:
        for row in rows:
            output.print_json(dict(zip(names, row, strict=True)))
    else:
        for line in output.table((name, human_size(size), *rest) for name, size, *rest in rows):
            output.result(line)
        if all(source == "bundled" for _, _, source, _, _ in rows):
            output.note(f"no models in {store.weights_dir()}; run: gpt2kit download 124M")
    for left in store.unfinished():
        what = "an unfinished download" if left.is_download else "an interrupted command"
        output.note(
            f"{left.name}: {human_size(left.size)} left by {what}; "
            f"to delete it, run: gpt2kit rm {left.name}"
        )


def _source(model: InstalledModel) -> str:
    """Return where a model came from, in one word."""
    return "bundled" if model.is_bundled else model.manifest.repository if model.manifest else "-"


def _format(path: Path) -> str:
    """Return the format of a model's weights."""
    from gpt2kit.checkpoints.huggingface import holds_graph
    from gpt2kit.checkpoints.load import open_checkpoint
    from gpt2kit.errors import Gpt2KitError

    if holds_graph(path):
        return "ONNX, for other programs"
    try:
        return open_checkpoint(path, verify=False).format
    except Gpt2KitError:
        return "damaged; see: gpt2kit verify"


def _format_of_sae(path: Path) -> str:
    """Return who wrote a sparse autoencoder."""
    from gpt2kit.checkpoints.sparse import open_sparse
    from gpt2kit.errors import Gpt2KitError
    from gpt2kit.store.lookup import find_sae

    try:
        return f"SAE ({open_sparse(find_sae(path.name)).layout})"
    except Gpt2KitError:
        return "damaged SAE"


def rm(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A model or SAE that `gpt2kit models` lists.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model or sparse autoencoder from this machine, after asking."""
    from gpt2kit import store

    target = store.removable(name)
    exists = target.is_dir()
    size = human_size(store.bytes_in(target)) if exists else "what an interrupted command left"
    if not yes and not output.confirm(f"Remove {target} ({size})?"):
        output.note("nothing was removed")
        return
    output.note(f"removed {store.remove(name)}")


From = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A model of any format: a folder, a checkpoint's prefix, a file, a name.",
    ),
]
To = Annotated[
    Path,
    typer.Option(
        "--to", metavar="PATH", help="The folder to write; a file with --format gguf or llmc."
    ),
]
Format = Annotated[
    Literal["hf", "gguf", "llmc", "onnx", "peft"],
    typer.Option(
        "--format",
        help="A folder for transformers (hf) or onnxruntime (onnx), or a file for llama.cpp (gguf) "
        "or llm.c (llmc); peft: LoRA adapters of a run as a folder for PEFT.",
    ),
]
WrittenDtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16, float64, or auto: as it is stored. GGUF also has q8_0 "
        "and q4_0, which round to 8 and 4 bits, and ONNX has int8.",
    ),
]
Untie = Annotated[
    bool,
    typer.Option(
        "--untie",
        help="Write the head as a tensor of its own in GGUF, for llama.cpp before March 2025.",
    ),
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        "--vocabulary", metavar="FILE|MODEL", help=options.VOCABULARY_HELP, show_default=False
    ),
]
_NOT_FOR_PEFT = ("dtype", "vocabulary", "no_verify", *(field.name for field in fields(Unsaid)))


@takes(unsaid=Unsaid)
def convert(
    context: typer.Context,
    path: From,
    to: To,
    format: Format = "hf",
    dtype: WrittenDtype = "auto",
    untie: Untie = False,
    vocabulary: Vocabulary = None,
    force: Force = False,
    no_verify: NoVerify = False,
    *,
    unsaid: Unsaid,
) -> None:
    """Write a model of any format as a folder that transformers loads, or for another program.

    The folder has config.json, model.safetensors, vocab.json and merges.txt. A file for another
    program is read back and compared with the model before it gets its name.
    """
    from gpt2kit.checkpoints.load import load_vocabulary
    from gpt2kit.checkpoints.vocabularies import find_vocabulary

    if untie and format != "gguf":
        raise typer.BadParameter("--untie has no effect here: it is for --format gguf")
    if format == "peft":
        options.refuse(context, _NOT_FOR_PEFT, "adapters are written as they are")
        _write_adapters(to, path, force)
        return
    checkpoint = options.open_model(path, verify=not no_verify, unsaid=unsaid)
    source = None if vocabulary is None else find_vocabulary(vocabulary)
    if format == "hf":
        check_target(to, force, "--to")
    tokenizer = load_vocabulary(checkpoint, source, fetch=options.fetch_vocabulary)
    if format == "hf":
        _write_folder(to, checkpoint, tokenizer, dtype, force)
    else:
        own = {"untie": untie} if format == "gguf" else {}
        _export(format, to, checkpoint, tokenizer, dtype=dtype, replace=force, **own)


def _write_adapters(to: Path, name: str, force: bool) -> None:
    """Write the adapters of a run as a folder for PEFT, and print how it is used."""
    from gpt2kit.training.adapted import export_peft

    check_target(to, force, "--to")
    if warning := export_peft(name, to, options.locate, replace=force):
        output.warn(warning)
    output.note("read back: the adapters give the same model, to the bit")
    output.result(to)
    output.result(f"peft.AutoPeftModelForCausalLM.from_pretrained({str(to)!r})")


def _export(
    format: str, to: Path, checkpoint: Checkpoint, tokenizer: Tokenizer | None, **how: Any
) -> None:
    """Write files for another program, and print how they are used."""
    from gpt2kit.checkpoints import exports

    write = {
        "gguf": exports.export_gguf,
        "llmc": exports.export_llmc,
        "onnx": exports.export_onnx,
    }[format]
    export = write(to, checkpoint, tokenizer, **how)
    for warning in export.warnings:
        output.warn(warning)
    output.note(str(export.comparison))
    output.result(to)
    output.result(output.one_line(export.command))


def _write_folder(
    to: Path, checkpoint: Checkpoint, tokenizer: Tokenizer | None, dtype: str, force: bool
) -> None:
    """Write a folder that transformers loads."""
    import torch

    from gpt2kit.checkpoints.exports import GGUF_TYPES, LONG
    from gpt2kit.checkpoints.load import resolve_dtype, write_checkpoint
    from gpt2kit.checkpoints.vocabularies import none_found
    from gpt2kit.errors import CheckpointError, ConfigError
    from gpt2kit.files import new_directory

    is_kept, dtype = dtype == "auto", LONG.get(dtype, dtype)
    if dtype in GGUF_TYPES:
        raise ConfigError(f"dtype is {dtype!r}, which only --format gguf has")
    stored = checkpoint.dtype if is_kept else resolve_dtype(dtype, torch.device("cpu"))
    with new_directory(to, replace=force, error=CheckpointError) as folder:
        write_checkpoint(folder, checkpoint, stored, tokenizer)
    if tokenizer is None:
        output.note(none_found(checkpoint))
    output.result(to)


def check_target(to: Path, force: bool, option: str) -> None:
    """Raise CheckpointError for a folder that must not be replaced by a model."""
    from gpt2kit.errors import CheckpointError
    from gpt2kit.store import files_of_others, holds_model

    if not to.name:
        raise CheckpointError(f"{option} is {str(to)!r}, expected the name of a new folder")
    others = files_of_others(to) if to.is_dir() else []
    is_model = to.is_dir() and holds_model(to) and not others
    if force and to.exists() and not is_model and not (to.is_dir() and not any(to.iterdir())):
        example = f", for example {others[0]!r}" if others else ""
        raise CheckpointError(
            f"{to} exists and holds more than a model{example}, so it is not replaced; "
            "name another folder"
        )


@takes(unsaid=Unsaid)
def verify(
    model: ModelArgument, device: Device = "auto", json: Json = False, *, unsaid: Unsaid
) -> None:
    """Check that a model's files, tensors and arithmetic are right on this machine."""
    from gpt2kit import store
    from gpt2kit.checkpoints.load import resolve_device
    from gpt2kit.evaluation.verify import verify as checks

    words: dict[bool | None, output.Styled] = {
        True: output.style("ok  ", "green"),
        False: output.style("FAIL", "red"),
        None: output.style("skip", "yellow"),
    }
    failed = 0
    for check in checks(store.find(model), device=resolve_device(device), unsaid=unsaid):
        failed += check.passed is False
        if json:
            output.print_json(asdict(check))
        else:
            detail = output.one_line(check.detail)
            output.result(words[check.passed], f"  {check.name:<24}  {detail}")
    if failed:
        output.note(f"{failed} {'check' if failed == 1 else 'checks'} failed", color="red")
        raise typer.Exit(1)
