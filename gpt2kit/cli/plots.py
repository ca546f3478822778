"""plot: one command for each kind of picture."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import options
from gpt2kit.cli.help import Commands
from gpt2kit.cli.options import Device, Dtype, Model, Special, Unknown

if TYPE_CHECKING:
    from gpt2kit.inspection import Trace
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

plot = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Draw what a model does with a text, how it chooses, or how a run went: a picture as PNG, SVG or PDF.",
    epilog="gpt2kit plot KIND --help says what a kind takes.",
)

Prompt = Annotated[
    str,
    typer.Option(
        "--prompt", metavar="TEXT|-", help="The text that the model reads; - is standard input."
    ),
]
Overflow = Annotated[
    Literal["slide", "stop", "error"],
    typer.Option(
        "--overflow",
        help="Of a text longer than the model's window: read its end, or its beginning, or refuse.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="A .png, .svg or .pdf. Default: KIND.png.", show_default=False
    ),
]
Dpi = Annotated[int, typer.Option("--dpi", min=20, max=1000, help="Dots per inch.")]
Title = Annotated[
    str | None,
    typer.Option(
        "--title", metavar="TEXT", help="In place of the picture's own title.", show_default=False
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

Picture = Any  # a matplotlib Figure; matplotlib is not loaded before it is needed


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.add_typer(plot, name="plot")


# --- what all kinds have in common -----------------------------------------------------------------------------------


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


def _read(
    model: str, prompt: str, overflow: str, special: bool, unknown: Any, device: str, dtype: str
) -> Reading:
    """Load a model, and cut a text into those of its tokens that fit."""
    from gpt2kit.checkpoints.load import load, pick_numbers
    from gpt2kit.errors import Gpt2KitWarning, TokenizerError
    from gpt2kit.inspection.explanation import fit

    pick_numbers(device, dtype, None)  # refuses a wrong one before anything is downloaded
    text = options.read_stdin() if prompt == "-" else options.as_typed(prompt) or ""
    gpt2, tokenizer = load(options.locate(model), device=device, dtype=dtype)
    if tokenizer is None:
        raise TokenizerError(
            f"{model}: no vocabulary beside the weights; put vocab.json and merges.txt there"
        )
    options.set_unknown(tokenizer, unknown)
    ids = list(fit(tokenizer.encode(text, special=special), gpt2, overflow))  # type: ignore[arg-type]
    n_ctx = gpt2.config.n_ctx
    if len(ids) > n_ctx:
        message = f"the text has {len(ids):,} tokens and the model reads {n_ctx:,}: the first {len(ids) - n_ctx:,} are left out"
        warnings.warn(message, Gpt2KitWarning, stacklevel=2)
    return Reading(gpt2, tokenizer, ids[-n_ctx:])


def _kind(
    name: str, *, of_text: bool = True
) -> Callable[[Callable[..., Picture]], Callable[..., Picture]]:
    """Make a command of a function that draws: its own options, those of a picture, and, before these, those of a text.

    A function that draws a text is given a function to call for the Reading, after it has looked at its own options.
    """

    def decorate(draw: Callable[..., Picture]) -> Callable[..., Picture]:
        own = dict(list(inspect.signature(draw, eval_str=True).parameters.items())[of_text:])
        text = inspect.signature(_text, eval_str=True).parameters if of_text else {}
        picture = inspect.signature(_picture, eval_str=True).parameters

        def run(**given: Any) -> None:
            from gpt2kit.plots import check_picture, save

            out = given["out"] or Path(f"{name}.png")
            check_picture(out)
            reading = (
                [functools.partial(_read, **{option: given[option] for option in text})]
                if of_text
                else []
            )
            figure = draw(*reading, **{option: given[option] for option in own})
            if given["title"] is not None:
                figure.suptitle(options.as_typed(given["title"]), parse_math=False)
            save(figure, out, dpi=given["dpi"])
            typer.secho(f"wrote {out}", err=True)

        parameters = [*text.values(), *own.values(), *picture.values()]
        run.__doc__ = draw.__doc__
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        plot.command(name)(run)
        if "-" in name:
            plot.command(name.replace("-", "_"), hidden=True)(run)  # people type both
        return draw

    return decorate


def _text(
    prompt: Prompt,
    model: Model = "124M",
    overflow: Overflow = "slide",
    special: Special = False,
    unknown: Unknown = "error",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """The options of every picture of a text."""


def _picture(out: Out = None, dpi: Dpi = 150, title: Title = None) -> None:
    """The options of every picture."""


Read = Callable[[], Reading]


# --- of a text -------------------------------------------------------------------------------------------------------

_WITHOUT_OPTIONS = {
    "tokens": "Token ids over the text.",
    "positions": "Position embeddings as a heat map, and how alike they are.",
    "norms": "How long token embeddings are, beside position embeddings.",
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
    """Who looks at whom: one head from scores to output, the heads of a layer, or all of them."""
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
    """Where each position looks, as bars, in one head."""
    from gpt2kit import plots

    reading = read()
    return plots.attention_bars(reading.trace, reading.tokens, layer, head)


@_kind("mlp")
def mlp(read: Read, layer: Layer = None) -> Picture:
    """Activations of the MLP before and after its activation function, and the share of active neurons."""
    from gpt2kit import plots

    reading = read()
    return plots.mlp(reading.trace, reading.tokens, layer)


@_kind("lens")
def lens(
    read: Read,
    last: Annotated[
        int, typer.Option("--last", min=0, help="Draw only so many tokens, the last; 0 draws all.")
    ] = 0,
) -> Picture:
    """What each layer would say next, if it were the last (the logit lens)."""
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
            help="May be given several times. Default: 0.5, 1 and 1.5.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top_k", min=0, help="Mark the k most likely tokens; 0 keeps all.")
    ] = 40,
    top_p: Annotated[
        float,
        typer.Option(
            "--top_p", help="Mark the most likely tokens that together reach this probability."
        ),
    ] = 0.9,
) -> Picture:
    """The distribution of the next token at several temperatures, and what top-k and top-p keep."""
    import torch

    from gpt2kit import plots
    from gpt2kit.generation.request import Sampling

    chosen = temperatures or [0.5, 1.0, 1.5]
    for value in chosen:
        Sampling(
            temperature=value, top_k=top_k, top_p=top_p
        )  # refuses a wrong one before a model is loaded
    reading = read()
    with torch.inference_mode():
        logits = reading.model(torch.tensor([reading.ids], device=reading.model.device))[
            0, -1
        ]  # (V,)
    return plots.temperature(logits, reading.tokenizer, chosen, top_k=top_k, top_p=top_p)


# --- of runs ---------------------------------------------------------------------------------------------------------


@_kind("losses", of_text=False)
def losses(
    run: Annotated[
        list[Path],
        typer.Option(
            "--run",
            metavar="DIR",
            help="A run's folder or its metrics.jsonl; may be given several times.",
        ),
    ],
    average: Annotated[
        list[str] | None,
        typer.Option(
            "--average",
            metavar="KIND:AMOUNT",
            help="simple:STEPS, exponential:FACTOR or none; may be given several times. Default: simple:20.",
            show_default=False,
        ),
    ] = None,
) -> Picture:
    """Training and validation losses of one run or several, with moving averages."""
    from gpt2kit import plots
    from gpt2kit.errors import TrainingError
    from gpt2kit.plots.runs import curve
    from gpt2kit.training.records import METRICS, read_metrics

    averages = (
        []
        if average == ["none"]
        else [plots.Average.parse(text) for text in average or ["simple:20"]]
    )
    runs = {}
    for path in run:
        if not (path / METRICS).is_file() and not path.is_file():
            raise TrainingError(
                f"{path}: no {METRICS}; expected the folder of a training run, or its {METRICS}"
            )
        folder = path if path.is_dir() else path.parent
        name = folder.resolve().name
        runs[str(path) if name in runs else name] = metrics = read_metrics(path)
        if not any(curve(metrics, loss)[0] for loss in ("train_loss", "val_loss")):
            raise TrainingError(
                f"{path}: no losses; expected lines of JSON with step and train_loss or val_loss"
            )
    return plots.losses(runs, averages)
