"""What is asked of generation: one frozen object, checked once and passed whole.

    Request(max_tokens=50, seed=1, sampling=Sampling(top_k=3))

Each field has its default, its rule and its help here; the command line makes its options from
them. `Options` lists the same names for callers that pass keywords: `stream(..., top_k=3)`.
This module imports neither torch nor NumPy, so that `--help` is instant.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from gpt2kit.data.window import Overflow
from gpt2kit.errors import ConfigError
from gpt2kit.fields import Rule, check, check_value, option, rules, shortened
from gpt2kit.generation.constraints.entries import checked_lines
from gpt2kit.generation.constraints.pattern import parse
from gpt2kit.generation.shaping.processors import LogitsProcessor, as_processors

# A row that has come to a dead end raises its error instead of telling the reason.
FinishReason = Literal[
    "end_of_text", "stop_text", "max_tokens", "context", "constraint", "dead_end"
]

DRAFT_TOKENS = 7  # with the newest token, the model reads eight for little more than one
MOST_DRAFT_TOKENS = 64
MOST_BANNED = 1000  # characters of a text: its table grows with the square of them


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults are those of OpenAI's GPT-2 program.

    Raises ConfigError for a value that breaks its rule.
    """

    temperature: float = option(
        1.0,
        "0 always takes the most likely token; above 1 the text gets wilder.",
        group="Sampling",
        at_least=0,
    )
    top_k: int = option(
        40,
        "Sample from the k most likely tokens; 0 keeps all.",
        group="Sampling",
        at_least=0,
    )
    top_p: float = option(
        1.0,
        "Sample from the most likely tokens that together reach this probability.",
        group="Sampling",
        above=0,
        at_most=1,
    )
    min_p: float = option(
        0.0,
        "Drop tokens with less than this share of the most likely one's probability.",
        group="Sampling",
        at_least=0,
        at_most=1,
    )
    typical_p: float = option(
        1.0,
        "Sample from the tokens whose surprisal is nearest to the expected one and that together "
        "reach this probability (Meister et al. 2023); 1 keeps all.",
        group="Sampling",
        above=0,
        at_most=1,
    )
    no_repeat_ngram: int = option(
        0,
        "Never write the same n tokens twice, those of the prompt included; 0 allows it.",
        group="Sampling",
        at_least=0,
        at_most=10**6,
    )
    repetition_penalty: float = option(
        1.0,
        "Above 1, tokens that have occurred become less likely.",
        group="Sampling",
        at_least=0.01,
        at_most=10**6,
    )
    presence_penalty: float = option(
        0.0,
        "Lower the logit of each token that was generated already by this much; below 0 raises it.",
        group="Sampling",
        at_least=-2,
        at_most=2,
    )
    frequency_penalty: float = option(
        0.0,
        "Lower the logit of a token by this much for each time that it was generated.",
        group="Sampling",
        at_least=-2,
        at_most=2,
    )
    logit_bias: tuple[tuple[int, float], ...] = option(  # a mapping and None are accepted too
        (), "Added to the logits of single tokens: pairs of an id and a number from -100 to 100."
    )

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "logit_bias", _bias_pairs(self.logit_bias))

    @property
    def adjusts_logits(self) -> bool:
        """Whether a bias or a penalty changes the logits, so that any token can come out on top."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1
        return bool(self.logit_bias) or any(penalties)

    @property
    def most_likely(self) -> int:
        """How many of the largest logits are enough to choose a token; 0 if all are needed.

        This is top_k where nothing but the largest logits matters: 1 for greedy decoding, and 0
        with a bias or a penalty, which can lift any token among the largest, and if repeated
        n-grams are forbidden, which may be any of them.
        """
        if self.adjusts_logits or self.no_repeat_ngram:
            return 0
        return 1 if self.temperature == 0 else self.top_k

    def check_vocabulary(self, n_vocab: int) -> None:
        """Raise ConfigError if logit_bias has an id that is not below n_vocab."""
        if self.logit_bias and (largest := self.logit_bias[-1][0]) >= n_vocab:
            raise ConfigError(
                f"logit_bias has the id {largest}, expected ids from 0 to {n_vocab - 1:,}, "
                "those of the vocabulary"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that is asked of one generation, but for the model and the prompt.

    Raises ConfigError for a value that breaks its rule.
    """

    max_tokens: int = option(100, "New tokens, at most.", group="Text", at_least=0, at_most=10**9)
    stop: tuple[str, ...] = option(  # a single text, a list and None are accepted too
        (),
        "Stop before this text; may be given several times. A line end is $'\\n'.",
        group="Text",
        metavar="TEXT",
    )
    min_tokens: int = option(
        0,
        "New tokens, at least: before that neither <|endoftext|> nor a stop text ends the text.",
        group="Text",
        at_least=0,
        at_most=10**9,
    )
    ban: tuple[str, ...] = option(  # a single text, a list and None are accepted too
        (),
        "Never write this text, however it is cut into tokens; may be given several times. @FILE "
        "has one on each line.",
        group="Text",
        metavar="TEXT|@FILE",
    )
    ignore_eos: bool = option(False, "Go on after <|endoftext|>.", group="Text")
    special: bool = option(
        False,
        "Read <|endoftext|> in the prompt as the marker, not as plain text.",
        group="Text",
    )
    num_samples: int = option(
        1, "Continuations of each prompt.", group="Text", at_least=1, at_most=10**5
    )
    first_sample: int = option(0, "Number of the first sample.", at_least=0, at_most=10**9)
    overflow: Overflow = option(
        "slide",
        "When the text outgrows the model's window: re-read the window's last half and go on, "
        "stop, or refuse at the start.",
        group="Text",
    )
    seed: int | None = option(
        None,
        "The same seed gives the same text; without one, a seed is drawn and shown.",
        group="Sampling",
        at_least=0,
        at_most=2**64 - 1,
    )
    regex: str | None = option(
        None,
        "The continuation has to match all of this pattern, in the syntax of Python's re.",
        group="Constraints",
        metavar="PATTERN",
    )
    allow: tuple[str, ...] | None = option(  # a list is accepted too
        None, "The continuation has to be one of these lines."
    )
    forbid: tuple[str, ...] | None = option(  # a list is accepted too
        None, "No line of the text may be one of these; its first begins in the prompt."
    )
    valid_utf8: bool = option(
        False,
        "Write whole characters only, never a part of one. Other constraints imply it.",
        group="Constraints",
    )
    sampling: Sampling = field(default_factory=Sampling)
    logits_processors: tuple[LogitsProcessor, ...] = option(  # one, a list and None, too
        (), "Functions that change the logits before anything else does; see LogitsProcessor."
    )
    logprobs: bool = option(False, "Also give the log-probability of each token.")
    top_logprobs: int = option(
        0,
        "With --json: also give the k most likely alternatives of each token.",
        group="Output",
        at_least=0,
        at_most=100,
    )
    prompt_logprobs: bool = option(
        False, "Also give the log-probabilities of the prompt's own tokens, in `Row.prompt_chosen`."
    )
    draft_tokens: int | None = option(
        None,
        f"With a draft: tokens proposed at once, at most; {DRAFT_TOKENS} by default.",
        group="Speed",
        at_least=1,
        at_most=MOST_DRAFT_TOKENS,
    )
    compile: bool = option(
        False,
        "Let torch compile the step, which takes a minute at first. For a GPU, or with "
        "GPT2KIT_NATIVE=0.",
        group="Speed",
    )

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "stop", _texts("stop", self.stop, "a stop text"))
        object.__setattr__(self, "ban", _texts("ban", self.ban, "a banned text"))
        object.__setattr__(self, "logits_processors", as_processors(self.logits_processors))
        _check_bans(self.ban)
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens is {self.min_tokens:,}, expected at most max_tokens, "
                f"{self.max_tokens:,}; raise max_tokens"
            )
        object.__setattr__(self, "allow", checked_lines("allow", self.allow))
        object.__setattr__(self, "forbid", checked_lines("forbid", self.forbid))
        if self.regex is not None:
            parse(self.regex)
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**32))  # short enough to be typed

    @property
    def drawn_seed(self) -> int:
        """The seed that was given, or the one that was drawn in its place."""
        assert self.seed is not None  # see __post_init__
        return self.seed

    @property
    def most_likely(self) -> int:
        """How many of the largest logits are enough for what is asked; 0 if all are needed."""
        if self.logprobs or self.top_logprobs or self.ban:
            return 0
        if self.logits_processors or self.constraints:
            return 0
        # min_tokens forbids one token, which may be among the largest.
        most_likely = self.sampling.most_likely
        return most_likely + 1 if most_likely and self.min_tokens else most_likely

    @property
    def constraints(self) -> str:
        """The names of the constraints that are asked for: "regex and forbid", "" for none."""
        asked = {
            "regex": self.regex is not None,
            "allow": self.allow,
            "forbid": self.forbid,
            "valid_utf8": self.valid_utf8,
        }
        return " and ".join(name for name, value in asked.items() if value)

    def check_draft(self, draft: object) -> None:
        """Raise ConfigError for an option that does not go with `draft`, which is None for none."""
        if draft is None and self.draft_tokens is not None:
            raise ConfigError(
                "draft_tokens is given without a draft; add one (--draft), or leave it out"
            )
        if draft is not None and self.compile:
            raise ConfigError(
                "compile is for one token at a time, and a draft proposes several; "
                "leave out --compile or --draft"
            )


def as_request(request: Request | None, options: Mapping[str, Any]) -> Request:
    """Return the request that a caller gave, or one made from the caller's keyword options."""
    if request is not None:
        if options:
            names = ", ".join(sorted(options))
            raise ConfigError(f"expected a request or single options, not both; found {names} too")
        return request
    own = rules(Sampling)
    sampling = {name: value for name, value in options.items() if name in own}
    others = {name: value for name, value in options.items() if name not in own}
    return Request(sampling=Sampling(**sampling), **others)


def _texts(name: str, given: Any, each: str) -> tuple[str, ...]:
    """Return one text, several or None as a tuple; `each` is what an error calls one of them."""
    texts = (given,) if isinstance(given, str) else given or ()
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{name} is {shortened(given)}, expected a text or several")
    if not all(texts):
        raise ConfigError(f"{each} is empty; expected one character at least")
    return tuple(texts)


def _check_bans(texts: Sequence[str]) -> None:
    """Raise ConfigError for a banned text that is too long, or is not bytes of its own."""
    for text in texts:
        if len(text) > MOST_BANNED:
            raise ConfigError(
                f"the banned text {shortened(text)} has {len(text):,} characters, expected at most "
                f"{MOST_BANNED:,}"
            )
        if "\ufffd" in text:
            raise ConfigError(
                f"the banned text {shortened(text)} has U+FFFD, which stands for bytes that are no "
                "text; expected characters"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"the banned text {shortened(text)} has half of a surrogate pair, expected whole "
                "characters"
            ) from None


def _bias_pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """Return a mapping of ids to numbers, pairs of them or None as pairs, sorted by the id."""
    try:
        pairs = list(bias.items() if isinstance(bias, Mapping) else bias or ())
        values = dict(pairs)
    except (TypeError, ValueError):
        raise ConfigError(
            f"logit_bias is {shortened(bias)}, expected ids with a number from -100 to 100 each"
        ) from None
    if len(values) < len(pairs):
        raise ConfigError(f"logit_bias is {shortened(bias)}, expected each id only once")
    for token, value in values.items():
        check_value("an id in logit_bias", token, int, Rule(at_least=0))
        check_value(f"logit_bias for id {token}", value, float, Rule(at_least=-100, at_most=100))
    return tuple((token, float(values[token])) for token in sorted(values))


class TokenOptions(TypedDict, total=False):
    """What `generate_tokens` takes by keyword; Request has the meanings and the defaults."""

    max_tokens: int
    min_tokens: int
    seed: int | None
    overflow: Overflow
    draft_tokens: int | None
    compile: bool
    logits_processors: LogitsProcessor | Sequence[LogitsProcessor] | None


class Options(TokenOptions, total=False):
    """What `stream`, `complete` and `generate` take by keyword, in place of a Request.

    A test compares the names and types with the fields of Request and Sampling.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    no_repeat_ngram: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None
    stop: str | Sequence[str] | None
    ban: str | Sequence[str] | None
    num_samples: int
    first_sample: int
    special: bool
    ignore_eos: bool
    regex: str | None
    allow: Sequence[str] | None
    forbid: Sequence[str] | None
    valid_utf8: bool
    logprobs: bool
    top_logprobs: int
