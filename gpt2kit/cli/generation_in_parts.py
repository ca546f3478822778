"""generate --prompts FILES --out DIR: the prompts of many files, continued in parts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gpt2kit.bulk.options import GROUP, Reading, Running
from gpt2kit.cli import bulk, options
from gpt2kit.cli.options import ModelOptions
from gpt2kit.fields import check, option
from gpt2kit.generation.request import Request

if TYPE_CHECKING:
    from gpt2kit.bulk.work import Models

# What is shown, or concerns one prompt, or needs more than the model.
_NOT_HERE = (
    *("prompt", "prompts_file", "bias", "draft", "draft_tokens", "steer", "top_logprobs"),
    *("no_prompt", "color", "json", "stats", "receipt", "receipt_text"),
)


@dataclass(frozen=True, kw_only=True)
class ManyPrompts:
    """Which files have the prompts, and where the texts go."""

    prompts: tuple[str, ...] = option(
        (),
        "Continue the prompts of a file, folder or glob; may be given several times. Needs --out.",
        group=GROUP,
        metavar="FILES",
    )
    out: str | None = option(
        None,
        "Write the texts for --prompts into this folder, part by part; the command given again "
        "goes on where it stopped.",
        group=GROUP,
        metavar="DIR",
    )
    text: str = option(
        "text", "The column of --prompts with the prompt.", group=GROUP, metavar="COLUMN"
    )

    def __post_init__(self) -> None:
        check(self)
        if bool(self.prompts) != (self.out is not None):
            raise typer.BadParameter("--prompts FILES and --out DIR go together; give both")


@dataclass(frozen=True)
class _Loader:
    """How the model is loaded, in this process or another."""

    source: ModelOptions

    def __call__(self, device: str | None = None) -> Models:
        from gpt2kit.bulk.work import Models
        from gpt2kit.tokenizers import require_tokenizer

        own = bulk.device_for(device, self.source.device)
        model, tokenizer = dataclasses.replace(self.source, device=own).load()
        return Models(model, require_tokenizer(tokenizer, self.source.model))


def run(
    context: typer.Context,
    many: ManyPrompts,
    request: Request,
    batch_size: int,
    source: ModelOptions,
    reading: Reading,
    running: Running,
) -> None:
    """Continue the prompts of many files; without --seed the seed is 0, the same for all."""
    from gpt2kit.bulk.texts import Generate

    assert many.out is not None
    options.refuse(context, _NOT_HERE, "--out DIR writes rows of JSON, with the model alone")
    if not options.is_typed(context, "seed"):
        request = dataclasses.replace(request, seed=0)
    work = Generate(text=many.text, request=request, batch_size=batch_size)
    load = _Loader(options.under_adapters(context, source))
    bulk.run(many.prompts, Path(many.out), work, load, reading, running, "cell")
