"""What generate shows: texts as they are written, or JSON, and how fast it was."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt2kit.cli import color, output
from gpt2kit.cli.output import Part

if TYPE_CHECKING:
    from gpt2kit.generation.request import Request
    from gpt2kit.generation.speculate import Draft
    from gpt2kit.generation.text import Completion, Piece
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer


@dataclass
class Writer:
    """Continues prompts and prints the texts: one after the other, the first unfinished one live.

    With `json`, it prints one JSON object for each text in place of that.
    """

    model: GPT2
    tokenizer: Tokenizer | None
    draft: Draft | None
    json: bool
    no_prompt: bool
    color: bool
    stats: Stats | None
    keeps_texts: bool = False  # in `completions`, for a receipt
    completions: list[Completion] = field(default_factory=list)
    _texts: int = 0  # begun since the last report
    _cut: int = 0  # of them, those that ended before they met their constraints

    def write(self, prompts: Sequence[str], request: Request) -> None:
        """Continue these prompts together."""
        from gpt2kit.generation.text import collect, stream

        pieces: Iterable[Piece] = stream(
            self.model, self.tokenizer, prompts, request, draft=self.draft
        )
        if self.stats is not None:
            self.stats.rows = len(prompts) * request.num_samples
            pieces = self.stats.watch(pieces, self._prompt_tokens(prompts, request))
        if self.keeps_texts:
            pieces = self._kept(pieces, prompts, request)
        if self.json:
            for completion in collect(pieces, prompts, request):
                values = dataclasses.asdict(completion)
                if not request.top_logprobs:
                    del values["top_logprobs"]
                if not request.constraints:
                    del values["matches"]
                output.print_json(values)
            return
        try:
            self._print([_Text(p) for p in prompts for _ in range(request.num_samples)], pieces)
        except (Exception, KeyboardInterrupt):
            self._end_line()
            raise

    def _kept(
        self, pieces: Iterable[Piece], prompts: Sequence[str], request: Request
    ) -> Iterator[Piece]:
        """Pass pieces on, and add their texts to `completions`."""
        from gpt2kit.generation.text import collect

        kept = []
        for piece in pieces:
            kept.append(piece)
            yield piece
        self.completions += collect(kept, prompts, request)

    def receipt(
        self, request: Request, source: Mapping[str, Any], with_text: bool
    ) -> dict[str, Any]:
        """Return the receipt of the texts that were kept."""
        from gpt2kit.generation.receipts.receipt import receipt

        assert self.tokenizer is not None  # `stream` has required it
        return receipt(
            self.model,
            self.tokenizer,
            request,
            self.completions,
            draft=self.draft,
            source=source,
            with_text=with_text,
        )

    def _prompt_tokens(self, prompts: Sequence[str], request: Request) -> int:
        """Return how many tokens the model reads before it writes."""
        assert self.tokenizer is not None  # `stream` has required it
        lengths = [len(self.tokenizer.encode(p, special=request.special)) or 1 for p in prompts]
        return sum(min(length, self.model.config.n_ctx) for length in lengths)

    def _print(self, texts: Sequence[_Text], pieces: Iterable[Piece]) -> None:
        """Print the texts in their order; each is live as soon as those before it have ended."""
        waiting = iter(texts)
        live = self._begin(next(waiting))
        for piece in pieces:
            text = texts[piece.row]
            part = text.add(piece, in_color=self.color)
            self._cut += piece.matches is False
            if text is live:
                self._show(part)
            while live.ended and (following := next(waiting, None)):
                live = self._begin(following)
        for text in waiting:  # those that no token was asked for
            self._begin(text)

    def _begin(self, text: _Text) -> _Text:
        """Print a text's prompt, and what of its continuation is already there."""
        if self._texts:
            output.result("\n")
        self._texts += 1
        self._show("" if self.no_prompt else text.prompt, *text.parts)
        return text

    def _show(self, *parts: Part) -> None:
        output.result(*parts, end="", color=self.color)

    def report(self, seed: int | None) -> None:
        """End the last line, and print on stderr what comes after the texts."""
        self._end_line()
        if self.color:
            output.note()
            output.note(*color.legend())
        if self._cut:
            output.warn(
                f"{output.count(self._cut, 'text')} ended before the constraint was met; give more "
                "--max_tokens"
            )
            self._cut = 0
        if seed is not None:
            output.note(f"seed {seed}", dim=True)
        if self.stats is not None:
            self.stats.print(self.model)
            self.stats = Stats(self.stats.load_seconds, self.stats.compile)

    def _end_line(self) -> None:
        if self._texts:
            output.result()
        self._texts = 0


@dataclass(eq=False)
class _Text:
    """A text as far as it is written."""

    prompt: str
    parts: list[Part] = field(default_factory=list)
    ended: bool = False
    _bits: float = 0.0  # the highest surprisal of the tokens whose text is still held back

    def add(self, piece: Piece, *, in_color: bool) -> Part:
        """Add a piece, and return how it is shown: in the color of its surprisal, or plain."""
        part: Part = piece.text
        if in_color and piece.logprob is not None:
            self._bits = max(self._bits, -piece.logprob / math.log(2))
            if piece.text:
                part, self._bits = color.paint(piece.text, self._bits), 0.0
        self.parts.append(part)
        self.ended = piece.finish_reason is not None
        return part


@dataclass
class Stats:
    """Speed and memory of a run."""

    load_seconds: float
    compile: bool
    rows: int = 1  # texts written at once
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    first_token_seconds: float | None = None
    new_tokens: int = 0
    decode_seconds: float = 0.0
    draft_steps: int = 0  # steps in which a draft may have proposed tokens
    proposed: int = 0  # tokens
    accepted: int = 0

    def watch(self, pieces: Iterable[Piece], prompt_tokens: int) -> Iterator[Piece]:
        """Pass pieces on and time them; the prompts are read when the first one comes."""
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
        finally:  # also for a text that is interrupted
            if first is not None:
                self.decode_seconds += time.perf_counter() - first

    def print(self, model: GPT2) -> None:
        """Print the figures on stderr."""
        from gpt2kit.engine.decoder import Decoder

        decoder = Decoder(model, compile=self.compile)
        engine = decoder.name(2 if self.draft_steps else 1)
        dtype = "int8" if model.is_quantized else str(model.dtype).removeprefix("torch.")
        weights = output.human_size(sum(parameter.nbytes for parameter in model.parameters()))
        prompt_rate = self.prompt_tokens / max(self.prompt_seconds, 1e-9)
        decode_rate = self.new_tokens / max(self.decode_seconds, 1e-9)
        lines = [
            f"model   {weights} of weights on {model.device}, {dtype}, "
            f"loaded in {self.load_seconds:.2f} s",
            f"prompt  {self.prompt_tokens:,} tokens, {prompt_rate:,.1f} tokens/s, "
            f"first new token after {self.first_token_seconds or 0:.3f} s",
            f"decode  {self.new_tokens:,} tokens, {decode_rate:,.1f} tokens/s, by {engine}",
            *self._draft_lines(),
            f"memory  {output.human_size(_peak_memory())} at most",
        ]
        for line in lines:
            output.note(line, dim=True)

    def _draft_lines(self) -> list[str]:
        if not self.draft_steps:
            return []
        share = self.accepted / max(self.proposed, 1)
        return [
            f"draft   {self.proposed:,} tokens proposed, {share:.1%} of them accepted, "
            f"{1 + self.accepted / self.draft_steps:.2f} tokens per step"
        ]


def _peak_memory() -> int:
    """Return the most memory that this process has had, in bytes; 0 if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
