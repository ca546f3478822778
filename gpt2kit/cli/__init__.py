"""The command line: what users type becomes calls of the library, and what it raises becomes one line.

stdout carries the result and nothing else; progress, timings, warnings and errors go to stderr. Commands import what is heavy
when they run, so that help is instant.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from gpt2kit.cli import process
from gpt2kit.cli.help import Commands
from gpt2kit.errors import Gpt2KitError


class ErrorBoundary(Commands):
    """Turn every failure that is the user's to mend into one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            return super().invoke(ctx)
        except Gpt2KitError as error:
            _fail(str(error), error)
        except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            _fail(
                f"{error.filename}: {error.strerror}"
                if error.filename
                else str(error.strerror or error),
                error,
            )
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            _fail(
                "not enough memory; a smaller model, --dtype bfloat16 or a smaller --batch_size needs less",
                error,
            )


def _fail(message: str, error: BaseException) -> None:
    typer.secho(f"error: {message}", fg="red", err=True)
    raise typer.Exit(1) from error


def _show_warning(message: Warning | str, *_: Any) -> None:
    typer.secho(f"warning: {message}", fg="yellow", err=True)


app = typer.Typer(
    cls=ErrorBoundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # --top-k is --top_k: people type both, and one spelling is enough in the help.
    context_settings={
        "token_normalize_func": lambda word: word.replace("-", "_"),
        "help_option_names": ["-h", "--help"],
    },
    help="GPT-2: get its weights, prove them right, generate text, train it on yours, see what is inside.",
    epilog="MODEL is a size (124M, 355M, 774M, 1558M, distilgpt2), a folder, a checkpoint, or a Hub id such as org/name.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from gpt2kit import __version__

        typer.echo(f"gpt2kit {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of gpt2kit itself; there is only the version, which its callback prints."""


def main() -> None:
    """Run the command line."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(
                errors="replace"
            )  # a terminal that cannot show a character shows a question mark instead
    try:
        app(prog_name="gpt2kit")
    except SystemExit as end:
        process.end_at_once(end.code)
        raise


from gpt2kit.cli import (  # noqa: E402
    comparison,
    evaluation,
    explain,
    generation,
    originality,
    plan,
    plots,
    training,
    weights,
)

generation.add_to(app)
weights.add_to(app)
explain.add_to(app)
plots.add_to(app)
originality.add_to(app)
evaluation.add_to(app)
comparison.add_to(app)
training.add_to(app)
plan.add_to(app)
