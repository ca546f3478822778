"""What every kind of `plot` does: read the text, let it be drawn, name and write the picture."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from gpt2kit.cli import options, output, process
from gpt2kit.cli.help import Commands
from gpt2kit.cli.options import OUTPUT_GROUP, TEXT_GROUP, Device, Dtype, Model, Special, Unknown

if TYPE_CHECKING:
    from gpt2kit.inspection import Trace
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

plot = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Draw what a model does with a text, how it chooses tokens, or how a training went, as "
    "PNG, SVG or PDF.",
    epilog="gpt2kit plot KIND --help shows the options of a kind.",
)

Prompt = Annotated[
    str,
    typer.Option(
        "--prompt",
        metavar="TEXT|-",
        help="The text that the model reads; - is standard input.",
        rich_help_panel=TEXT_GROUP,
    ),
]
OptionalPrompt = Annotated[str | None, *get_args(Prompt)[1:]]
Overflow = Annotated[
    Literal["slide", "stop", "error"],
    typer.Option(
        "--overflow",
        help="If the text is longer than the model's window: slide reads its end, stop its "
        "beginning, error refuses it.",
        rich_help_panel=TEXT_GROUP,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="A .png, .svg or .pdf file. Default: KIND.png.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]
Dpi = Annotated[
    int,
    typer.Option("--dpi", min=20, max=1000, help="Dots per inch.", rich_help_panel=OUTPUT_GROUP),
]
Title = Annotated[
    str | None,
    typer.Option(
        "--title",
        metavar="TEXT",
        help="Replaces the picture's own title.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]
Picture = Any  # a matplotlib Figure; matplotlib is not loaded before it is needed


@dataclass(frozen=True)
class Reading:
    """A model and the text that it reads."""

    model: GPT2
    tokenizer: Tokenizer
    ids: list[int]

    @functools.cached_property
    def trace(self) -> Trace:
        import torch

        from gpt2kit.inspection import trace

        return trace(self.model, torch.tensor([self.ids]))

    @property
    def tokens(self) -> list[bytes]:
        return [self.tokenizer.token_bytes(token) for token in self.ids]


Read = Callable[[], Reading]


def _read(
    prompt: str | None,
    model: str,
    overflow: Literal["slide", "stop", "error"],
    special: bool,
    unknown: Literal["error", "skip"],
    device: str,
    dtype: str,
) -> Reading:
    """Load a model, and encode as much of a text as fits into its window."""
    if prompt is None:
        raise typer.BadParameter("Missing option '--prompt' or '--run'")
    process.import_torch()
    from gpt2kit.data.window import check_ids, fit
    from gpt2kit.tokenizers import require_tokenizer

    text = options.read_text(prompt)
    gpt2, loaded = options.load(model, device, dtype)
    tokenizer = require_tokenizer(loaded, model)
    options.set_unknown(tokenizer, unknown)
    ids = tokenizer.encode(text, special=special)
    check_ids(ids, gpt2.config.n_vocab)
    return Reading(gpt2, tokenizer, list(fit(ids, gpt2.config.n_ctx, overflow, slides=False)))


def _options_of_a_text(
    prompt: Prompt,
    model: Model = "124M",
    device: Device = "auto",
    dtype: Dtype = "auto",
    overflow: Overflow = "slide",
    special: Special = False,
    unknown: Unknown = "error",
) -> None:
    """Declare the options of every picture of a text, those of `_read`."""


def _options_of_a_picture(out: Out = None, dpi: Dpi = 150, title: Title = None) -> None:
    """Declare the options of every picture."""


def kind(
    name: str, *, of_text: bool = True, needs_text: bool = True
) -> Callable[[Callable[..., Picture]], Callable[..., Picture]]:
    """Make a command of a function that draws; it gets the options of a text and of a picture too.

    A function that draws a text takes as its first argument a function that returns the Reading, so
    that it can check its own options before a model is loaded. With `needs_text=False` it may draw
    something else instead: then `--prompt` is required only if the Reading is asked for.
    """

    def decorate(draw: Callable[..., Picture]) -> Callable[..., Picture]:
        own = dict(list(_parameters(draw).items())[of_text:])
        text = _parameters(_options_of_a_text) if of_text else {}
        if text and not needs_text:
            text["prompt"] = text["prompt"].replace(default=None, annotation=OptionalPrompt)

        def run(**given: Any) -> None:
            from gpt2kit.plots import check_picture, save

            out = given["out"] or Path(f"{name}.png")
            check_picture(out)
            read = functools.partial(_read, **{option: given[option] for option in text})
            figure = draw(*[read] * of_text, **{option: given[option] for option in own})
            if given["title"] is not None:
                figure.suptitle(
                    output.one_line(options.as_typed(given["title"]) or ""), parse_math=False
                )
            save(figure, out, dpi=given["dpi"])
            output.note(f"wrote {out}")

        parameters = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in (text | own | _parameters(_options_of_a_picture)).values()
        ]
        run.__doc__ = draw.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        plot.command(name)(run)
        if "-" in name:
            plot.command(name.replace("-", "_"), hidden=True)(run)  # people type both
        return draw

    return decorate


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return a function's parameters with their types as Typer wants them."""
    return dict(inspect.signature(function, eval_str=True).parameters)
