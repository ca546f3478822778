"""plot: one command for each kind of picture."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
Layer = Annotated[
    int | None,
    typer.Option("--layer", min=0, help="From 0. Default: all layers.", show_default=False),
]
Head = Annotated[
    int | None,
    typer.Option(
        "--head", min=0, help="From 0; needs --layer. Default: all heads.", show_default=False
    ),
]
Times = "; may be given several times"

Picture = Any  # a matplotlib Figure; matplotlib is not loaded before it is needed


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.add_typer(plot, name="plot")


# --- what all kinds have in common ---------------------------------------------------------------


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
    prompt: str,
    model: str,
    overflow: Literal["slide", "stop", "error"],
    special: bool,
    unknown: Literal["error", "skip"],
    device: str,
    dtype: str,
) -> Reading:
    """Load a model, and encode as much of a text as fits into its window."""
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


def _kind(
    name: str, *, of_text: bool = True
) -> Callable[[Callable[..., Picture]], Callable[..., Picture]]:
    """Make a command of a function that draws; it gets the options of a text and of a picture too.

    A function that draws a text takes as its first argument a function that returns the Reading, so
    that it can check its own options before a model is loaded.
    """

    def decorate(draw: Callable[..., Picture]) -> Callable[..., Picture]:
        own = dict(list(_parameters(draw).items())[of_text:])
        text = _parameters(_options_of_a_text) if of_text else {}

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


# --- of a text -----------------------------------------------------------------------------------

_WITHOUT_OPTIONS = {
    "tokens": "Token ids over the text.",
    "positions": "Position embeddings as a heat map, and how similar they are to each other.",
    "norms": "The norms of token embeddings and of position embeddings.",
    "embeddings": "Embeddings of tokens, positions and their sum in two dimensions (PCA).",
    "residual": "The norm of the residual stream, by layer and position.",
    "updates": "What attention and MLP add to the residual stream: norm and variance.",
}


def _add_kind_without_options(name: str, text: str) -> None:
    def draw(read: Read) -> Picture:
        from gpt2kit import plots

        reading = read()
        return getattr(plots, name)(reading.trace, reading.tokens)

    draw.__doc__ = text
    _kind(name)(draw)


for _name, _help in _WITHOUT_OPTIONS.items():
    _add_kind_without_options(_name, _help)


@_kind("attention")
def attention(read: Read, layer: Layer = None, head: Head = None) -> Picture:
    """Which tokens attend to which: one head from scores to output, a layer's heads, or all."""
    from gpt2kit import plots

    if head is not None and layer is None:
        raise typer.BadParameter("--head needs --layer too")
    reading = read()
    return plots.attention(reading.trace, reading.tokens, layer, head)


@_kind("attention-bars")
def attention_bars(
    read: Read,
    layer: Annotated[int, typer.Option("--layer", min=0, help="From 0.")] = 0,
    head: Annotated[int, typer.Option("--head", min=0, help="From 0.")] = 0,
) -> Picture:
    """What each position attends to in one head, as bars."""
    from gpt2kit import plots

    reading = read()
    return plots.attention_bars(reading.trace, reading.tokens, layer, head)


@_kind("mlp")
def mlp(read: Read, layer: Layer = None) -> Picture:
    """The MLP's activations before and after its activation function, and its active neurons."""
    from gpt2kit import plots

    reading = read()
    return plots.mlp(reading.trace, reading.tokens, layer)


@_kind("lens")
def lens(
    read: Read,
    last: Annotated[
        int, typer.Option("--last", min=0, help="Draw only the last N tokens; 0 draws all.")
    ] = 0,
) -> Picture:
    """Which token each layer would predict next if it were the last (the logit lens)."""
    from gpt2kit import plots

    reading = read()
    return plots.lens(reading.trace, reading.tokens, reading.tokenizer, last)


@_kind("temperature")
def temperature(
    read: Read,
    temperatures: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature",
            help=f"A temperature to draw{Times}. Default: 0.5, 1 and 1.5.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top_k", min=0, help="Mark the k most likely tokens; 0 marks all.")
    ] = 40,
    top_p: Annotated[
        float,
        typer.Option(
            "--top_p", help="Mark the most likely tokens that together reach this probability."
        ),
    ] = 0.9,
) -> Picture:
    """The next token's distribution at several temperatures, and what top-k and top-p keep."""
    import torch

    from gpt2kit import plots
    from gpt2kit.generation.request import Sampling

    chosen = temperatures or [0.5, 1.0, 1.5]
    for value in chosen:
        # Refuses a wrong value before a model is loaded.
        Sampling(temperature=value, top_k=top_k, top_p=top_p)
    reading = read()
    ids = torch.tensor([reading.ids], device=reading.model.device)  # (1, T)
    with torch.inference_mode():
        logits = reading.model(ids)[0, -1]  # (V,)
    return plots.temperature(logits, reading.tokenizer, chosen, top_k=top_k, top_p=top_p)


# --- of runs -------------------------------------------------------------------------------------


@_kind("losses", of_text=False)
def losses(
    run: Annotated[
        list[Path],
        typer.Option(
            "--run",
            metavar="DIR",
            help=f"A run's folder or its metrics.jsonl{Times}.",
        ),
    ],
    average: Annotated[
        list[str] | None,
        typer.Option(
            "--average",
            metavar="KIND:AMOUNT",
            help=f"simple:STEPS, exponential:FACTOR or none{Times}. Default: simple:20.",
            show_default=False,
        ),
    ] = None,
) -> Picture:
    """Training and validation losses of one run or several, with moving averages."""
    from gpt2kit import plots

    typed = [] if average == ["none"] else average or ["simple:20"]
    averages = [plots.Average.parse(text) for text in typed]
    return plots.losses(dict(_named_metrics(run)), averages)


def _named_metrics(paths: list[Path]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the name and the metrics of each run; a name that was there before becomes the path."""
    from gpt2kit.errors import TrainingError
    from gpt2kit.plots.runs import curve
    from gpt2kit.training.records import METRICS, read_metrics

    names: set[str] = set()
    for path in paths:
        if not (path / METRICS).is_file() and not path.is_file():
            raise TrainingError(
                f"{path}: no {METRICS}; expected the folder of a training run, or its {METRICS}"
            )
        metrics = read_metrics(path)
        if not any(curve(metrics, loss)[0] for loss in ("train_loss", "val_loss")):
            raise TrainingError(
                f"{path}: no losses; expected lines of JSON with step and train_loss or val_loss"
            )
        name = (path if path.is_dir() else path.parent).resolve().name
        yield output.one_line(str(path) if name in names else name), metrics
        names.add(name)
