"""What a client asks of /v1/completions: its JSON, checked, as one frozen object.

The fields are OpenAI's, with OpenAI's defaults, and some of our own. A field that is null counts as
absent. A field with the same name as an option of generation has that option's rule.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from gpt2kit.data.window import Overflow
from gpt2kit.errors import ConfigError
from gpt2kit.fields import check_value, declared_types, option, rules, same_option, shortened
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.serve.errors import Refusal
from gpt2kit.serve.settings import BAN_BYTES, MOST_BANS, MOST_LINES, MOST_LOGPROBS, MOST_STOPS

T = TypeVar("T")
Prompt = str | tuple[int, ...]  # a text, or ids

# Fields of OpenAI's interface that describe the caller or its account: accepted, and not used.
UNUSED = ("user", "metadata", "store", "service_tier", "safety_identifier")
_OF_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "no_repeat_ngram",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """Everything that a client asks of one completion; `parse` makes it.

    Raises Refusal with status 400 for a value that breaks its rule.
    """

    model: str | None = None
    prompt: tuple[Prompt, ...] = ("",)
    max_tokens: int = same_option(Request, "max_tokens", 16)
    temperature: float = same_option(Sampling, "temperature")
    top_p: float = same_option(Sampling, "top_p")
    n: int = option(1, at_least=1, at_most=10**5)
    best_of: int | None = option(None, at_least=1, at_most=10**5)
    stop: tuple[str, ...] = ()
    seed: int | None = same_option(Request, "seed")
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = same_option(Sampling, "presence_penalty")
    frequency_penalty: float = same_option(Sampling, "frequency_penalty")
    logprobs: int | None = option(None, at_least=0, at_most=MOST_LOGPROBS)
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    # Our own, with vLLM's names if it has one.
    top_k: int = same_option(Sampling, "top_k", 0)
    min_p: float = same_option(Sampling, "min_p")
    typical_p: float = same_option(Sampling, "typical_p")
    no_repeat_ngram: int = same_option(Sampling, "no_repeat_ngram")
    min_tokens: int = same_option(Request, "min_tokens")
    ban: tuple[str, ...] = ()
    regex: str | None = same_option(Request, "regex")
    allow: tuple[str, ...] | None = None
    forbid: tuple[str, ...] | None = None
    valid_utf8: bool = False
    repetition_penalty: float = same_option(Sampling, "repetition_penalty")
    ignore_eos: bool = False
    special: bool = True
    overflow: Overflow = option("error")
    return_token_ids: bool = False
    receipt: bool = False
    request: Request = field(init=False)  # what generation is asked for each row

    def __post_init__(self) -> None:
        declared = declared_types(CompletionRequest)
        for name, rule in rules(CompletionRequest).items():
            if name != "request":
                _refuse_if_wrong(name, check_value, name, getattr(self, name), declared[name], rule)
        self._check_combinations()
        object.__setattr__(self, "request", self._make_request())

    @property
    def samples(self) -> int:
        """How many texts are generated for each prompt; the best n are returned."""
        return self.n if self.best_of is None else self.best_of

    @property
    def rows(self) -> int:
        """How many texts are generated in all."""
        return len(self.prompt) * self.samples

    def most_new_tokens(self, n_ctx: int) -> int:
        """Return how many tokens may be generated for each text, at most."""
        return self.max_tokens if self.overflow == "slide" else min(self.max_tokens, n_ctx)

    @property
    def scores_prompts(self) -> bool:
        """Whether the probabilities of the prompts' tokens are asked for."""
        return self.echo and self.logprobs is not None

    def _check_combinations(self) -> None:
        if self.samples < self.n:
            raise Refusal(
                400, f"best_of is {self.best_of}, expected at least n, {self.n}", param="best_of"
            )
        if self.stream and self.samples > self.n:
            raise Refusal(
                400,
                "best_of larger than n chooses among whole texts, so it cannot be streamed; "
                "leave out stream or best_of",
                param="best_of",
            )
        if self.receipt and (self.stream or not self.max_tokens):
            raise Refusal(
                400,
                "a receipt is of whole texts; leave out stream, and ask for one token at least",
                param="receipt",
            )
        if self.receipt and not all(isinstance(prompt, str) for prompt in self.prompt):
            raise Refusal(400, "a receipt needs prompts that are texts, not ids", param="receipt")
        if self.include_usage and not self.stream:
            raise Refusal(
                400,
                "stream_options is only for streams; leave it out, or set stream to true",
                param="stream_options",
            )

    def _make_request(self) -> Request:
        values = {name: getattr(self, name) for name in _OF_SAMPLING}
        sampling = _refuse_if_wrong("logit_bias", Sampling, **values)
        if self.min_tokens > self.max_tokens:
            raise Refusal(
                400,
                f"min_tokens is {self.min_tokens:,}, expected at most max_tokens, "
                f"{self.max_tokens:,}",
                param="min_tokens",
            )
        for name in ("ban", "regex", "allow", "forbid"):
            _refuse_if_wrong(name, Request, **{name: getattr(self, name)})
        return _refuse_if_wrong(
            "stop",
            Request,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            ban=self.ban,
            regex=self.regex,
            allow=self.allow,
            forbid=self.forbid,
            valid_utf8=self.valid_utf8,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
            special=self.special,
            overflow=self.overflow,
            seed=self.seed,
            sampling=sampling,
            logprobs=self.logprobs is not None or self.samples > self.n,
            top_logprobs=self.logprobs or 0,
        )


def parse(body: Mapping[str, Any]) -> CompletionRequest:
    """Return what a client asks for; raises Refusal, which names the field that is wrong."""
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(given)
    if "suffix" in given:
        raise Refusal(
            400,
            "GPT-2 cannot fill in a gap before a suffix; leave suffix out",
            param="suffix",
        )
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name == "stream_options":
            values["include_usage"] = _include_usage(value)
        elif name not in UNUSED:
            values[name] = _CONVERTED[name](value) if name in _CONVERTED else value
    return CompletionRequest(**values)


def _check_names(given: Mapping[str, Any]) -> None:
    known = {each.name for each in fields(CompletionRequest) if each.init} - {"include_usage"}
    known |= {*UNUSED, "stream_options", "suffix"}
    refuse_unknown(given, known)


def refuse_unknown(given: Mapping[str, Any], known: set[str]) -> None:
    """Raise Refusal for the first name that is not known, with the most similar one that is."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise Refusal(400, f"there is no field {name[:40]!r}; {advice}", param=name[:40])


def _refuse_if_wrong(param: str, function: Callable[..., T], *values: Any, **named: Any) -> T:
    """Call a function; a ConfigError becomes a Refusal that names a field."""
    try:
        return function(*values, **named)
    except ConfigError as error:
        raise Refusal(400, str(error), param=param) from None


def as_text(name: str, value: Any) -> str:
    """Return a value if it is a text that can be written as UTF-8; raises Refusal if not."""
    if not isinstance(value, str):
        raise Refusal(400, f"{name} is {shortened(value)}, expected text", param=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(
            400, f"{name} has half of a surrogate pair, which is no character", param=name
        ) from None
    return value


def as_flag(name: str, value: Any, default: bool, *, param: str | None = None) -> bool:
    """Return true or false, or the default for null; raises Refusal for anything else."""
    if value is None:
        return default
    if not isinstance(value, bool):
        message = f"{name} is {shortened(value)}, expected true or false"
        raise Refusal(400, message, param=param or name)
    return value


def as_ids(name: str, values: Any) -> tuple[int, ...]:
    """Return a list of token ids as a tuple; raises Refusal for anything else."""
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise Refusal(
            400, f"{name} is {shortened(values)}, expected a list of token ids", param=name
        )
    if not values:
        raise Refusal(400, f"{name} has no tokens; for an empty prompt send a text", param=name)
    return tuple(values)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """Return one text, one list of ids, or a list of them, as a tuple of prompts."""
    if isinstance(value, str):
        return (as_text("prompt", value),)
    if isinstance(value, list) and value:
        if any(isinstance(each, (str, list)) for each in value):
            return tuple(_one_prompt(i, each) for i, each in enumerate(value))
        return (as_ids("prompt", value),)
    found = "an empty list" if value == [] else shortened(value)
    raise Refusal(
        400,
        f"prompt is {found}, expected a text, a list of token ids, or a list of them",
        param="prompt",
    )


def _one_prompt(index: int, value: Any) -> Prompt:
    if isinstance(value, str):
        return as_text("prompt", value)
    try:
        return as_ids("prompt", value)
    except Refusal as refusal:
        message = f"in the list of prompts, at index {index}: {refusal}"
        raise Refusal(400, message, param="prompt") from None


def _texts(name: str, value: Any, most: int) -> tuple[str, ...]:
    """Return one text or a list of them as a tuple; raises Refusal for more than `most`."""
    texts = value if isinstance(value, list) else [value]
    if len(texts) > most:
        raise Refusal(400, f"{name} has {len(texts)} texts, expected at most {most}", param=name)
    return tuple(as_text(name, text) for text in texts)


def _bans(value: Any) -> tuple[str, ...]:
    """Return the texts that are banned; raises Refusal if they are too many or too long."""
    texts = _texts("ban", value, MOST_BANS)
    if (n := sum(len(text.encode()) for text in texts)) > BAN_BYTES:
        raise Refusal(400, f"ban has {n:,} bytes, expected at most {BAN_BYTES:,}", param="ban")
    return texts


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    """Return {"50256": -100} as pairs of ids and numbers."""
    if not isinstance(value, dict):
        raise Refusal(
            400, f'logit_bias is {shortened(value)}, expected {{"id": number}}', param="logit_bias"
        )
    pairs = []
    for key, number in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise Refusal(
                400, f"logit_bias has the key {key[:40]!r}, expected a token id", param="logit_bias"
            )
        pairs.append((int(key), number))
    return tuple(pairs)


def _logprobs(value: Any) -> int | None:
    """Return true as 1, and false as absent."""
    if isinstance(value, bool):
        return 1 if value else None
    return value  # type: ignore[no-any-return]


def _include_usage(value: Any) -> bool:
    if not isinstance(value, dict):
        raise Refusal(
            400,
            f"stream_options is {shortened(value)}, expected an object",
            param="stream_options",
        )
    refuse_unknown(value, {"include_usage", "include_obfuscation"})
    return as_flag("include_usage", value.get("include_usage"), False, param="stream_options")


_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "model": lambda value: as_text("model", value),
    "prompt": _prompts,
    "stop": lambda value: _texts("stop", value, MOST_STOPS),
    "ban": _bans,
    "regex": lambda value: as_text("regex", value),
    "allow": lambda value: _texts("allow", value, MOST_LINES),
    "forbid": lambda value: _texts("forbid", value, MOST_LINES),
    "logit_bias": _bias,
    "logprobs": _logprobs,
}
