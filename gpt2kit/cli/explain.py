"""explain."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import colour, options
from gpt2kit.cli.colour import Colour, fit, paint, visible
from gpt2kit.cli.options import Device, Dtype, Json, ModelArgument, Special, Unknown

if TYPE_CHECKING:
    from gpt2kit.inspection import Attribution, Explanation, Lens
    from gpt2kit.tokenizers import Tokenizer

_TOKEN = 14  # columns for a token in a table, at most
_CELL = 9  # and in the lens
_PARTS = 14  # of an attribution that are shown
_LOOKS = 5  # tokens that a token looks at most


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("explain")(explain)


Text = Annotated[
    str, typer.Argument(metavar="TEXT|-", help="The text to explain; - is standard input.")
]
Top = Annotated[
    int, typer.Option("--top", min=1, max=1000, help="Alternatives to show in each place.")
]
ShowLens = Annotated[
    bool, typer.Option("--lens", help="What each layer would say: the logit lens, layer by token.")
]
Head = Annotated[
    str | None,
    typer.Option(
        "--attention",
        metavar="LAYER.HEAD",
        help="Who looks at whom in this head; both count from 0.",
        show_default=False,
    ),
]
Attribute = Annotated[
    bool,
    typer.Option(
        "--attribution",
        help="Which layer and head pushed the next token, compared with the runner-up.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="TOKEN", help="Attribute this next token instead.", show_default=False
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against", metavar="TOKEN", help="Compare it with this one instead.", show_default=False
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write one self-contained page to explore, and print nothing.",
        show_default=False,
    ),
]
Overflow = Annotated[
    Literal["slide", "stop", "error"],
    typer.Option(
        "--overflow",
        help="A text longer than the model's window: read on with the last half of it as context, or leave out the rest, or refuse.",
    ),
]


def explain(
    model: ModelArgument,
    text: Text,
    top: Top = 5,
    lens: ShowLens = False,
    attention: Head = None,
    attribution: Attribute = False,
    target: Target = None,
    against: Against = None,
    html: Html = None,
    overflow: Overflow = "slide",
    special: Special = False,
    unknown: Unknown = "error",
    colours: Colour = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Show what a model makes of a text: how surprising it finds each token, what it expected, and why.

    The first token has nothing before it, and so no surprisal; with --special the text can begin with <|endoftext|>.
    """
    if json and html:
        raise typer.BadParameter("give --json or --html, not both")
    if (json or html) and colours == "always":
        raise typer.BadParameter(
            "--colour always is for the text on a terminal; leave it out, or --json and --html"
        )
    if (target is not None or against is not None) and not attribution:
        raise typer.BadParameter(
            "--target and --against say what --attribution explains; give that too"
        )
    if html and html.is_dir():
        raise typer.BadParameter(f"--html is {html}, which is a folder; name a file in it")
    if html and not html.parent.is_dir():
        raise typer.BadParameter(f"--html is {html}, but there is no folder {html.parent}")
    from gpt2kit.checkpoints.load import load, pick_numbers
    from gpt2kit.errors import TokenizerError
    from gpt2kit.files import write_whole
    from gpt2kit.inspection import ExplainOptions
    from gpt2kit.inspection import explain as find_out
    from gpt2kit.inspection.page import entries_to_keep, write_page

    head = _head(attention)
    text = options.read_stdin() if text == "-" else options.as_typed(text) or ""
    pick_numbers(device, dtype, None)
    gpt2, tokenizer = load(options.locate(model), device=device, dtype=dtype)
    if tokenizer is None:
        raise TokenizerError(
            f"{model}: no vocabulary beside the weights; put vocab.json and merges.txt there"
        )
    options.set_unknown(tokenizer, unknown)
    ids = tokenizer.encode(text, special=special)
    chosen = ExplainOptions(
        top=top,
        lens=lens,
        head=head,
        strongest=entries_to_keep(gpt2, len(ids)) if html else 0,
        attribution=attribution,
        target=_token(tokenizer, target),
        against=_token(tokenizer, against),
    )
    found = find_out(
        gpt2,
        ids,
        chosen,
        overflow=overflow,
        n_vocab=min(tokenizer.n_vocab, gpt2.config.n_vocab),
        progress=_progress,
    )
    if json:
        for each in _objects(found, tokenizer, head):
            options.print_json(each)
    elif html:
        page = write_page(found, tokenizer.token_bytes, model=Path(model).name, head=head)
        write_whole(html, page)
        typer.secho(
            f"{html}: {options.human_size(len(page.encode()))}; open it in a browser", err=True
        )
    else:
        coloured = colour.wanted(colours)
        for line in _Report(found, tokenizer, coloured).lines(head):
            typer.echo(line, color=coloured)


def _progress(done: int, n: int) -> None:
    """Show on a terminal how far the reading of a long text is."""
    if sys.stderr.isatty():
        typer.echo(f"\r{done:,} of {n:,} tokens" if done < n else "\r\x1b[K", nl=False, err=True)


def _head(name: str | None) -> tuple[int, int] | None:
    """Read 3.7 as layer 3, head 7."""
    if name is None:
        return None
    layer, dot, head = name.partition(".")
    if not (dot and layer.isdecimal() and head.isdecimal()):
        raise typer.BadParameter(
            f"--attention is {name!r}, expected a layer and a head such as 0.1"
        )
    return int(layer), int(head)


def _token(tokenizer: Tokenizer, text: str | None) -> int | None:
    """Return the one token that a text is."""
    from gpt2kit.errors import TokenizerError

    if text is None:
        return None
    ids = tokenizer.encode(options.as_typed(text) or "")
    if len(ids) != 1:
        pieces = " ".join(visible(tokenizer.token_bytes(token)) for token in ids) or "nothing"
        raise TokenizerError(
            f"{text!r} is not one token but {len(ids)}: {pieces}; most words begin with a space, as in ' the'"
        )
    return ids[0]


# --- as text ---------------------------------------------------------------------------------------------------------


class _Report:
    """An explanation as lines for a terminal, a pipe or a file."""

    def __init__(self, found: Explanation, tokenizer: Tokenizer, coloured: bool) -> None:
        from rich.cells import cell_len

        self.found = found
        self.tokenizer = tokenizer
        self.coloured = coloured
        self.columns = shutil.get_terminal_size().columns
        self.names = [self.name(token) for token in found.ids]
        self.token = min(_TOKEN, max(5, *map(cell_len, self.names)))  # columns
        self.place = max(4, len(str(len(self.names))))

    def name(self, token: int) -> str:
        return visible(self.tokenizer.token_bytes(token))

    def paint(self, text: str, bits: float | None) -> str:
        return paint(text, bits) if self.coloured else text

    def lines(self, head: tuple[int, int] | None) -> Iterator[str]:
        if self.coloured:
            yield self.text()
            yield ""
            yield colour.legend()
            yield ""
        yield from self.table()
        if self.found.surprisal is not None:
            perplexity = 2**self.found.surprisal
            yield f"\n{self.found.surprisal:.2f} bits per token, perplexity {perplexity:,.2f}"
        if (n := len(set(self.found.starts))) > 1:
            yield f"read in {n} windows, each with the last half of the one before as context"
        if self.found.lens:
            yield "\nlogit lens: the likeliest next token by layers asked"
            yield from self.lens(self.found.lens)
        if head and self.found.attention:
            yield f"\nattention of head {head[0]}.{head[1]}: what each token looks at most"
            yield from self.attention(self.found.attention)
        if self.found.attribution:
            yield ""
            yield from self.attribution(self.found.attribution)

    def text(self) -> str:
        """Return the text itself; a character of several tokens has the colour of the most surprising one."""
        from gpt2kit.tokenizers import StreamDecoder

        decoder = StreamDecoder(self.tokenizer.token_bytes)
        parts, highest = [], None
        for token, expected in zip(self.found.ids, self.found.expectations, strict=False):
            if expected.surprisal is not None:
                highest = max(expected.surprisal, highest or 0.0)
            if piece := decoder.feed(token):
                parts.append(self.paint(colour.harmless(piece), highest))
                highest = None
        return "".join(parts) + self.paint(decoder.finish(), highest)

    def table(self) -> Iterator[str]:
        """Yield a row for each token, its alternatives in as many lines as they need."""
        left = self.place + 2 + self.token + 26
        yield f"{'':>{self.place}}  {'token':<{self.token}}{'bits':>7}{'chance':>8}{'rank':>8}   expected"
        for place, expected in enumerate(self.found.expectations):
            name = "" if expected.token is None else self.names[place]
            token = self.paint(fit(name, self.token), expected.surprisal)
            numbers = " " * 23
            if expected.surprisal is not None:
                numbers = f"{expected.surprisal:>7.2f}{_percent(expected.probability or 0):>8}{expected.rank:>8,}"
            others = [
                f"{self.short(each.token)} {_percent(each.probability)}"
                for each in expected.alternatives
            ]
            rows = _wrapped(others, self.columns - left) or [""]
            yield f"{'next' if expected.token is None else place:>{self.place}}  {token}{numbers}   {rows[0]}".rstrip(
                " "
            )
            for row in rows[1:]:
                yield " " * left + row

    def short(self, token: int) -> str:
        """Return a token's name, cut where it is longer than a column."""
        from rich.cells import cell_len

        name = self.name(token)
        return name if cell_len(name) <= _TOKEN else fit(name, _TOKEN)

    def lens(self, lens: Lens) -> Iterator[str]:
        """Yield blocks of as many tokens as fit side by side: what was read, a row for each depth, and what came."""
        import math

        layers, n = lens.tokens.shape
        wide = _CELL if self.token > 5 else 5
        at_once = max(1, (self.columns - 7) // (wide + 1))
        for start in range(0, n, at_once):
            places = range(start, min(start + at_once, n))
            if start:
                yield ""
            yield " ".join(
                [f"{'read':<7}", *(fit(self.names[place], wide) for place in places)]
            ).rstrip(" ")
            for layer in range(layers):
                cells = []
                for place in places:
                    bits = -math.log2(max(float(lens.probabilities[layer, place]), 1e-30))
                    cells.append(
                        self.paint(fit(self.name(int(lens.tokens[layer, place])), wide), bits)
                    )
                yield " ".join([f"{layer:>6} ", *cells]).rstrip(" ")
            yield " ".join(
                [
                    f"{'came':<7}",
                    *(
                        fit(self.names[place + 1] if place + 1 < n else "", wide)
                        for place in places
                    ),
                ]
            ).rstrip(" ")

    def attention(self, rows: Sequence[Sequence[float]]) -> Iterator[str]:
        """Yield for each token those that it looks at most."""
        left = self.place + 2 + self.token + 3
        for place, weights in enumerate(rows):
            order = sorted(range(len(weights)), key=weights.__getitem__, reverse=True)[:_LOOKS]
            start = self.found.starts[place]
            seen = [
                f"{start + other}:{self.short(self.found.ids[start + other])} {_percent(weights[other])}"
                for other in order
            ]
            lines = _wrapped(seen, self.columns - left)
            yield f"{place:>{self.place}}  {fit(self.names[place], self.token)}   {lines[0]}"
            for line in lines[1:]:
                yield " " * left + line

    def attribution(self, found: Attribution) -> Iterator[str]:
        """Yield the strongest parts, what the others come to, and the sum."""
        rival = "" if found.against is None else f" less that of {self.short(found.against)}"
        yield f"attribution: the logit of {self.short(found.token)}{rival}, part by part"
        order = sorted(found.contributions, key=lambda each: abs(each.value), reverse=True)
        shown, others = order[:_PARTS], order[_PARTS:]
        largest = max(abs(each.value) for each in order) or 1.0
        for each in shown:
            bar = ("+" if each.value > 0 else "-") * max(1, round(24 * abs(each.value) / largest))
            yield f"{each.value:>+10.3f}  {each.name:<24}{bar}"
        if others:
            yield f"{sum(each.value for each in others):>+10.3f}  the {len(others)} other parts together"
        yield f"{found.total:>+10.3f}  sum"


def _wrapped(items: Sequence[str], width: int) -> list[str]:
    """Put items into lines of at most this many columns, two spaces apart."""
    from rich.cells import cell_len

    lines: list[str] = []
    for item in items:
        if lines and cell_len(lines[-1]) + 2 + cell_len(item) <= width:
            lines[-1] += f"  {item}"
        else:
            lines.append(item)
    return lines


def _percent(share: float) -> str:
    """Return a probability in as few characters as tell it from its neighbours."""
    if share >= 0.0995:
        return f"{share:.0%}"
    return f"{share:.1%}" if share >= 0.00995 else f"{share:.2%}" if share >= 0.0001 else "<.01%"


# --- as JSON ---------------------------------------------------------------------------------------------------------


def _objects(
    found: Explanation, tokenizer: Tokenizer, head: tuple[int, int] | None
) -> Iterator[dict[str, Any]]:
    """Yield one object for each place, the one after the text included, and one for the attribution."""

    def named(token: int | None) -> dict[str, Any]:
        return {
            "token": token,
            "text": None
            if token is None
            else tokenizer.token_bytes(token).decode("utf-8", errors="replace"),
        }

    n = len(found.ids)
    for place, expected in enumerate(found.expectations):
        line = {
            "place": place,
            **named(expected.token),
            "surprisal": expected.surprisal,
            "probability": expected.probability,
            "rank": expected.rank,
            "alternatives": [
                {**named(each.token), "probability": each.probability}
                for each in expected.alternatives
            ],
        }
        if found.lens and place:  # what stands in a place is foretold in the one before
            tokens, shares = (
                found.lens.tokens[:, place - 1].tolist(),
                found.lens.probabilities[:, place - 1].tolist(),
            )
            line["lens"] = [
                {**named(token), "probability": share}
                for token, share in zip(tokens, shares, strict=True)
            ]
        if found.attention and head and place < n:
            line["attention"] = {
                "layer": head[0],
                "head": head[1],
                "from": found.starts[place],
                "weights": found.attention[place],
            }
        yield line
    if found.attribution:
        parts = [
            {"part": each.part, "layer": each.layer, "head": each.head, "value": each.value}
            for each in found.attribution.contributions
        ]
        target, against = named(found.attribution.token), named(found.attribution.against)
        yield {
            "attribution": {
                "target": target,
                "against": against,
                "total": found.attribution.total,
                "contributions": parts,
            }
        }
