"""plot: one command for each kind of picture."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gpt2kit.cli import output
from gpt2kit.cli.pictures import Picture, Read, kind, plot

Layer = Annotated[
    int | None,
    typer.Option("--layer", min=0, help="From 0. Default: all layers.", show_default=False),
]
OneLayer = Annotated[int, typer.Option("--layer", min=0, help="From 0.")]
AfterLayer = Annotated[
    int | None,
    typer.Option("--layer", min=0, help="From 0. Default: the last.", show_default=False),
]
ByPosition = Annotated[
    int | None,
    typer.Option(
        "--layer",
        min=0,
        help="From 0: draw this layer, position by position. Default: all layers.",
        show_default=False,
    ),
]
Head = Annotated[
    int | None,
    typer.Option(
        "--head", min=0, help="From 0; needs --layer. Default: all heads.", show_default=False
    ),
]
OneHead = Annotated[int, typer.Option("--head", min=0, help="From 0.")]
Position = Annotated[
    int | None,
    typer.Option("--position", min=0, help="From 0. Default: the last.", show_default=False),
]
OnePosition = Annotated[
    int | None,
    typer.Option(
        "--position",
        min=0,
        help="From 0: draw this position, layer by layer. Default: all positions of one layer.",
        show_default=False,
    ),
]
Dimensions = Annotated[
    int,
    typer.Option(
        "--dimensions", min=1, max=24, help="How many dimensions are written as numbers, too."
    ),
]
Times = "; may be given several times"
_RUN = typer.Option("--run", metavar="DIR", help=f"A run's folder or its metrics.jsonl{Times}.")
Runs = Annotated[list[Path], _RUN]
OptionalRuns = Annotated[list[Path] | None, _RUN]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.add_typer(plot, name="plot")


# --- of a text: drawn by the function of gpt2kit.plots that has the kind's name ------------------

# kind -> its help, and its options: name -> type and default, in the order of the function
_KINDS: dict[str, tuple[str, dict[str, tuple[Any, Any]]]] = {
    "tokens": ("Token ids over the text.", {}),
    "positions": (
        "Position embeddings as a heat map, and how similar they are to each other.",
        {},
    ),
    "norms": ("The norms of token embeddings and of position embeddings.", {}),
    "embeddings": (
        "Embeddings of tokens, positions and their sum in two dimensions (PCA).",
        {},
    ),
    "attention-bars": (
        "What each position attends to in one head, as bars.",
        {"layer": (OneLayer, 0), "head": (OneHead, 0)},
    ),
    "scores": (
        "The variance of attention scores with and without the division by the root of the head "
        "size, and what the division prevents.",
        {},
    ),
    "residual": ("The norm of the residual stream, by layer and position.", {}),
    "stream": (
        "The numbers of the residual stream: those of every position after one layer, or of one "
        "position after every layer.",
        {
            "layer": (AfterLayer, None),
            "position": (OnePosition, None),
            "dimensions": (Dimensions, 8),
        },
    ),
    "updates": (
        "What attention and MLP add to the residual stream: norm and variance, by layer, or by "
        "position in one layer.",
        {"layer": (ByPosition, None)},
    ),
    "layernorm": (
        "The numbers of one layer before and after LayerNorm or RMSNorm: histogram, mean and "
        "standard deviation.",
        {"layer": (OneLayer, 0)},
    ),
    "activation": (
        "The model's activation function beside ReLU and GELU, and the numbers that reach it.",
        {"layer": (Layer, None)},
    ),
    "mlp": (
        "The MLP's activations before and after its activation function, and its active neurons.",
        {"layer": (Layer, None)},
    ),
    "mlp-in-out": (
        "What one layer's MLP reads and what it adds, dimension by dimension.",
        {"layer": (OneLayer, 0), "position": (Position, None)},
    ),
    "neurons": (
        "At which share of the positions each neuron is active.",
        {"layer": (Layer, None)},
    ),
}


def _add_kind(name: str, text: str, own: dict[str, tuple[Any, Any]]) -> None:
    def draw(read: Read, **options: Any) -> Picture:
        from gpt2kit import plots

        reading = read()
        function = getattr(plots, name.replace("-", "_"))
        return function(reading.trace, reading.tokens, *options.values())

    draw.__doc__ = text
    named = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("read", inspect.Parameter.POSITIONAL_ONLY),
        *(
            inspect.Parameter(option, named, default=default, annotation=annotation)
            for option, (annotation, default) in own.items()
        ),
    ]
    draw.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    kind(name)(draw)


for _name, (_help, _own) in _KINDS.items():
    _add_kind(_name, _help, _own)


# --- of a text, with more to do ------------------------------------------------------------------


@kind("attention")
def attention(read: Read, layer: Layer = None, head: Head = None) -> Picture:
    """Which tokens attend to which: one head from scores to output, a layer's heads, or all."""
    from gpt2kit import plots

    if head is not None and layer is None:
        raise typer.BadParameter("--head needs --layer too")
    reading = read()
    return plots.attention(reading.trace, reading.tokens, layer, head)


@kind("lens")
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


@kind("temperature")
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


@kind("gradients", needs_text=False)
def gradients(read: Read, run: OptionalRuns = None) -> Picture:
    """The gradient by layer: of a text, with and without residual connections, or of trainings.

    Give --prompt for the gradient of the loss in predicting a text, or --run for the norms that a
    training recorded at every step.
    """
    from gpt2kit import plots

    if run:
        return plots.gradients_of_runs(dict(_named_metrics(run)))
    reading = read()
    return plots.gradients(reading.trace, reading.tokens)


# --- of runs -------------------------------------------------------------------------------------


@kind("losses", of_text=False)
def losses(
    run: Runs,
    average: Annotated[
        list[str] | None,
        typer.Option(
            "--average",
            metavar="KIND:AMOUNT",
            help=f"simple:STEPS, exponential:FACTOR or none{Times}. Default: simple:20.",
            show_default=False,
        ),
    ] = None,
    apart: Annotated[
        bool,
        typer.Option("--apart", help="Draw training and validation in a panel each."),
    ] = False,
    by: Annotated[
        Literal["step", "tokens"],
        typer.Option("--by", help="What the horizontal axis counts: steps, or tokens seen."),
    ] = "step",
) -> Picture:
    """Training and validation losses of one run or several, with moving averages."""
    from gpt2kit import plots

    typed = [] if average == ["none"] else average or ["simple:20"]
    averages = [plots.Average.parse(text) for text in typed]
    return plots.losses(dict(_named_metrics(run)), averages, apart=apart, by=by)


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
