"""serve: an HTTP server of models, with completions in the shape of OpenAI's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2kit.cli import options, output, process
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import MODEL_GROUP, MODEL_HELP, ModelOptions
from gpt2kit.fields import same_option
from gpt2kit.serve.settings import Address, Settings

if TYPE_CHECKING:
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("serve")(serve)


Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help=f"{MODEL_HELP} May be given several times: the first is loaded at the start, the "
        "others when they are asked for. Default: 124M.",
        show_default=False,
        rich_help_panel=MODEL_GROUP,
    ),
]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How models are loaded."""

    device: str = same_option(ModelOptions, "device")
    dtype: str = same_option(ModelOptions, "dtype")
    quantize: str | None = same_option(ModelOptions, "quantize")
    no_verify: bool = same_option(ModelOptions, "no_verify")
    no_cache: bool = same_option(ModelOptions, "no_cache")

    def load(self, source: str | Path) -> tuple[GPT2, Tokenizer | None]:
        """Load a model and its tokenizer."""
        return options.load(
            str(source),
            self.device,
            self.dtype,
            self.quantize,
            verify=not self.no_verify,
            write_cache=not self.no_cache,
        )


@takes(address=Address, settings=Settings, how=LoadOptions)
def serve(model: Models = None, *, address: Address, settings: Settings, how: LoadOptions) -> None:
    """Answer programs on this machine: OpenAI's completions over HTTP.

    Needs the extra named serve. Ctrl-C or SIGTERM ends it after the running answers. One line for
    each request goes to stderr, without any of its text.
    """
    from gpt2kit.serve import require_packages

    require_packages()
    names = model or ["124M"]
    process.import_torch()
    from gpt2kit.checkpoints.load import resolve_device_and_dtype
    from gpt2kit.serve.access import is_loopback, read_keys
    from gpt2kit.serve.asgi import application
    from gpt2kit.serve.server import bind, run, url_of

    resolve_device_and_dtype(how.device, how.dtype, how.quantize)  # before any download
    for name in names:
        options.locate(name)
    _log_to_stderr()
    app = application(*names, settings=settings, load=how.load)
    with bind(address) as bound:
        if not is_loopback(bound.getsockname()[0]) and not read_keys(settings.api_key):
            output.warn(
                "every machine that reaches this one can use the server; set --api_key to prevent "
                "that"
            )
        url = url_of(bound)
        code = run(
            app,
            bound,
            when_ready=lambda: output.note(f"serving {', '.join(names)} at {url}; Ctrl-C stops"),
        )
    raise typer.Exit(code)


def _log_to_stderr() -> None:
    """Write what the server logs to stderr, where all notes go."""
    log = logging.getLogger("gpt2kit.serve")
    log.handlers = [_Notes()]
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger("uvicorn").handlers = [logging.NullHandler()]


class _Notes(logging.Handler):
    """Shows each record as a note, errors as such, and tracebacks as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            output.note_text(self.format(record))
        elif record.levelno >= logging.ERROR:
            output.error(record.getMessage())
        else:
            output.note(record.getMessage())
