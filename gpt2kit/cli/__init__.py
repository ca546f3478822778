"""The command line: turns what users type into calls of the library, and its errors into one line.

stdout carries the result and nothing else; progress, timings, warnings and errors go to stderr.
Commands import what is heavy when they run, so that help is instant.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Mapping, Set
from typing import Annotated, Any

import typer

from gpt2kit.cli import (
    ablate,
    bulk,
    classify,
    cloze,
    comparison,
    corpus,
    detect,
    embed,
    evaluation,
    explain,
    filter,
    generation,
    heads,
    history,
    inspect_model,
    neighbors,
    originality,
    output,
    patch,
    plan,
    plots,
    process,
    push,
    replay,
    sae,
    serve,
    surprisal,
    synthetic,
    tokenize,
    training,
    usage,
    weights,
)
from gpt2kit.cli.help import Commands
from gpt2kit.errors import Gpt2KitError, TokenizerError, advice_on_memory

# Typer exports one of its usage errors; this is the class that all of them share.
_UsageError: Any = typer.BadParameter.__base__


class CommandLine(Commands):
    """All commands, each of which ends with an exit code and, if it failed, one line on stderr."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command and exit: with 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
        code: Any = 1
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except _UsageError as error:
            if message := usage.message(error):  # else the help has been shown
                output.error(message)
            code = error.exit_code
        except Gpt2KitError as error:
            output.error(error)
        except OSError as error:
            output.error(f"{error.filename}: {error.strerror}" if error.filename else _cause(error))
        except typer.Abort:
            output.error("the input ended before the question was answered")
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            with advice_on_memory(lambda: _advice_on_memory(self, ctx.invoked_subcommand)):
                return super().invoke(ctx)
        except TokenizerError as error:
            raise _with_option(error, _options(self, ctx.invoked_subcommand)) from error
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            raise typer.Exit(0) from None


def _cause(error: OSError) -> str:
    return error.strerror or str(error)


def _advice_on_memory(group: Commands, name: str | None) -> str:
    """Name the options of a command by which it needs less memory."""
    own = _options(group, name)
    advice = {
        "dtype": "--dtype bfloat16",
        "quantize": "--quantize int8",
        "batch_size": "a smaller --batch_size",
    }
    *several, last = ["a smaller model", *(text for name, text in advice.items() if name in own)]
    return f"{', '.join(several)} or {last} needs less" if several else f"{last} needs less"


def _with_option(error: TokenizerError, names: Set[str | None]) -> TokenizerError:
    """Return the error with the option that would help, if the command has that option."""
    cause: BaseException | None = error
    while cause is not None:
        option = cause.option if isinstance(cause, TokenizerError) else None
        if option and option.split()[0].removeprefix("--") in names:
            return TokenizerError(f"{error}, or add {option}")
        cause = cause.__cause__
    return error


def _options(group: Commands, name: str | None) -> set[str | None]:
    """Return the names of the options of a command, and of the commands below it (plot's kinds)."""
    command = group.commands.get(name or "")
    if command is None:
        return set()
    below: Mapping[str, Any] = getattr(command, "commands", {})
    every = [command, *below.values()]
    return {parameter.name for each in every for parameter in each.params}


def _show_warning(message: Warning | str, *_: Any) -> None:
    output.warn(message)


def _as_declared(word: str) -> str:
    """Return an option as it is declared: --top-k is --top_k, and --colour is --color."""
    word = word.replace("-", "_")
    return "color" if word == "colour" else word


app = typer.Typer(
    cls=CommandLine,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "token_normalize_func": _as_declared,
        "help_option_names": ["-h", "--help"],
    },
    help="GPT-2: get its weights, check them, generate text, train it on your own text, and look "
    "inside.",
    epilog="MODEL is a size (124M, 355M, 774M, 1558M, distilgpt2), a folder, a checkpoint, or a "
    "Hub id such as org/name.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from gpt2kit import __version__

        output.result(f"gpt2kit {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Declare the options of gpt2kit itself; --version is done by its callback."""


_HEADINGS = {
    "Write": (generation, replay, history, serve, tokenize),
    "Models": (weights, push, inspect_model),
    "Train": (training, plan, corpus, synthetic),
    "Measure": (
        evaluation,
        surprisal,
        cloze,
        filter,
        detect,
        embed,
        classify,
        comparison,
        originality,
        bulk,
    ),
    "Look inside": (explain, heads, ablate, patch, sae, neighbors, plots),
}
for _heading, _modules in _HEADINGS.items():
    for _module in _modules:
        _module.add_to(app)
    _registered: list[Any] = [*app.registered_commands, *app.registered_groups]
    for _command in _registered:
        _command.rich_help_panel = _command.rich_help_panel or _heading


def main() -> None:
    """Run the command line and exit with its code."""
    output.prepare_streams()
    code: Any = 130
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app(prog_name="gpt2kit")
    except KeyboardInterrupt:
        pass
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
    except OSError as error:
        # What cannot be written is dropped, or the interpreter would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError) and not code:
            output.error(_cause(error))
            code = 1
    process.end_at_once(code)
    sys.exit(code)
