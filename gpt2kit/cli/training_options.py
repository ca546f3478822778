"""The options of `train`, `finetune` and `plan`: each once, with its help, and how they become a command's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2kit.cli.options import MODEL_HELP, Json


def _option(kind: Any, name: str, text: str, **rules: Any) -> Any:
    if kind is bool:
        return Annotated[
            bool | None, typer.Option(f"--{name}/--no_{name}", help=text, show_default=False)
        ]
    return Annotated[kind | None, typer.Option(f"--{name}", help=text, show_default=False, **rules)]


def _table(**options: tuple[Any, str]) -> dict[str, Any]:
    return {name: _option(kind, name, text) for name, (kind, text) in options.items()}


CORPUS = Annotated[
    str,
    typer.Argument(
        metavar="CORPUS",
        help="A .txt, .jsonl, folder or glob of them, or a file of ids (.npy, .bin).",
    ),
]

TRAINING = _table(
    block_size=(
        int,
        "Tokens of a window. Default: 256, or the model's length, or what the corpus has.",
    ),
    batch_size=(int, "Windows of a step, in all processes together. Default: 16; for finetune 8."),
    accumulate=(int, "Parts to cut a batch into, to need less memory. Default: what fits."),
    max_steps=(int, "Steps in all. Default: 2000; for finetune 3 epochs."),
    epochs=(float, "Steps as passes over the corpus, in place of --max_steps."),
    optimizer=(
        str,
        "muon (matrices by Muon, the rest by AdamW) or adamw. Default: muon; for finetune adamw.",
    ),
    lr=(float, "Highest learning rate. Default: 3e-3; for finetune 1e-4, with --lora_rank 1e-3."),
    schedule=(str, "How the learning rate falls: cosine, linear or constant. Default: linear."),
    warmup=(int, "Steps in which the learning rate rises. Default: 100, or a tenth of the steps."),
    weight_decay=(
        float,
        "Share that matrices and embeddings lose in a step, times the learning rate. Default: 0.01.",
    ),
    beta1=(float, "AdamW's average of the gradient. Default: 0.9."),
    beta2=(float, "AdamW's average of its square. Default: 0.95."),
    clip=(float, "Largest norm of the gradient; 0 for no limit. Default: 1."),
    dropout=(float, "Share of activations to drop in training, everywhere. Default: 0.1."),
    freeze=(
        str,
        "Parts not to train: embeddings, norms, attention, mlp, head, blocks:0-5; several with commas.",
    ),
    dtype=(
        str,
        "Precision of matrix products: bfloat16 or float32; weights are float32. Default: what is faster here.",
    ),
    checkpointing=(
        bool,
        "Compute the blocks twice to need less memory. Default: only where it would not fit otherwise.",
    ),
    compile=(bool, "Let torch compile the model; slow to start. Default: no."),
    eval_every=(int, "Steps between validations. Default: a twentieth of the steps."),
    eval_tokens=(int, "Tokens of the validation text to use, at most. Default: 262144."),
    save_every=(int, "Steps between saved states. Default: as --eval_every."),
    patience=(
        int,
        "Stop after so many validations without a better one; 0 never does. Default: 5.",
    ),
    seed=(int, "Seed of new weights, of the order of windows and of dropout. Default: 0."),
    val_fraction=(float, "Share of the corpus to validate with, its end. Default: 0.1."),
    val=(str, "A text to validate with, in place of the corpus's end."),
    encoding=(str, "Encoding of the corpus. Default: utf-8."),
    text_field=(str, "The field of a .jsonl file that holds the text. Default: text."),
    sample_every=(int, "Steps between samples. Default: as --eval_every; 0 writes none."),
    sample_tokens=(int, "Tokens of a sample. Default: 100."),
    prompt=(str, "What samples go on from. Default: how the validation text begins."),
    stop_when_copied=(
        float,
        "Stop when this share of a sample is copied from the corpus; 1 never does. Default: 1.",
    ),
    device=(str, "Where to train: auto, cpu, cuda, cuda:1, mps, … Default: auto."),
)

MODEL = _table(
    tokenizer=(str, "char, word or bpe. Default: char."),
    vocabulary=(
        str,
        "With bpe: take the vocabulary of this model, in place of learning one from the corpus.",
    ),
    n_vocab=(int, "With bpe: tokens to learn. Default: 1024."),
    n_layer=(int, "Blocks. Default: 6."),
    n_head=(int, "Attention heads. Default: 6."),
    n_embd=(int, "Width. Default: 192."),
    n_inner=(int, "Width of the MLP's hidden layer. Default: four times the width."),
    activation_function=(str, "gelu_new, gelu, quick_gelu, relu, silu or tanh. Default: gelu_new."),
    norm=(str, "layernorm or rmsnorm. Default: layernorm."),
    norm_first=(
        bool,
        "Normalise before attention and MLP, as GPT-2 does, or after. Default: before.",
    ),
    mlp=(str, "plain or swiglu. Default: plain."),
    positions=(str, "learned or sinusoidal. Default: learned."),
    bias=(bool, "Biases on projections and normalisation. Default: yes."),
    qkv_bias=(bool, "Biases on queries, keys and values. Default: yes."),
    tie_word_embeddings=(bool, "The head is the token embedding. Default: yes."),
)

FINETUNE = _table(
    model=(str, MODEL_HELP + " Default: 124M."),
    lora_rank=(
        int,
        "Train low-rank adapters of this rank instead of the weights. Default: 0, none.",
    ),
    lora_alpha=(
        float,
        "What adapters are multiplied with, over their rank. Default: twice the rank.",
    ),
)

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="The run's folder. Default: weights/CORPUS-MODEL.",
        show_default=False,
    ),
]
Shard = Annotated[
    bool,
    typer.Option(
        "--shard",
        help="Divide the model among the processes of torchrun, where it does not fit on one device.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out exactly where it stopped.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the run that is in --out.")]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard", help="Write the figures for TensorBoard too, into the run's folder."
    ),
]
FLAGS = {"shard": Shard, "resume": Resume, "force": Force, "tensorboard": TensorBoard, "json": Json}
RUN: dict[str, Any] = {"out": Out, **FLAGS}
RECIPE = {
    "recipe": _option(
        str,
        "recipe",
        "Take the options of a recipe that `gpt2kit recipes` lists; those given here win.",
    )
}


def command(
    name: str, *tables: dict[str, Any]
) -> Callable[[Callable[[str, dict[str, Any]], None]], Callable[..., None]]:
    """Make a command of a function of the corpus and the options that were given, by their names."""
    kinds = {name: kind for table in tables for name, kind in table.items()}

    def decorate(function: Callable[[str, dict[str, Any]], None]) -> Callable[..., None]:
        def run(corpus: str, **options: Any) -> None:
            function(corpus, {name: value for name, value in options.items() if value is not None})

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("corpus", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=CORPUS)
        ]
        for option, kind in kinds.items():
            parameters.append(
                inspect.Parameter(
                    option, keyword, default=False if option in FLAGS else None, annotation=kind
                )
            )
        run.__name__, run.__doc__ = name, function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
