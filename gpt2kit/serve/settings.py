"""The options of a server, each with its default, its rule and its help."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option

MOST_LOGPROBS = 100
MOST_STOPS = 16
MOST_BANS = 256
BAN_BYTES = 2**14  # of all texts that a request bans, whose tables are up to 128 times as large
MOST_LINES = 4096  # of allow and of forbid
BODY_BYTES = 2**20
SMALL_BODY_BYTES = 2**16  # of every body, which is always taken
BODIES_BYTES = 2**26  # of all bodies together, beyond what is small of each
TABLE_BYTES = 2**28  # of the constraints of all accepted requests together
BODY_SECONDS = 30.0  # for a client to send its request
REPEATED_BYTES = 2**24  # of prompts in an answer, which each of its choices repeats
UNREAD_BYTES = 2**20  # of an answer that a client has not taken yet
UNREAD_SECONDS = 60.0
COMMENT_SECONDS = 15.0  # between two comments in a stream that waits
BEAT_SECONDS = 10.0  # without a step, while there is work, before the server counts as stuck

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\sA-Z]+")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server treats its clients.

    Raises ConfigError for a value that breaks its rule.
    """

    parallel: int = option(
        8,
        "Texts to write at the same time; fewer if memory does not suffice.",
        group="Speed",
        at_least=1,
        at_most=1024,
    )
    max_rows: int = option(
        128,
        "Texts that one request may ask for: prompts times best_of.",
        group="Limits",
        at_least=1,
        at_most=10**5,
    )
    queue: int = option(
        64,
        "Requests that may wait; more are refused with status 429.",
        group="Limits",
        at_least=0,
        at_most=10**6,
    )
    queue_tokens: int = option(
        262_144,
        "Tokens of all accepted requests together, prompts and answers; more are refused.",
        group="Limits",
        at_least=1,
        at_most=10**12,
    )
    queue_logprobs: int = option(
        1_048_576,
        "Log-probabilities of other tokens in the answers to all accepted requests together, "
        "streams not counted; more are refused. Each takes some 300 bytes until it is sent.",
        group="Limits",
        at_least=1,
        at_most=10**12,
    )
    queue_timeout: float = option(
        60.0,
        "Seconds that a request may wait for its turn.",
        group="Limits",
        above=0,
        at_most=10**6,
    )
    drain: float = option(
        30.0,
        "Seconds that running requests get to end after Ctrl-C or SIGTERM.",
        group="Limits",
        at_least=0,
        at_most=10**6,
    )
    api_key: tuple[str, ...] = option(
        (),
        "A key that clients must send, or @FILE with one on each line; may be given several "
        "times. Default: GPT2KIT_API_KEY, if it is set.",
        group="Access",
        metavar="KEY|@FILE",
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "A site whose pages may call this server from a browser, such as https://example.com, "
        "or *; may be given several times.",
        group="Access",
        metavar="ORIGIN",
    )
    allowed_host: tuple[str, ...] = option(
        (),
        "A further name that a Host header may have on this machine's own address, such as that "
        "of a proxy; may be given several times.",
        group="Access",
        metavar="NAME",
    )
    served_name: tuple[str, ...] = option(
        (),
        "What clients call a model; one for each --model, in the same order.",
        group="Model",
        metavar="NAME",
    )

    steer: tuple[str, ...] = option(
        (),
        "Add a vector at every position of all texts: 'file:A - file:B @6 *4' or "
        "'sae:FOLDER#123 *8'; may be given several times. It applies to every model.",
        group="Model",
        metavar="WHAT",
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("api_key", "cors_origin", "allowed_host", "served_name", "steer"):
            given = getattr(self, name)
            texts = (given,) if isinstance(given, str) else tuple(given)
            if not all(isinstance(text, str) and text for text in texts):
                raise ConfigError(f"{name} has an empty value, expected texts")
            object.__setattr__(self, name, texts)
        for name in self.allowed_host:
            if "/" in name:
                raise ConfigError(
                    f"allowed_host is {name!r}, expected a name as in a Host header, such as "
                    "gpt2.example"
                )
        if self.steer:
            _check_steer(self.steer)
        for origin in self.cors_origin:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"cors_origin is {origin!r}, expected what a browser sends: a scheme, a name "
                    "in lower case and perhaps a port, such as https://example.com, or *"
                )


def _check_steer(typed: Sequence[str]) -> None:
    """Raise ConfigError for a vector that is not understood, or not for every position."""
    from gpt2kit.inspection.steering import parse  # imports torch, which the help does without

    for each in typed:
        if parse(each).kind == "prompts":
            raise ConfigError(
                f"steer is {each!r}: two prompts are for the first positions of one prompt, and a "
                "server has many; expected 'file:FILE - file:FILE @LAYER *STRENGTH' or "
                "'sae:FOLDER#FEATURE *STRENGTH'"
            )


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens."""

    host: str = option(
        "127.0.0.1",
        "The address to listen on; 0.0.0.0 lets other machines in.",
        group="Access",
        metavar="ADDRESS",
    )
    port: int = option(
        8000,
        "The port to listen on; 0 takes a free one and shows it.",
        group="Access",
        at_least=0,
        at_most=65535,
    )

    def __post_init__(self) -> None:
        check(self)
