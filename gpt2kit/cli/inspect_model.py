"""inspect: the configuration, tensors, modules, memory and vocabulary of a model."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.cli import options, output
from gpt2kit.cli.color import fit, visible
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import Json, ModelArgument, NoVerify
from gpt2kit.cli.output import human_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gpt2kit.checkpoints.stored import Checkpoint
    from gpt2kit.inspection.modules import ModuleSummary
    from gpt2kit.inspection.vocabulary import TokenEntry

_WIDTH = 80  # columns of a line of tokens
_LONGEST = 40  # columns of one token


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("inspect")(inspect)


@takes(unsaid=Unsaid)
def inspect(
    model: ModelArgument,
    modules: Annotated[
        bool,
        typer.Option(
            "--modules", help="Show the tree of modules instead, equal blocks as one: h.0-11."
        ),
    ] = False,
    vocabulary: Annotated[
        bool,
        typer.Option(
            "--vocabulary",
            help="Show what the vocabulary consists of instead; with --json every token, its bytes "
            "in base64.",
        ),
    ] = False,
    json: Json = False,
    no_verify: NoVerify = False,
    *,
    unsaid: Unsaid,
) -> None:
    """Show a model's configuration, tensors, parameters by part and the memory it needs."""
    checkpoint = options.open_model(model, verify=not no_verify, unsaid=unsaid)
    if modules:
        _show_modules(checkpoint, json=json)
    if vocabulary:
        _show_vocabulary(checkpoint, model, json=json)
    if not modules and not vocabulary:
        _show_checkpoint(checkpoint, json=json)


def _show_checkpoint(checkpoint: Checkpoint, *, json: bool) -> None:
    """Print a checkpoint's configuration, tensors, parameters and memory."""
    from gpt2kit import inspection

    counts = inspection.count_parameters(checkpoint.config)
    memory = inspection.memory(checkpoint.config)
    if json:
        _inspect_as_json(checkpoint, counts, memory)
        return
    output.result(checkpoint.path, f" ({checkpoint.format})\n")
    for name, value in asdict(checkpoint.config).items():
        output.result(f"  {name:<32}{value}")
    _print_tensors(checkpoint)
    n_params, n_ctx = checkpoint.config.n_params, checkpoint.config.n_ctx
    output.result(f"\n{'parameters':<20}{n_params:>16,}")
    for part, count in counts.items():
        output.result(f"  {part:<18}{count:>16,}{count / n_params:>8.1%}")
    output.result(f"\n{'memory':<20}{'weights':>12}{'cache per token':>18}{'cache, full':>14}")
    for name, sizes in memory.items():
        weights, token, full = map(human_size, (*sizes, sizes[1] * n_ctx))
        output.result(f"  {name:<18}{weights:>12}{token:>18}{full:>14}")


def _inspect_as_json(
    checkpoint: Checkpoint, counts: dict[str, int], memory: dict[str, tuple[int, int]]
) -> None:
    from gpt2kit import inspection

    config = checkpoint.config
    output.print_json(
        {"path": str(checkpoint.path), "format": checkpoint.format, "config": asdict(config)}
    )
    output.print_json(
        {
            "parameters": config.n_params,
            "by_part": counts,
            "memory": {dtype: weights for dtype, (weights, _) in memory.items()},
        }
    )
    for tensor in inspection.summarize(checkpoint):
        output.print_json(asdict(tensor))


def _print_tensors(checkpoint: Checkpoint) -> None:
    """Print a line for each tensor, as it is read, and the names of those that are not used."""
    from gpt2kit import inspection

    header = f"{'tensor':<34}{'shape':<16}{'dtype':<10}{'norm':>12}{'mean':>12}{'largest':>12}"
    output.result(f"\n{header}")
    for tensor in inspection.summarize(checkpoint):
        shape = " x ".join(map(str, tensor.shape))
        figures = f"{tensor.norm:>12.4f}{tensor.mean:>12.5f}{tensor.largest:>12.4f}"
        output.result(f"{tensor.name:<34}{shape:<16}{tensor.dtype:<10}{figures}")
    if checkpoint.skipped:
        more = ", …" if len(checkpoint.skipped) > 4 else ""
        output.result(f"not part of the model: {', '.join(checkpoint.skipped[:4])}{more}")


# --- modules --------------------------------------------------------------------------------------


def _show_modules(checkpoint: Checkpoint, *, json: bool) -> None:
    """Print the tree of modules: all of it as JSON, equal blocks as one on a terminal."""
    from gpt2kit.inspection.modules import every_module, folded, module_tree

    tree = module_tree(checkpoint)
    if json:
        for name, module in every_module(tree):
            output.print_json(
                {
                    "name": name,
                    "kind": module.kind,
                    "n_params": module.n_params,
                    "parameters": [asdict(each) for each in module.parameters],
                }
            )
        return
    rows = [(tree.kind, "", "", "", f"{tree.n_params:,}"), *_module_rows(folded(tree), "  ")]
    for line in output.table(rows, right=(4,)):
        output.result(line)
    if checkpoint.config.tie_word_embeddings:
        output.result("the head is wte: the embedding of tokens, read the other way round")


def _module_rows(
    module: ModuleSummary, indent: str, prefix: str = ""
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield a row for each module below one; a list of blocks has none of its own."""
    for child in module.children:
        if child.kind == "ModuleList":
            yield from _module_rows(child, indent, f"{child.name}.")
            continue
        shapes = ", ".join(
            f"{each.name} {' x '.join(map(str, each.shape))}" for each in child.parameters
        )
        dtypes = ", ".join(dict.fromkeys(each.dtype for each in child.parameters))
        times = f"{child.count} x " if child.count > 1 else ""
        yield (
            f"{indent}{prefix}{child.name}",
            child.kind,
            shapes,
            dtypes,
            f"{times}{child.n_params:,}" if child.n_params else "",
        )
        yield from _module_rows(child, f"{indent}  ")


# --- vocabulary -----------------------------------------------------------------------------------


def _show_vocabulary(checkpoint: Checkpoint, model: str, *, json: bool) -> None:
    """Print what a model's vocabulary consists of, or every token as JSON."""
    from gpt2kit.checkpoints.load import load_vocabulary
    from gpt2kit.inspection.vocabulary import entries, summarize_vocabulary
    from gpt2kit.tokenizers import require_tokenizer

    tokenizer = require_tokenizer(load_vocabulary(checkpoint), model)
    if json:
        for entry in entries(tokenizer):
            output.print_json(
                {
                    "id": entry.id,
                    "token": entry.text,
                    "base64": base64.b64encode(entry.piece).decode(),
                    "special": entry.special,
                }
            )
        return
    summary = summarize_vocabulary(tokenizer)
    rows = [("tokens", f"{summary.n_vocab:,}", summary.tokenizer)]
    if (padding := checkpoint.config.n_vocab - summary.n_vocab) > 0:
        rows.append(("padding", f"{padding:,}", "rows of the model that stand for no token"))
    rows += [(f"  {kind}", f"{count:,}", "") for kind, count in summary.kinds.items() if count]
    for line in output.table(rows, right=(1,)):
        output.result(line)
    for name, listed in (
        ("special", summary.special),
        ("longest", summary.longest),
        ("sample", summary.sample),
    ):
        output.result(f"{name:<9} ", "\n          ".join(_in_lines(listed)) or "none")


def _in_lines(listed: Sequence[TokenEntry]) -> Iterable[str]:
    """Return tokens with their ids, as many on a line as fit."""
    from rich.cells import cell_len

    lines: list[str] = []
    for entry in listed:
        token = visible(entry.piece)
        token = fit(token, _LONGEST) if cell_len(token) > _LONGEST else token
        shown = f"{entry.id} {token}"
        if lines and cell_len(lines[-1]) + len("   ") + cell_len(shown) <= _WIDTH - 10:
            lines[-1] += f"   {shown}"
        else:
            lines.append(shown)
    return lines
