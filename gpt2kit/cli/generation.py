"""generate."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpt2kit.cli import color, history, options, output, process
from gpt2kit.cli.fields import takes
from gpt2kit.cli.generation_report import Stats, Writer
from gpt2kit.cli.options import OUTPUT_GROUP, SPEED_GROUP, TEXT_GROUP, ModelOptions
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
) -> None:
    """Continue a text with a GPT-2.

    Without a prompt on a terminal, asks for one after the other. The text goes to stdout,
    everything else to stderr.
    """
    process.import_torch()
    request.check_draft(speed.draft)
    check_steer(source.steer)
    if request.top_logprobs and not shown.json:
        raise typer.BadParameter("--top_logprobs is shown with --json; add it")
    request = dataclasses.replace(
        request,
        logprobs=shown.json or shown.in_color,
        ban=read_bans(request.ban),
        allow=read_lines(allow) if allow else None,
        forbid=read_lines(forbid) if forbid else None,
    )
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
        sampling = dataclasses.replace(request.sampling, logit_bias=tuple(_bias(bias, tokenizer)))
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


# --- bias -----------------------------------------------------------------------------------------


def _bias(typed: Sequence[str], tokenizer: Tokenizer | None) -> list[tuple[int, float]]:
    """Return the pairs of id and value that were typed as ID:VALUE or TEXT:VALUE."""
    from gpt2kit.tokenizers import require_tokenizer

    tokenizer = require_tokenizer(tokenizer, "the model")
    pairs = []
    for each in typed:
        token, _, value = each.rpartition(":")
        try:
            number = float(value)
        except ValueError:
            raise typer.BadParameter(
                f"--bias {each!r} has no number at its end; expected ID:VALUE or TEXT:VALUE, as in "
                "--bias ' the:-5'"
            ) from None
        pairs.append((_one_token(token, tokenizer), number))
    return pairs


def _one_token(typed: str, tokenizer: Tokenizer) -> int:
    """Return the token that was typed as its id or as its text."""
    if typed.isascii() and typed.isdigit():
        return int(typed)
    ids = tokenizer.encode(typed, special=True)
    if len(ids) != 1:
        listed = ", ".join(f"{token} {tokenizer.decode([token])!r}" for token in ids)
        raise typer.BadParameter(
            f"--bias takes one token, and the text {typed!r} has {len(ids)}"
            + (f": {listed}" if ids else "")
            + _with_space(typed, tokenizer)
        )
    return ids[0]


def _with_space(typed: str, tokenizer: Tokenizer) -> str:
    """Return the end of an error: with a space before it, the text may be one token."""
    from gpt2kit.errors import TokenizerError

    with contextlib.suppress(TokenizerError):
        if not typed.startswith(" ") and len(ids := tokenizer.encode(f" {typed}")) == 1:
            return f"; {' ' + typed!r}, the word with the space before it, is one token, {ids[0]}"
    return ""


def read_bans(typed: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that were typed, with the lines of a file in place of @FILE."""
    from gpt2kit.errors import Gpt2KitError

    texts: list[str] = []
    for each in typed:
        if not each.startswith("@") or each == "@":
            texts.append(each)
            continue
        file = Path(each[1:])
        lines = [line.removesuffix("\r") for line in _text_of(file).split("\n")]
        if not any(lines):
            raise Gpt2KitError(f"{file}: no texts to ban; expected one on each line")
        texts += [line for line in lines if line]
    return tuple(texts)


# --- prompts --------------------------------------------------------------------------------------


def read_prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    """Return the prompts: one that was typed, standard input, or the lines of a file."""
    if prompts_file is None:
        return [options.read_stdin() if prompt is None or prompt == "-" else prompt]
    if prompt is not None:
        raise typer.BadParameter("give a prompt or --prompts_file, not both")
    from gpt2kit.errors import Gpt2KitError

    lines = [line for line in _text_of(prompts_file).split("\n") if line.strip()]
    if not lines:
        raise Gpt2KitError(f"{prompts_file}: no prompts; expected one on each line")
    return [line.removesuffix("\r") for line in lines]


def read_lines(file: Path) -> tuple[str, ...]:
    """Return the lines of a file that are not empty."""
    from gpt2kit.errors import Gpt2KitError

    lines = [line.removesuffix("\r") for line in _text_of(file).split("\n")]
    if not any(lines):
        raise Gpt2KitError(f"{file}: no lines; expected one at least that is not empty")
    return tuple(lines)


def _text_of(file: Path) -> str:
    """Return the text of a UTF-8 file, or of standard input for -."""
    from gpt2kit.errors import Gpt2KitError

    if str(file) == "-":
        return options.read_stdin()
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Gpt2KitError(
            f"{file}: not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from error


def batches(
    prompts: Sequence[str], request: Request, batch_size: int
) -> Iterator[tuple[Sequence[str], Request]]:
    """Split the work so that at most batch_size texts are written at once.

    A batch has whole prompts with all their samples, or some of the samples of one prompt.
    """
    n = request.num_samples
    if n <= batch_size:
        at_once = batch_size // n
        for start in range(0, len(prompts), at_once):
            yield prompts[start : start + at_once], request
        return
    for prompt in prompts:
        for first in range(0, n, batch_size):
            n_here = min(batch_size, n - first)
            yield [prompt], dataclasses.replace(request, first_sample=first, num_samples=n_here)


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
