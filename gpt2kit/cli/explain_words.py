"""The words of a text that is explained, as `gpt2kit surprisal` measures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.evaluation.words import Word
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer


@dataclass(frozen=True)
class Placed:
    """A word, and which tokens of the explained text it has: from `first` to before `end`."""

    word: Word
    first: int
    end: int

    def as_json(self) -> dict[str, Any]:
        """Return the word as an object for JSON."""
        return {
            "word": self.word.text,
            "first": self.first,
            "end": self.end,
            "surprisal": self.word.surprisal,
            "surprisal_corrected": self.word.surprisal_corrected,
            "rank": self.word.rank,
        }


def placed_words(
    model: GPT2, tokenizer: Tokenizer, text: str, ids: tuple[int, ...]
) -> list[Placed]:
    """Return the words of a text whose tokens are `ids`, measured in bits.

    A mark <|endoftext|> at the beginning belongs to no word. There are none if the tokens are not
    those of the text, as when a part of it was left out.
    """
    from gpt2kit.errors import TokenizerError
    from gpt2kit.evaluation.word_options import WordOptions
    from gpt2kit.evaluation.words import words
    from gpt2kit.tokenizers import END_OF_TEXT
    from gpt2kit.tokenizers.listed import start_of_text

    start = start_of_text(tokenizer)
    marked = bool(start) and [*ids[: len(start)]] == start and text.startswith(END_OF_TEXT)
    text = text.removeprefix(END_OF_TEXT) if marked else text
    try:
        (found,) = words(
            model, tokenizer, text, options=WordOptions(first="bos" if marked else "none")
        )
    except TokenizerError:
        return []
    at = len(start) if marked else 0
    placed = []
    for word in found:
        end = at + len(word.tokens)
        if ids[at:end] != tuple(token.id for token in word.tokens):
            return []
        placed.append(Placed(word, at, end))
        at = end
    return placed
