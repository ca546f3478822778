"""An explanation as lines for a terminal, a pipe or a file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

from gpt2kit.cli import color
from gpt2kit.cli.color import fit, visible
from gpt2kit.cli.output import Part
from gpt2kit.tokenizers import StreamDecoder

if TYPE_CHECKING:
    from gpt2kit.cli.explain_words import Placed
    from gpt2kit.inspection import Attribution, Explanation, Lens
    from gpt2kit.inspection.explanation import Expectation
    from gpt2kit.tokenizers import Tokenizer

Line = list[Part]

_TOKEN = 14  # columns of a token in a table, at most
_CELL = 9  # columns of a token in the lens
_MOST_PARTS = 14  # of an attribution that are shown
_MOST_ATTENDED = 5  # tokens shown for each token of an attention head


class Report:
    """The lines of an explanation, colored if the caller prints them so."""

    def __init__(
        self,
        found: Explanation,
        tokenizer: Tokenizer,
        colored: bool,
        words: Sequence[Placed] = (),
    ) -> None:
        self.found = found
        self.words = words
        self.tokenizer = tokenizer
        self.colored = colored
        self.columns = shutil.get_terminal_size().columns  # of the terminal
        self.names = [self.name(token) for token in found.ids]
        self.token_columns = min(_TOKEN, max(5, *map(cell_len, self.names)))
        self.number_columns = max(4, len(str(len(self.names))))

    def lines(self, head: tuple[int, int] | None) -> Iterator[Line]:
        """Yield the whole report; `head` is the attention head that was asked for."""
        if self.colored:
            yield self._text()
            yield [""]
            yield color.legend()
            yield [""]
        yield from self._table()
        if self.found.surprisal is not None:
            perplexity = 2**self.found.surprisal
            yield [f"\n{self.found.surprisal:.2f} bits per token, perplexity {perplexity:,.2f}"]
        if self.words:
            yield ["\nwords: sums over their tokens, and corrected to count their end"]
            yield from self._words()
        if (n := len(set(self.found.starts))) > 1:
            yield [f"read in {n} windows, each with the last half of the one before as context"]
        if self.found.lens:
            yield ["\nlogit lens: the most likely next token after each layer"]
            yield from self._lens(self.found.lens)
        if head and self.found.attention:
            yield [f"\nattention of head {head[0]}.{head[1]}: what each token attends to most"]
            for line in self._attention(self.found.attention):
                yield [line]
        if self.found.attribution:
            yield [""]
            for line in self._attribution(self.found.attribution):
                yield [line]

    def name(self, token: int) -> str:
        """Return a token in visible characters."""
        return visible(self.tokenizer.token_bytes(token))

    def _short(self, token: int) -> str:
        """Return a token's name, cut if it is longer than a column."""
        name = self.name(token)
        return name if cell_len(name) <= _TOKEN else fit(name, _TOKEN)

    def _text(self) -> Line:
        """Return the text, each character in the color of the most surprising of its tokens."""
        decoder = StreamDecoder(self.tokenizer.token_bytes)
        parts: Line = []
        highest: float | None = None
        for token, expected in zip(self.found.ids, self.found.expectations, strict=False):
            if expected.surprisal is not None:
                highest = max(expected.surprisal, highest or 0.0)
            if piece := decoder.feed(token):
                parts.append(color.paint(piece, highest))
                highest = None
        return [*parts, color.paint(decoder.finish(), highest)]

    def _table(self) -> Iterator[Line]:
        """Yield a row for each token, with the alternatives on as many lines as they need."""
        left = self.number_columns + 2 + self.token_columns + 26
        yield [
            f"{'':>{self.number_columns}}  {'token':<{self.token_columns}}"
            f"{'bits':>7}{'chance':>8}{'rank':>8}   expected"
        ]
        for position, expected in enumerate(self.found.expectations):
            number = "next" if expected.token is None else str(position)
            name = "" if expected.token is None else self.names[position]
            others = [
                f"{self._short(each.token)} {_percent(each.probability)}"
                for each in expected.alternatives
            ]
            first, *rest = _wrapped(others, self.columns - left) or [""]
            yield [
                f"{number:>{self.number_columns}}  ",
                color.paint(fit(name, self.token_columns), expected.surprisal),
                f"{_figures(expected)}   {first}".rstrip(" "),
            ]
            for row in rest:
                yield [" " * left + row]

    def _words(self) -> Iterator[Line]:
        """Yield a row for each word."""
        n = self.number_columns
        yield [f"{'':>{n}}  {'bits':>7}{'corrected':>11}   word"]
        for placed in self.words:
            word = placed.word
            bits, corrected = (
                "" if value is None else f"{value:.2f}"
                for value in (word.surprisal, word.surprisal_corrected)
            )
            name = visible(word.text.encode())
            if cell_len(name) > self.columns - n - 23:
                name = fit(name, max(1, self.columns - n - 23))
            yield [f"{'':>{n}}  {bits:>7}{corrected:>11}   ", color.paint(name, word.surprisal)]

    def _lens(self, lens: Lens) -> Iterator[Line]:
        """Yield blocks of as many tokens as fit in a row: input, one row a layer, next token."""
        n = lens.tokens.shape[1]
        width = _CELL if self.token_columns > 5 else 5
        at_once = max(1, (self.columns - 7) // (width + 1))
        for start in range(0, n, at_once):
            if start:
                yield [""]
            yield from self._lens_block(lens, range(start, min(start + at_once, n)), width)

    def _lens_block(self, lens: Lens, positions: range, width: int) -> Iterator[Line]:
        names = [*self.names, ""]
        yield [_row("input", [fit(names[position], width) for position in positions])]
        for layer in range(lens.tokens.shape[0]):
            cells: Line = [f"{layer:>6} "]
            for position in positions:
                share = max(float(lens.probabilities[layer, position]), 1e-30)
                name = fit(self.name(int(lens.tokens[layer, position])), width)
                cells += [" ", color.paint(name, -math.log2(share))]
            yield cells
        yield [_row("next", [fit(names[position + 1], width) for position in positions])]

    def _attention(self, rows: Sequence[Sequence[float]]) -> Iterator[str]:
        """Yield for each token those that it attends to most, with their positions."""
        left = self.number_columns + 2 + self.token_columns + 3
        for position, weights in enumerate(rows):
            order = sorted(range(len(weights)), key=weights.__getitem__, reverse=True)
            start = self.found.starts[position]
            attended = [
                f"{start + other}:{self._short(self.found.ids[start + other])} "
                f"{_percent(weights[other])}"
                for other in order[:_MOST_ATTENDED]
            ]
            first, *rest = _wrapped(attended, self.columns - left)
            name = fit(self.names[position], self.token_columns)
            yield f"{position:>{self.number_columns}}  {name}   {first}"
            yield from (" " * left + line for line in rest)

    def _attribution(self, found: Attribution) -> Iterator[str]:
        """Yield the largest contributions, the sum of the others, and the sum of all."""
        other = "" if found.against is None else f" minus that of {self._short(found.against)}"
        yield f"attribution: the logit of {self._short(found.token)}{other}, part by part"
        order = sorted(found.contributions, key=lambda each: abs(each.value), reverse=True)
        shown, rest = order[:_MOST_PARTS], order[_MOST_PARTS:]
        largest = max(abs(each.value) for each in order) or 1.0
        for each in shown:
            bar = ("+" if each.value > 0 else "-") * max(1, round(24 * abs(each.value) / largest))
            yield f"{each.value:>+10.3f}  {each.name:<24}{bar}"
        if rest:
            others = sum(each.value for each in rest)
            yield f"{others:>+10.3f}  the {len(rest)} other parts together"
        yield f"{found.total:>+10.3f}  sum"


def _figures(expected: Expectation) -> str:
    """Return surprisal, probability and rank of a token, or blanks if it has none."""
    if expected.surprisal is None:
        return " " * 23
    share = _percent(expected.probability or 0)
    return f"{expected.surprisal:>7.2f}{share:>8}{expected.rank:>8,}"


def _row(label: str, cells: Sequence[str]) -> str:
    return " ".join([f"{label:<7}", *cells]).rstrip(" ")


def _wrapped(items: Sequence[str], width: int) -> list[str]:
    """Put items into lines of at most this many columns, two spaces apart."""
    lines: list[str] = []
    for item in items:
        if lines and cell_len(lines[-1]) + 2 + cell_len(item) <= width:
            lines[-1] += f"  {item}"
        else:
            lines.append(item)
    return lines


def _percent(share: float) -> str:
    """Return a probability with as many digits as tell small ones apart."""
    if share >= 0.0995:
        return f"{share:.0%}"
    return f"{share:.1%}" if share >= 0.00995 else f"{share:.2%}" if share >= 0.0001 else "<.01%"
