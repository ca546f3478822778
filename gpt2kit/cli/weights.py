"""download, models, rm, convert, inspect and verify."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpt2kit.cli import options
from gpt2kit.cli.options import Device, Force, Json, ModelArgument, human_size

if TYPE_CHECKING:
    from gpt2kit.store import InstalledModel


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (download, models, rm, convert, inspect, verify):
        app.command(command.__name__)(command)


def download(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="124M, 355M, 774M, 1558M, distilgpt2, or a Hub id such as org/name.",
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
    """Fetch weights, verified, and go on where an interrupted download stopped."""
    from gpt2kit.cli.progress import download_with_bars

    typer.echo(
        download_with_bars(
            model, source=source, revision=revision, force=force, verify=not no_verify
        )
    )


def models(json: Json = False) -> None:
    """List the models on this machine."""
    from gpt2kit import store

    rows = [
        (model.name, model.size, _source(model), _format(model.path), str(model.path))
        for model in store.installed()
    ]
    if json:
        for row in rows:
            options.print_json(
                dict(zip(("name", "size", "source", "format", "path"), row, strict=True))
            )
        return
    table = [
        (name, human_size(size), source, kind, path) for name, size, source, kind, path in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        typer.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        )
    if all(source == "bundled" for _, _, source, _, _ in rows):
        typer.echo(f"no models in {store.weights_dir()}; run: gpt2kit download 124M", err=True)


def _source(model: InstalledModel) -> str:
    return "bundled" if model.is_bundled else model.manifest.repository if model.manifest else "-"


def _format(path: Path) -> str:
    from gpt2kit.checkpoints.load import open_checkpoint
    from gpt2kit.errors import Gpt2KitError

    try:
        return open_checkpoint(path).format
    except Gpt2KitError:
        return "damaged; see: gpt2kit verify"


def rm(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A model that `gpt2kit models` lists.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model from this machine, after asking."""
    from gpt2kit import store

    target = store.removable(name)
    size = next(
        (human_size(model.size) for model in store.installed() if model.path == target),
        "an unfinished download",
    )
    if not yes and not typer.confirm(f"Remove {target} ({size})?", err=True):
        typer.echo("nothing was removed", err=True)
        return
    typer.echo(f"removed {store.remove(name)}", err=True)


def convert(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A model of any format: a folder, a checkpoint's prefix, a file, a name.",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write.")],
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="float32, bfloat16, float16, float64, or auto: as it is stored."
        ),
    ] = "auto",
    vocabulary: Annotated[
        str | None,
        typer.Option(
            "--vocabulary",
            metavar="MODEL",
            help="Take the vocabulary from this model.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write any model as a folder that transformers loads: config.json, model.safetensors, vocab.json, merges.txt."""
    import torch

    from gpt2kit.checkpoints.load import load_vocabulary, pick_dtype, write_checkpoint
    from gpt2kit.errors import CheckpointError
    from gpt2kit.files import new_directory

    checkpoint = options.open_model(path)
    check_target(to, force, "--to")
    if dtype == "auto":
        stored = functools.reduce(
            torch.promote_types, (tensor.dtype for tensor in checkpoint.tensors.values())
        )
    else:
        stored = pick_dtype(dtype, torch.device("cpu"))
    tokenizer = load_vocabulary(
        checkpoint if vocabulary is None else options.open_model(vocabulary)
    )
    with new_directory(to, replace=force, error=CheckpointError) as folder:
        write_checkpoint(folder, checkpoint, stored, tokenizer)
    if tokenizer is None:
        typer.echo(
            "no vocabulary was found, so none was written; --vocabulary MODEL takes another model's",
            err=True,
        )
    typer.echo(to)


def check_target(to: Path, force: bool, option: str) -> None:
    """Raise CheckpointError for a folder that a model must not take the place of."""
    from gpt2kit.errors import CheckpointError
    from gpt2kit.store import holds_model

    if not to.name:
        raise CheckpointError(f"{option} is {str(to)!r}, expected the name of a new folder")
    is_model = to.is_dir() and holds_model(to) and not any(path.is_dir() for path in to.iterdir())
    if force and to.exists() and not is_model and not (to.is_dir() and not any(to.iterdir())):
        raise CheckpointError(
            f"{to} is there and is not just a model, so it is not replaced; name another folder"
        )


def inspect(model: ModelArgument, json: Json = False) -> None:
    """Show a model's configuration, tensors, parameters by part and the memory it needs."""
    from dataclasses import asdict

    from gpt2kit import inspection

    checkpoint = options.open_model(model)
    config, counts, memory = (
        checkpoint.config,
        inspection.count_parameters(checkpoint.config),
        inspection.memory(checkpoint.config),
    )
    if json:
        options.print_json(
            {"path": str(checkpoint.path), "format": checkpoint.format, "config": asdict(config)}
        )
        options.print_json(
            {
                "parameters": config.n_params,
                "by_part": counts,
                "memory": {k: v[0] for k, v in memory.items()},
            }
        )
        for tensor in inspection.summarize(checkpoint):
            options.print_json(asdict(tensor))
        return
    typer.echo(f"{checkpoint.path} ({checkpoint.format})\n")
    for name, value in asdict(config).items():
        typer.echo(f"  {name:<32}{value}")
    typer.echo(f"\n{'tensor':<34}{'shape':<16}{'dtype':<10}{'norm':>12}{'mean':>12}{'largest':>12}")
    for tensor in inspection.summarize(checkpoint):
        shape = " x ".join(map(str, tensor.shape))
        typer.echo(
            f"{tensor.name:<34}{shape:<16}{tensor.dtype:<10}{tensor.norm:>12.4f}{tensor.mean:>12.5f}{tensor.largest:>12.4f}"
        )
    if checkpoint.skipped:
        typer.echo(
            f"not part of the model: {', '.join(checkpoint.skipped[:4])}{', …' if len(checkpoint.skipped) > 4 else ''}"
        )
    typer.echo(f"\n{'parameters':<20}{config.n_params:>16,}")
    for part, count in counts.items():
        typer.echo(f"  {part:<18}{count:>16,}{count / config.n_params:>8.1%}")
    typer.echo(f"\n{'memory':<20}{'weights':>12}{'cache per token':>18}{'cache, full':>14}")
    for name, (weights, cache) in memory.items():
        typer.echo(
            f"  {name:<18}{human_size(weights):>12}{human_size(cache):>18}{human_size(cache * config.n_ctx):>14}"
        )


def verify(model: ModelArgument, device: Device = "auto", json: Json = False) -> None:
    """Check that a model's files, tensors and arithmetic are right on this machine."""
    from dataclasses import asdict

    from gpt2kit import store
    from gpt2kit.checkpoints.load import pick_device
    from gpt2kit.evaluation.verify import verify as checks

    words = {True: ("ok", "green"), False: ("FAIL", "red"), None: ("skip", "yellow")}
    failed = 0
    for check in checks(store.find(model), device=pick_device(device)):
        failed += check.passed is False
        if json:
            options.print_json(asdict(check))
        else:
            word, colour = words[check.passed]
            typer.echo(f"{typer.style(f'{word:<4}', fg=colour)}  {check.name:<24}  {check.detail}")
    if failed:
        typer.secho(f"{failed} {'check' if failed == 1 else 'checks'} failed", fg="red", err=True)
        raise typer.Exit(1)
