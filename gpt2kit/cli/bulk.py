"""parts: how far a run over many files is. Also what each command does that is given many files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.bulk.options import GROUP, Reading, Running, parse_share, parse_time
from gpt2kit.cli import options, output, process
from gpt2kit.cli.options import OUTPUT_GROUP, Json
from gpt2kit.evaluation.conditions import BUCKETS

if TYPE_CHECKING:
    from gpt2kit.bulk.folder import Folder
    from gpt2kit.bulk.job import Load
    from gpt2kit.bulk.plan import Plan
    from gpt2kit.bulk.run import Outcome
    from gpt2kit.bulk.work import Models, Work
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer


BY_NAME = "--out DIR reads files by their names, in UTF-8"


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("parts")(parts)


OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Write the results of many files into this folder, part by part; the command given "
        "again goes on where it stopped.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]


OnError = Annotated[
    Literal["cell", "stop"],
    typer.Option(
        "--on_error",
        help="What happens to a row that cannot be read or measured: cell puts the reason into its "
        "column error, and stop ends the command.",
        rich_help_panel=GROUP,
    ),
]


@dataclass(frozen=True)
class Loader:
    """How the model is loaded, in this process or another."""

    model: str
    device: str
    dtype: str
    quantize: str | None
    write_cache: bool
    unknown: Literal["error", "skip"] = "error"
    observer: str | None = None

    def __call__(self, device: str | None = None) -> Models:
        """Load the models where the user said, or on the worker's own GPU.

        Raises ConfigError for an observer that has another vocabulary.
        """
        process.import_torch()
        from gpt2kit.bulk.work import Models
        from gpt2kit.evaluation.criteria import check_observer
        from gpt2kit.tokenizers import require_tokenizer

        wanted = device_for(device, self.device)
        model, found = self._load(self.model, wanted)
        tokenizer = require_tokenizer(found, self.model)
        options.set_unknown(tokenizer, self.unknown)
        if self.observer is None:
            return Models(model, tokenizer)
        observer, theirs = self._load(self.observer, wanted)
        check_observer(model, tokenizer, observer, theirs)
        return Models(model, tokenizer, observer)

    def _load(self, model: str, device: str) -> tuple[GPT2, Tokenizer | None]:
        return options.load(model, device, self.dtype, self.quantize, write_cache=self.write_cache)


def device_for(own: str | None, typed: str) -> str:
    """Return the device of a worker: its own GPU, if it has one and the user named no other."""
    return own if own and typed in ("auto", "cuda") else typed


def is_folder(files: Sequence[str], out: Path | None) -> bool:
    """Whether results go into a folder, part by part; raises a usage error if they have to.

    A folder is an --out without an end such as .csv.
    """
    if out is not None and (out.is_dir() or not out.suffix):
        return True
    if len(files) > 1 or (files and Path(files[0]).is_dir()):
        raise typer.BadParameter("many files need a folder for their results: --out DIR")
    return False


def refuse_without_folder(context: typer.Context) -> None:
    """Raise a usage error if an option for many files was typed, but no folder for the output."""
    names = (*Reading.__dataclass_fields__, *Running.__dataclass_fields__)
    options.refuse(context, names, "it is for many files, and needs --out DIR")


def run(
    inputs: Sequence[str],
    out: Path | None,
    work: Work,
    load: Load,
    reading: Reading,
    running: Running,
    on_error: Literal["cell", "stop"],
) -> None:
    """Do all parts, or a share of them, and say what is there; exit with 1 if parts failed."""
    assert out is not None
    _check_folder(out)
    process.import_torch()
    from gpt2kit.bulk.handout import Share
    from gpt2kit.bulk.job import Job
    from gpt2kit.bulk.run import run as run_job
    from gpt2kit.cli.progress import counting

    index, of = (1, 1) if running.share is None else parse_share(running.share)
    until = None if running.time is None else time.time() + parse_time(running.time)
    job = Job(tuple(inputs), out, work, reading, load, on_error, until)
    with counting(work.command) as progress:
        outcome = run_job(
            job,
            workers=running.workers,
            share=Share(index - 1, of),
            on_ray=running.ray,
            progress=progress,
        )
    if os.environ.get("RANK", "0") == "0":  # one voice of those that torchrun started
        _report(outcome, out)
    if not outcome.is_good:
        raise typer.Exit(1)


def _check_folder(out: Path) -> None:
    """Refuse a file's name for the folder of the parts, unless there is a folder of that name."""
    from gpt2kit.data.tables import format_of

    if not out.is_dir() and (out.exists() or format_of(out)):
        name = out.with_name(out.name.partition(".")[0])
        raise typer.BadParameter(
            f"--out is {out}, the name of a file, expected one of a folder, such as --out {name}; "
            f"then gpt2kit parts {name} --merge FILE makes one file of it"
        )


def _report(outcome: Outcome, out: Path) -> None:
    """Say on stderr what is done, and what the user may do next."""
    found = outcome.summary
    errors = f", {found['errors']:,} of them with an error" if found["errors"] else ""
    output.note(
        f"{found['done']:,} of {output.count(found['parts'], 'part')} done: "
        f"{output.count(found['rows'], 'row')}{errors}"
    )
    if outcome.running:
        output.note(f"{output.count(len(outcome.running), 'part')}: other workers have them")
    if outcome.failed:
        first = output.as_typed_here(out / "failed" / f"{outcome.failed[0]:05}.txt")
        output.note(f"{output.count(len(outcome.failed), 'part')} failed; see ", first)
    if outcome.left:
        output.note(
            f"{output.count(len(outcome.left), 'part')} left; give the command again to go on"
        )
    if found["done"] == found["parts"]:
        output.note("merge them: gpt2kit parts ", output.as_typed_here(out), " --merge FILE")


# --- parts ----------------------------------------------------------------------------------------

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that a command with --out DIR wrote.")
]
Merge = Annotated[
    Path | None,
    typer.Option(
        "--merge",
        metavar="FILE",
        help="Write all parts into one file, in order, after checking that each row is there once.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]


def parts(folder: FolderArgument, merge: Merge = None, json: Json = False) -> None:
    """Show how far a command over many files is, or merge its parts into one file."""
    from gpt2kit.bulk import plan as plans
    from gpt2kit.bulk.folder import Folder, check_is_output

    check_is_output(folder)
    found, plan = Folder(folder), plans.read(folder / "plan.json")
    if merge is not None:
        _merge(found, plan, merge)
        return
    shown = _state(found, plan)
    if json:
        output.print_json(shown)
        return
    lines = [[name.replace("_", " "), _cell(value)] for name, value in shown.items()]
    output.result("\n".join(output.table(lines, right=(1,))))


def _merge(folder: Folder, plan: Plan, target: Path) -> None:
    from gpt2kit.bulk.merge import merge

    found = merge(folder, plan, target)
    rows = output.count(found.rows, "row")
    if plan.gives == "many":
        rows += f" for {plan.rows:,} of the input"
    elif found.rows < plan.rows:
        rows = f"{found.rows:,} of {output.count(plan.rows, 'row')}"
    output.note(target, f": {rows}")
    if found.cuts:
        output.note(shown_cuts(found.cuts))
    if len(found.engines) > 1:
        output.warn(
            "parts were computed by different processors, whose results may differ by about 1e-6: "
            + "; ".join(found.engines)
        )


def shown_cuts(cuts: Iterable[float]) -> str:
    """Say up to which perplexities head, middle and tail go."""
    low, high = cuts
    head, middle, tail = BUCKETS
    return f"{head} to perplexity {low:.4g}, {middle} to {high:.4g}, then {tail}"


def _state(folder: Folder, plan: Plan) -> dict[str, Any]:
    """Return how far a command is, with its speed and the time left as far as one can tell."""
    found = folder.summarize(plan)
    running, failed = folder.running(plan), folder.failures().keys()
    left = plan.rows - found["rows"]
    # What one worker did in a second, times the workers there are now.
    speed = found["rows"] / found["seconds"] * len(running) if found["seconds"] else 0.0
    return {
        "parts": found["parts"],
        "done": found["done"],
        "running": len(running),
        "failed": len(failed - set(running)),
        "rows": plan.rows,
        "rows_done": found["rows"],
        "errors": found["errors"],
        "tokens": found["tokens"],
        "tokens_per_second": found["tokens"] / found["elapsed"] if found["elapsed"] else None,
        "seconds_left": left / speed if speed else (None if left else 0.0),
    }


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
