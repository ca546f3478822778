"""generate."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpt2kit.cli import colour, options, process
from gpt2kit.cli.colour import Colour
from gpt2kit.cli.options import (
    Device,
    Dtype,
    Json,
    Model,
    NoCache,
    NoVerify,
    Quantize,
    Special,
    Unknown,
)

if TYPE_CHECKING:
    from gpt2kit.generation.request import Request
    from gpt2kit.generation.speculate import Draft
    from gpt2kit.generation.text import Piece
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("generate")(generate)


Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT|-",
        help="The text to go on from; - is standard input, '' starts a new text.",
        show_default=False,
    ),
]
MaxTokens = Annotated[int, typer.Option("--max_tokens", min=0, help="New tokens, at most.")]
Temperature = Annotated[
    float,
    typer.Option("--temperature", help="0 always takes the most likely token; above 1 is wilder."),
]
TopK = Annotated[
    int, typer.Option("--top_k", min=0, help="Sample from the k most likely tokens; 0 keeps all.")
]
TopP = Annotated[
    float,
    typer.Option(
        "--top_p", help="Sample from the most likely tokens that together reach this probability."
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min_p",
        help="Drop tokens with less than this share of the most likely one's probability.",
    ),
]
Penalty = Annotated[
    float,
    typer.Option(
        "--repetition_penalty", help="Above 1: tokens that have occurred become less likely."
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="Stop before this text; may be given several times. A line end is $'\\n'.",
        show_default=False,
    ),
]
IgnoreEos = Annotated[bool, typer.Option("--ignore_eos", help="Go on after <|endoftext|>.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        help="The same seed gives the same text; without it one is drawn and shown.",
        show_default=False,
    ),
]
NumSamples = Annotated[
    int, typer.Option("--num_samples", min=1, help="Continuations of each prompt.")
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts_file",
        metavar="FILE",
        help="Continue every line of a file; - is standard input.",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option("--batch_size", min=1, help="Texts to write at once.")]
DraftName = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL|lookup",
        help="For speed: a smaller model of the same vocabulary proposes tokens, and the model keeps those it agrees with; or lookup: "
        "what followed the same words before, a gain for texts that repeat themselves, hardly for others. The text stays the "
        "same, but with a draft model and a temperature above 0 it is another one for the same seed, just as likely.",
        show_default=False,
    ),
]
DraftTokens = Annotated[
    int | None,
    typer.Option(
        "--draft_tokens",
        min=1,
        help="With --draft: tokens proposed at once, at most; fewer where they do not hold. Default: 7.",
        show_default=False,
    ),
]
Overflow = Annotated[
    Literal["slide", "stop", "error"],
    typer.Option(
        "--overflow", help="Past the model's window: re-read its last half, or stop, or refuse."
    ),
]
NoPrompt = Annotated[
    bool, typer.Option("--no_prompt", help="Print the continuation without the prompt.")
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Let torch compile what reads new tokens; that takes a minute at first. For a GPU, or with GPT2KIT_NATIVE=0.",
    ),
]
ShowStats = Annotated[bool, typer.Option("--stats", help="Report speed and memory on stderr.")]


def generate(
    context: typer.Context,
    prompt: Prompt = None,
    model: Model = "124M",
    max_tokens: MaxTokens = 100,
    temperature: Temperature = 1.0,
    top_k: TopK = 40,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    seed: Seed = None,
    num_samples: NumSamples = 1,
    prompts_file: PromptsFile = None,
    batch_size: BatchSize = 16,
    overflow: Overflow = "slide",
    draft: DraftName = None,
    draft_tokens: DraftTokens = None,
    special: Special = False,
    unknown: Unknown = "error",
    no_prompt: NoPrompt = False,
    colours: Colour = "never",
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    no_verify: NoVerify = False,
    no_cache: NoCache = False,
    compile: Compile = False,
    json: Json = False,
    stats: ShowStats = False,
) -> None:
    """Continue a text with a GPT-2.

    Without a prompt on a terminal, asks for one after the other. The text goes to stdout, everything else to stderr.
    """
    process.import_torch()
    from gpt2kit.generation.request import as_request

    coloured = _coloured(context, colours, json)
    loop = prompt is None and prompts_file is None and sys.stdin.isatty()
    options_given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or (),
        "ignore_eos": ignore_eos,
        "special": special,
        "seed": seed,
        "num_samples": num_samples,
        "overflow": overflow,
        "logprobs": json or coloured,
        "draft_tokens": draft_tokens,
        "compile": compile,
    }
    request = as_request(None, options_given)
    request.check_draft(draft)
    prompts = [] if loop else _prompts(options.as_typed(prompt), prompts_file)
    started = time.perf_counter()
    load = partial(
        options.load,
        device=device,
        dtype=dtype,
        quantize=quantize,
        verify=not no_verify,
        write_cache=not no_cache,
    )
    gpt2, tokenizer = load(model)
    loaded_draft = _load_draft(draft, load, model, tokenizer)
    options.set_unknown(tokenizer, unknown)
    shown_stats = Stats(time.perf_counter() - started, compile) if stats else None
    writer = Writer(
        gpt2,
        tokenizer,
        loaded_draft,
        json=json,
        no_prompt=no_prompt,
        coloured=coloured,
        stats=shown_stats,
    )
    show_seed = seed is None and temperature > 0 and not json
    if loop:
        _prompt_loop(writer, request, show_seed)
    else:
        for some, part in _batches(prompts, request, batch_size):
            writer.write(some, part)
        writer.report(request.drawn_seed if show_seed else None)


def _coloured(context: typer.Context, colours: colour.Choice, json: bool) -> bool:
    """Whether to colour the text; raises for options that only a text has a use for, where there is none."""
    if not json:
        return colour.wanted(colours)
    if colours == "always":
        raise typer.BadParameter("--json has no colours; its logprobs say the same")
    return False


def _batches(
    prompts: list[str], request: Request, batch_size: int
) -> Iterator[tuple[list[str], Request]]:
    """Cut the work so that at most batch_size texts are written at once: whole prompts, or some samples of one."""
    n = request.num_samples
    if n <= batch_size:
        at_once = batch_size // n
        for start in range(0, len(prompts), at_once):
            yield prompts[start : start + at_once], request
        return
    for prompt in prompts:
        for first in range(0, n, batch_size):
            part = dataclasses.replace(
                request, first_sample=first, num_samples=min(batch_size, n - first)
            )
            yield [prompt], part


def _load_draft(
    draft: str | None,
    load: Callable[[str], tuple[GPT2, Tokenizer | None]],
    model: str,
    tokenizer: Tokenizer | None,
) -> Draft | None:
    """Return who drafts for a model; raises ConfigError for a draft model that has a vocabulary, and not the model's."""
    from gpt2kit.errors import ConfigError
    from gpt2kit.tokenizers import identity

    if draft is None or draft == "lookup":
        return "lookup" if draft else None
    loaded, theirs = load(draft)
    if tokenizer and theirs and identity(tokenizer) != identity(theirs):
        raise ConfigError(
            f"the draft model {draft} has another vocabulary than {model} ({theirs.n_vocab:,} and {tokenizer.n_vocab:,} tokens); "
            "expected the same: take a smaller model of its family, or --draft lookup"
        )
    return loaded


def _prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    if prompts_file is None:
        return [options.read_stdin() if prompt is None or prompt == "-" else prompt]
    if prompt is not None:
        raise typer.BadParameter("give a prompt or --prompts_file, not both")
    from gpt2kit.errors import Gpt2KitError

    try:
        text = (
            options.read_stdin()
            if str(prompts_file) == "-"
            else prompts_file.read_bytes().decode("utf-8-sig")
        )
    except UnicodeDecodeError as error:
        raise Gpt2KitError(
            f"{prompts_file}: not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from error
    prompts = [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise Gpt2KitError(f"{prompts_file}: no prompts; expected one on each line")
    return [line.removesuffix("\r") for line in prompts]


def _prompt_loop(writer: Writer, request: Request, show_seed: bool) -> None:
    """Ask for prompts until the end of input; Ctrl-C ends the text that is being written, or the loop."""
    from gpt2kit.errors import Gpt2KitError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrows and history in input()
    typer.secho(
        "Type the beginning of a text and press Enter. Ctrl-C stops a text, Ctrl-D leaves.",
        err=True,
        dim=True,
    )
    while True:
        try:
            prompt = _ask()
        except EOFError:
            typer.echo(err=True)
            return
        try:
            writer.write([prompt], request)
        except Gpt2KitError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
        except KeyboardInterrupt:
            pass  # the text ends here; the next prompt may begin
        writer.report(request.drawn_seed if show_seed else None)
        if show_seed:
            request = dataclasses.replace(request, seed=None)


def _ask() -> str:
    """Return a line that is typed at a prompt; the prompt is not part of the text, so it never goes into a file or pipe."""
    if sys.stdout.isatty():
        return input("> ")
    typer.echo("> ", nl=False, err=True)
    return input()


@dataclass
class Writer:
    """Continues prompts and prints what comes: one text after the other, the first unfinished one live, or one JSON object for each."""

    model: GPT2
    tokenizer: Tokenizer | None
    draft: Draft | None
    json: bool
    no_prompt: bool
    coloured: bool
    stats: Stats | None
    _texts: int = 0

    def write(self, prompts: Sequence[str], request: Request) -> None:
        """Continue these prompts together."""
        from gpt2kit.generation.text import collect, stream

        pieces: Iterable[Piece] = stream(
            self.model, self.tokenizer, prompts, request, draft=self.draft
        )
        if self.stats is not None and self.tokenizer is not None:
            lengths = [
                len(self.tokenizer.encode(prompt, special=request.special)) or 1
                for prompt in prompts
            ]
            pieces = self.stats.watch(
                pieces, sum(min(length, self.model.config.n_ctx) for length in lengths)
            )
            self.stats.rows = len(prompts) * request.num_samples
        if self.json:
            for completion in collect(pieces, prompts, request):
                options.print_json(dataclasses.asdict(completion))
        else:
            try:
                self._print(
                    [prompt for prompt in prompts for _ in range(request.num_samples)], pieces
                )
            except (Exception, KeyboardInterrupt):
                self._end_line()
                raise

    def _print(self, prompts: Sequence[str], pieces: Iterable[Piece]) -> None:
        """Print the rows in their order; each is live from when those before it have ended."""
        texts = [""] * len(prompts)
        highest = [0.0] * len(prompts)  # bits, of the tokens whose text is still held back
        ended = [False] * len(prompts)
        row = 0
        self._begin(prompts[row])
        for piece in pieces:
            text = piece.text
            if self.coloured and piece.logprob is not None:
                highest[piece.row] = max(highest[piece.row], -piece.logprob / math.log(2))
                if text:
                    text, highest[piece.row] = colour.paint(text, highest[piece.row]), 0.0
            texts[piece.row] += text
            ended[piece.row] = piece.finish_reason is not None
            if piece.row == row:
                _echo(text)
            while ended[row] and row + 1 < len(prompts):
                row += 1
                self._begin(prompts[row])
                _echo(texts[row])
        for prompt in prompts[row + 1 :]:  # rows that no token was asked for
            self._begin(prompt)

    def _begin(self, prompt: str) -> None:
        if self._texts:
            typer.echo("\n")
        self._texts += 1
        _echo("" if self.no_prompt else prompt)

    def report(self, seed: int | None) -> None:
        """End the last line, and print what belongs on stderr after the texts."""
        self._end_line()
        if self.coloured:
            typer.echo(f"\n{colour.legend()}", err=True)
        if seed is not None:
            typer.secho(f"seed {seed}", err=True, dim=True)
        if self.stats is not None:
            self.stats.print(self.model)
            self.stats = Stats(self.stats.load_seconds, self.stats.compile)

    def _end_line(self) -> None:
        if self._texts:
            typer.echo()
        self._texts = 0


def _echo(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@dataclass
class Stats:
    """Speed and memory of a run."""

    load_seconds: float
    compile: bool = False
    prompt_tokens: int = 0
    new_tokens: int = 0
    first_token_seconds: float | None = None
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    rows: int = 1  # texts written at once
    draft_steps: int = 0  # steps of a text in which a draft may have proposed something
    proposed: int = 0
    accepted: int = 0

    def watch(self, pieces: Iterable[Piece], prompt_tokens: int) -> Iterator[Piece]:
        """Pass pieces on and take their times; the first one ends the reading of the prompts."""
        self.prompt_tokens += prompt_tokens
        start = time.perf_counter()
        first: float | None = None
        try:
            for piece in pieces:
                if first is None:
                    first = time.perf_counter()
                    self.prompt_seconds += first - start
                    self.first_token_seconds = self.first_token_seconds or first - start
                self.new_tokens += 1
                if piece.checked is not None:
                    self.draft_steps += 1
                    self.proposed += piece.checked.proposed
                    self.accepted += piece.checked.accepted
                yield piece
        finally:  # also where a text is stopped
            if first is not None:
                self.decode_seconds += time.perf_counter() - first

    def print(self, model: GPT2) -> None:
        """Print the figures on stderr."""
        from gpt2kit.engine.decoder import Decoder

        decoder = Decoder(model, compile=self.compile)
        place = f"{model.device}, {'int8' if model.is_quantized else str(model.dtype).removeprefix('torch.')}"
        weights = sum(parameter.nbytes for parameter in model.parameters())
        lines = [
            f"model   {options.human_size(weights)} of weights on {place}, loaded in {self.load_seconds:.2f} s",
            f"prompt  {self.prompt_tokens:,} tokens, {self.prompt_tokens / max(self.prompt_seconds, 1e-9):,.1f} tokens/s, "
            f"first new token after {self.first_token_seconds or 0:.3f} s",
            f"decode  {self.new_tokens:,} tokens, {self.new_tokens / max(self.decode_seconds, 1e-9):,.1f} tokens/s, "
            f"by {decoder.name(1, ahead=True) if self.draft_steps else decoder.name(self.rows)}",
            *self._draft(),
            f"memory  {options.human_size(_peak_memory())} at most",
        ]
        for line in lines:
            typer.secho(line, err=True, dim=True)

    def _draft(self) -> list[str]:
        if not self.draft_steps:
            return []
        return [
            f"draft   {self.proposed:,} tokens proposed, {self.accepted / max(self.proposed, 1):.1%} of them accepted, "
            f"{1 + self.accepted / self.draft_steps:.2f} tokens per step"
        ]


def _peak_memory() -> int:
    """Return the most memory that this process has had, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
