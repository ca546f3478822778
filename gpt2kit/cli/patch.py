"""patch: activations or paths of one prompt in the run of another, and what comes with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import files, options, output, process
from gpt2kit.cli.color import visible
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import OUTPUT_GROUP, TEXT_GROUP, Device, Dtype, Json, Model
from gpt2kit.errors import ConfigError, CorpusError
from gpt2kit.inspection.patch_options import Direction, PatchOptions

if TYPE_CHECKING:
    from gpt2kit.inspection import Pair, Patching, PathPatching
    from gpt2kit.tokenizers import Tokenizer

_COLUMNS = ("clean", "corrupt", "answer", "wrong")

File = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE",
        help="A table of pairs (.csv, .tsv or .jsonl) with the columns clean, corrupt, answer and "
        "wrong, in place of the four options.",
        show_default=False,
    ),
]


def _text(name: str, help: str) -> Any:
    return typer.Option(
        f"--{name}", metavar="TEXT", help=help, show_default=False, rich_help_panel=TEXT_GROUP
    )


Clean = Annotated[str | None, _text("clean", "The prompt with the behavior.")]
Corrupt = Annotated[str | None, _text("corrupt", "The prompt without it, of as many tokens.")]
Answer = Annotated[
    str | None,
    _text("answer", "The token that should follow the clean prompt, with its space: ' Mary'."),
]
Wrong = Annotated[
    str | None, _text("wrong", "The token whose logit is subtracted from the answer's.")
]
First = Annotated[Literal["bos", "none"], options.first_option("each prompt")]
ReceiverOption = Annotated[
    str | None,
    typer.Option(
        "--receiver",
        metavar="PART",
        help="Patch direct paths in place of activations: those into this part: queries, keys or "
        "values of a head (9.6.q), an MLP (mlp.10) or logits.",
        show_default=False,
        rich_help_panel="Patches",
    ),
]
SenderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sender",
        metavar="PART",
        help="Patch only the path from this part: a head (9.6), an MLP (mlp.3) or embeddings. "
        "Several are allowed. Default: every part before the receiver.",
        show_default=False,
        rich_help_panel="Patches",
    ),
]
Top = Annotated[
    int,
    typer.Option(
        "--top",
        min=0,
        help="List as many, those with the largest effect first; 0 lists all.",
        rich_help_panel=OUTPUT_GROUP,
    ),
]
Out = Annotated[Path | None, files.out_option("all numbers of every pair")]
Picture = Annotated[Path | None, files.picture_option("all numbers")]


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("patch")(patch)


@takes(how=PatchOptions)
def patch(
    context: typer.Context,
    file: File = None,
    model: Model = "124M",
    clean: Clean = None,
    corrupt: Corrupt = None,
    answer: Answer = None,
    wrong: Wrong = None,
    first: First = "bos",
    *,
    how: PatchOptions,
    receiver: ReceiverOption = None,
    sender: SenderOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    top: Top = 10,
    out: Out = None,
    picture: Picture = None,
    json: Json = False,
) -> None:
    """Put activations of one prompt into the run of another, and show what comes with them.

    The number is the answer's logit minus the wrong token's after the last token of the prompt.
    recovered is 1 if it is that of the clean prompt, 0 if it is that of the corrupted one. Of
    several pairs, the mean is shown.
    """
    files.check_written(out, picture)
    files.check_not_input(out, file)
    if receiver is None:
        options.refuse(context, ("sender",), "it is for --receiver")
    else:
        options.refuse(context, ("at", "by", "attribution"), "--receiver patches paths")
    typed = dict(zip(_COLUMNS, (clean, corrupt, answer, wrong), strict=True))
    prompts = _prompts(file, {name: options.as_typed(text) for name, text in typed.items()})
    process.import_torch()
    from gpt2kit.tokenizers import require_tokenizer

    gpt2, found_tokenizer = options.load(model, device, dtype)
    tokenizer = require_tokenizer(found_tokenizer, model)
    pairs = [_pair(each, tokenizer, first) for each in prompts]
    if receiver is None:
        shown = _activations(gpt2, pairs, how, tokenizer)
    else:
        shown = _paths(gpt2, pairs, receiver, sender, how.direction)
    rows, mean, note, draw = shown
    _show(mean, how.direction, top, json=json)
    output.note(note, dim=True)
    if out is not None:
        files.write_rows(out, rows)
    if picture is not None:
        files.save_picture(draw(), picture)


# --- prompts --------------------------------------------------------------------------------------


def _prompts(file: Path | None, typed: dict[str, str | None]) -> list[dict[str, str]]:
    """Return the texts of each pair by column, from a file or the four options."""
    if file is None:
        if missing := [name for name, text in typed.items() if text is None]:
            raise typer.BadParameter(
                f"--{missing[0]} is missing; give --clean, --corrupt, --answer and --wrong, or a "
                "table of pairs"
            )
        return [{name: text or "" for name, text in typed.items()}]
    if given := [name for name, text in typed.items() if text is not None]:
        raise typer.BadParameter(f"--{given[0]} has no effect here: {file} has the pairs")
    from gpt2kit.data.streams import read_table
    from gpt2kit.data.tables import format_of
    from gpt2kit.files import read_bytes

    data = read_bytes(file, error=CorpusError)
    table = read_table(data, file, format_of(file) or "csv")
    columns = [table.texts(name) for name in _COLUMNS]
    if not table.rows:
        raise CorpusError(f"{file}: no pairs; expected a row for each", path=file)
    return [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]


def _pair(texts: dict[str, str], tokenizer: Tokenizer, first: str) -> Pair:
    """Return a pair as tokens; raises ConfigError, with the tokens, if they do not correspond."""
    from gpt2kit.inspection import Pair
    from gpt2kit.tokenizers.listed import start_of_text

    before = start_of_text(tokenizer) if first == "bos" else []
    clean, corrupt = (tokenizer.encode(texts[name]) for name in ("clean", "corrupt"))
    if len(clean) != len(corrupt):
        raise ConfigError(
            f"the prompts have {len(clean)} and {len(corrupt)} tokens, expected as many: "
            f"{_pieces(clean, tokenizer)} and {_pieces(corrupt, tokenizer)}"
        )
    tokens = []
    for name in ("answer", "wrong"):
        ids = tokenizer.encode(texts[name])
        if len(ids) != 1:
            found = _pieces(ids, tokenizer) or "none"
            raise ConfigError(f"--{name} {texts[name]!r}: expected one token, found {found}")
        tokens.append(ids[0])
    if not before + clean:
        raise ConfigError("the prompts are empty, expected one token or more")
    return Pair([*before, *clean], [*before, *corrupt], tokens[0], tokens[1])


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return "|".join(visible(tokenizer.token_bytes(token)) for token in ids)


# --- results --------------------------------------------------------------------------------------

# All rows, the mean over the pairs as rows, a note, and what draws the mean.
_Shown = tuple[list[dict[str, Any]], list[dict[str, Any]], str, Callable[[], Any]]


def _activations(model: Any, pairs: Sequence[Pair], how: PatchOptions, tokenizer: Any) -> _Shown:
    from gpt2kit import inspection, plots

    lengths = {len(pair.clean) for pair in pairs}
    if how.by_position and len(lengths) > 1:
        raise ConfigError(
            f"the pairs have {min(lengths)} to {max(lengths)} tokens, which have no common "
            "positions; expected pairs of one length, or --by head"
        )
    found = [inspection.patch(model, pair, how) for pair in pairs]
    names = [[tokenizer.token_bytes(token) for token in pair.clean] for pair in pairs]
    rows = [
        {"item": item, **_row(cell, tokens)}
        for item, (each, tokens) in enumerate(zip(found, names, strict=True), 1)
        for cell in each.cells
    ]
    mean = inspection.mean_patching(found)
    tokens = names[0] if len(pairs) == 1 else [b""] * len(names[0])

    def draw() -> Any:
        return plots.patching(mean, tokens, how.at)

    return rows, [_row(cell, tokens) for cell in mean.cells], _note(mean, len(pairs)), draw


def _row(cell: Any, tokens: Sequence[bytes]) -> dict[str, Any]:
    """Return a cell as columns, only those that it has."""
    row: dict[str, Any] = {"layer": cell.layer}
    if cell.head is not None:
        row["head"] = cell.head
    if cell.position is not None:
        row |= {"position": cell.position, "token": visible(tokens[cell.position])}
    row |= {"logit_diff": cell.logit_diff, "recovered": cell.recovered}
    return row if cell.estimate is None else row | {"estimate": cell.estimate}


def _note(found: Patching | PathPatching, pairs: int) -> str:
    note = (
        f"{output.count(pairs, 'pair')}; difference of the logits: {found.clean:.4f} clean, "
        f"{found.corrupted:.4f} corrupted"
    )
    cells = getattr(found, "cells", ())
    if cells and cells[0].estimate is not None:
        correlation, largest = found.agreement()  # type: ignore[union-attr]
        note += f"; estimates: correlation {correlation:.4f}, largest difference {largest:.4f}"
    return note


def _paths(
    model: Any,
    pairs: Sequence[Pair],
    receiver: str,
    senders: Sequence[str] | None,
    direction: Direction,
) -> _Shown:
    from gpt2kit import plots
    from gpt2kit.inspection import mean_paths, path_patch
    from gpt2kit.inspection.paths import parse_receiver, parse_sender

    to, chosen = parse_receiver(receiver), [parse_sender(each) for each in senders or ()]
    found = [path_patch(model, pair, to, chosen or None, direction=direction) for pair in pairs]

    def row(path: Any) -> dict[str, Any]:
        numbers = {"logit_diff": path.logit_diff, "recovered": path.recovered}
        return {"sender": path.sender.name, "receiver": to.name, **numbers}

    rows = [
        {"item": item, **row(path)} for item, each in enumerate(found, 1) for path in each.paths
    ]
    mean = mean_paths(found)

    def draw() -> Any:
        return plots.paths(mean)

    return rows, [row(path) for path in mean.paths], _note(mean, len(pairs)), draw


def _show(rows: list[dict[str, Any]], direction: str, top: int, *, json: bool) -> None:
    """Print the rows; those that moved the difference furthest first, or all as JSON."""
    if json:
        for row in rows:
            output.print_json(row)
        return
    start = 0.0 if direction == "denoise" else 1.0  # what is recovered without a patch

    def effect(row: dict[str, Any]) -> float:
        return 0.0 if row["recovered"] is None else abs(row["recovered"] - start)

    shown = sorted(rows, key=effect, reverse=True)[: top or None]
    names = list(rows[0]) if rows else []
    lines = [names, *([_cell(row[name]) for name in names] for row in shown)]
    words = [n for n, name in enumerate(names) if name in ("token", "sender", "receiver")]
    for line in output.table(lines, right=[n for n in range(len(names)) if n not in words]):
        output.result(line)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
