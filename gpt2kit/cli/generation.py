"""generate: texts that continue prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpt2kit.bulk.options import Reading, Running
from gpt2kit.cli import bulk, color, generation_in_parts, history, options, output, process
from gpt2kit.cli.fields import takes
from gpt2kit.cli.generation_in_parts import ManyPrompts
from gpt2kit.cli.generation_report import Stats, Writer
from gpt2kit.cli.options import OUTPUT_GROUP, SPEED_GROUP, TEXT_GROUP, ModelOptions
from gpt2kit.cli.prompts import (
    batches,
    check_standard_input,
    read_bans,
    read_bias,
    read_lines,
    read_prompts,
)
from gpt2kit.cli.receipts import check_folder, loaded_from, write_receipt
from gpt2kit.cli.steering import check_steer, steer_for
from gpt2kit.fields import check, option
from gpt2kit.generation.request import Request

if TYPE_CHECKING:
    from gpt2kit.generation.speculate import Draft
    from gpt2kit.tokenizers import Tokenizer


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("generate")(generate)


Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT|-",
        help="The text to continue; - is standard input, '' starts a new text.",
        show_default=False,
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts_file",
        metavar="FILE",
        help="Continue every line of a file; - is standard input.",
        show_default=False,
        rich_help_panel=TEXT_GROUP,
    ),
]

Bias = Annotated[
    list[str] | None,
    typer.Option(
        "--bias",
        metavar="ID|TEXT:VALUE",
        help="Add VALUE, from -100 to 100, to the logit of one token, given as its id or its text; "
        "-100 bans it in effect. May be given several times.",
        show_default=False,
        rich_help_panel="Sampling",
    ),
]


Allow = Annotated[
    Path | None,
    typer.Option(
        "--allow",
        metavar="FILE",
        help="The continuation has to be one of the lines of this file.",
        show_default=False,
        rich_help_panel="Constraints",
    ),
]
Forbid = Annotated[
    Path | None,
    typer.Option(
        "--forbid",
        metavar="FILE",
        help="No line of the text may be one of the lines of this file; the first line of the text "
        "is the prompt's last.",
        show_default=False,
        rich_help_panel="Constraints",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What makes generation faster or slower; the texts stay as good."""

    draft: str | None = option(
        None,
        "A smaller model of the same vocabulary proposes tokens, and the model keeps those it "
        "agrees with. Or lookup: the text itself proposes what followed the same words before, "
        "which helps texts that repeat themselves. The text stays the same; only with a draft "
        "model and a temperature above 0 it is another one for the same seed, just as likely.",
        group=SPEED_GROUP,
        metavar="MODEL|lookup",
    )
    batch_size: int = option(16, "Texts to write at once.", group=SPEED_GROUP, at_least=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is printed."""

    no_prompt: bool = option(
        False, "Print the continuation without the prompt.", group=OUTPUT_GROUP
    )
    color: Literal["auto", "always", "never"] = option(
        "never",
        "Color tokens by how surprising the model finds them; auto: on a terminal, unless "
        "NO_COLOR is set.",
        group=OUTPUT_GROUP,
    )
    json: bool = option(
        False, "Print one JSON object per text, with its tokens.", group=OUTPUT_GROUP
    )
    stats: bool = option(False, "Report speed and memory on stderr.", group=OUTPUT_GROUP)
    receipt: str | None = option(
        None,
        "Write what is needed to write the same texts again: digests, options, seed, versions. See "
        "gpt2kit replay.",
        group=OUTPUT_GROUP,
        metavar="FILE",
    )
    receipt_text: bool = option(
        False, "The receipt also has the prompts and the texts.", group=OUTPUT_GROUP
    )

    def __post_init__(self) -> None:
        check(self)
        if self.json and self.color == "always":
            raise typer.BadParameter("--json has no colors; its logprobs say the same")
        if self.receipt_text and self.receipt is None:
            raise typer.BadParameter("--receipt_text is for --receipt FILE; add it")

    @property
    def in_color(self) -> bool:
        """Whether the text is shown in color."""
        return not self.json and color.wanted(self.color)


@takes(
    without=(
        *("first_sample", "logprobs", "prompt_logprobs", "logit_bias", "logits_processors"),
        *("allow", "forbid"),
    ),
    request=Request,
    speed=SpeedOptions,
    shown=OutputOptions,
    source=ModelOptions,
    many=ManyPrompts,
    reading=Reading,
    running=Running,
)
def generate(
    context: typer.Context,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    *,
    bias: Bias = None,
    allow: Allow = None,
    forbid: Forbid = None,
    request: Request,
    speed: SpeedOptions,
    shown: OutputOptions,
    source: ModelOptions,
    many: ManyPrompts,
    reading: Reading,
    running: Running,
) -> None:
    """Continue a text with a GPT-2.

    Without a prompt on a terminal, asks for one after the other. The text goes to stdout,
    everything else to stderr. With --prompts FILES --out DIR, the prompts of many files are
    continued in parts; see docs/score-at-scale.md.
    """
    process.import_torch()
    request.check_draft(speed.draft)
    check_steer(source.steer)
    if request.top_logprobs and not shown.json:
        raise typer.BadParameter("--top_logprobs is shown with --json; add it")
    if not many.prompts:
        check_standard_input(prompt, prompts_file=prompts_file, allow=allow, forbid=forbid)
    request = dataclasses.replace(
        request,
        logprobs=shown.json or shown.in_color,
        ban=read_bans(request.ban),
        allow=read_lines(allow) if allow else None,
        forbid=read_lines(forbid) if forbid else None,
    )
    if many.prompts:
        generation_in_parts.run(context, many, request, speed.batch_size, source, reading, running)
        return
    options.refuse(context, ("text",), "it is for --prompts FILES --out DIR")
    bulk.refuse_without_folder(context)
    asks = prompt is None and prompts_file is None and sys.stdin.isatty()
    if shown.receipt is not None:
        if asks:
            raise typer.BadParameter("--receipt needs a prompt or --prompts_file")
        check_folder(shown.receipt)
    prompts = [] if asks else read_prompts(options.as_typed(prompt), prompts_file)
    source = options.under_adapters(context, source)
    started = time.perf_counter()
    model, tokenizer = source.load()
    steer_for(source.steer, model, tokenizer, prompts, request)
    if bias:
        sampling = dataclasses.replace(
            request.sampling, logit_bias=tuple(read_bias(bias, tokenizer))
        )
        request = dataclasses.replace(request, sampling=sampling)
    writer = Writer(
        model,
        tokenizer,
        load_draft(speed.draft, source, tokenizer),
        json=shown.json,
        no_prompt=shown.no_prompt,
        color=shown.in_color,
        stats=Stats(time.perf_counter() - started, request.compile) if shown.stats else None,
        keeps_texts=shown.receipt is not None or history.is_on(),
    )
    is_drawn = request.sampling.temperature > 0 and not options.is_typed(context, "seed")
    show_seed = is_drawn and not shown.json
    if asks:
        _prompt_loop(writer, request, show_seed)
        history.keep(writer.completions, source.model)
        return
    for some, part in batches(prompts, request, speed.batch_size):
        writer.write(some, part)
    writer.report(request.drawn_seed if show_seed else None)
    history.keep(writer.completions, source.model)
    if shown.receipt is not None:
        made = writer.receipt(
            request, loaded_from(source, speed.draft, speed.batch_size), shown.receipt_text
        )
        write_receipt(shown.receipt, made)


def load_draft(
    draft: str | None, source: ModelOptions, tokenizer: Tokenizer | None
) -> Draft | None:
    """Return the draft that was named, if any.

    Raises ConfigError for a model that has a vocabulary, but another one.
    """
    from gpt2kit.errors import ConfigError
    from gpt2kit.tokenizers import identity

    if draft is None:
        return None
    if draft == "lookup":
        return "lookup"
    model, own = dataclasses.replace(
        source, model=draft, adapter=None, vocabulary=None, n_head=None, steer=()
    ).load()
    if tokenizer and own and identity(tokenizer) != identity(own):
        raise ConfigError(
            f"the draft model {draft} has another vocabulary than {source.model} "
            f"({own.n_vocab:,} and {tokenizer.n_vocab:,} tokens); expected the same: "
            "take a smaller model of its family, or --draft lookup"
        )
    return model


# --- a prompt at a time ---------------------------------------------------------------------------


def _prompt_loop(writer: Writer, request: Request, show_seed: bool) -> None:
    """Ask for prompts until the input ends.

    Ctrl-C ends the text that is being written, or if none is, the loop.
    """
    from gpt2kit.errors import Gpt2KitError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history in input()
    output.note(
        "Type the beginning of a text and press Enter. Ctrl-C stops a text, Ctrl-D leaves.",
        dim=True,
    )
    while True:
        try:
            prompt = output.ask("> ")
        except EOFError:
            output.note()
            return
        try:
            writer.write([prompt], request)
        except Gpt2KitError as error:
            output.error(error)
        except KeyboardInterrupt:
            pass  # the text ends here, and the next prompt is asked for
        writer.report(request.drawn_seed if show_seed else None)
        if show_seed:
            request = dataclasses.replace(request, seed=None)  # draws another
