"""Texts: what may come next, what comes out, and that company and the server change nothing."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx2
import torch
from serve_builders import connected, running, tiny
from token_builders import END, Pieces

from campaigns.number_cases import Check, Tally
from gpt2kit.errors import ConfigError, GenerationError
from gpt2kit.generation.constraints.constraint import Constraints, Progress
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.shaping.forbidding import limits_for
from gpt2kit.generation.shaping.processors import RowView
from gpt2kit.generation.text import complete

Language = set[str]
LARGEST = 200  # texts of a language that is looked at


def vocabulary(draw: random.Random) -> Pieces:
    """Draw pieces of texts of few characters, cut anywhere, also inside a character."""
    pieces = {b"a", b"b", "é".encode()[:1], "é".encode()[1:], b"\n"}
    pieces -= set(draw.sample(sorted(pieces), draw.randint(0, 2)))
    for _ in range(draw.randint(1, 8)):
        data = "".join(draw.choices("aabé\n", k=draw.randint(1, 4))).encode()
        start = draw.randint(0, len(data) - 1)
        pieces.add(data[start : draw.randint(start + 1, len(data))])
    return Pieces(*sorted(pieces))


# --- limits ---------------------------------------------------------------------------------------


def limits(draw: random.Random, tally: Tally) -> None:
    """Compare which tokens limits forbid with a search for what each token would complete."""
    tokenizer = vocabulary(draw)
    V = tokenizer.n_vocab
    ban = tuple("".join(draw.choices("abé\n", k=draw.randint(1, 4))) for _ in range(3))
    request = Request(
        ban=ban[: draw.randint(0, 3)],
        min_tokens=draw.choice((0, 3)),
        sampling=Sampling(no_repeat_ngram=draw.choice((0, 1, 2, 3))),
    )
    tokens = tuple(draw.choices(range(V), k=draw.randint(0, 14)))
    row = RowView(tokens, draw.randint(0, len(tokens)), 0, {})
    for limit in limits_for(request, tokenizer, END):
        logits = torch.zeros(V)
        limit.forbid(logits, row)
        found = [bool(each) for each in logits == -torch.inf]
        expected = [_is_forbidden(limit.name, token, request, row, tokenizer) for token in range(V)]
        tally.equal(found, expected, f"{limit.name} after {tokens}, {request}")


def _is_forbidden(name: str, token: int, request: Request, row: RowView, tokenizer: Pieces) -> bool:
    if name == "min_tokens":
        return token == END and len(row.generated) < request.min_tokens
    if name == "no_repeat_ngram":
        n, text = request.sampling.no_repeat_ngram, (*row.tokens, token)
        last = text[-n:]
        return any(text[i : i + n] == last for i in range(len(text) - n))
    if token == END:
        return False
    prompt = row.tokens[: row.prompt_length]
    start = max((i + 1 for i, each in enumerate(prompt) if each == END), default=0)
    before = b"".join(map(tokenizer.token_bytes, row.tokens[start:]))
    text_with = before + tokenizer.token_bytes(token)
    return any(
        text_with.startswith(ban.encode(), i) and i + len(ban.encode()) > len(before)
        for ban in request.ban
        for i in range(len(text_with))
    )


# --- constraints ----------------------------------------------------------------------------------


def pattern(draw: random.Random, depth: int) -> tuple[str, Language]:
    """Draw a regular expression, and all texts that match it; of more than LARGEST, some."""
    kind = draw.randrange(6) if depth else 0
    if kind <= 1:
        characters = draw.choice(("a", "b", "é", "ab", "aé", "ba\n"))
        own = "".join(map(re.escape, characters))
        return (own if len(characters) == 1 else f"[{own}]"), set(characters)
    left, first = pattern(draw, depth - 1)
    if kind == 2:
        least, most = draw.choice(((0, 1), (0, 2), (1, 3), (2, 2)))
        powers: list[Language] = [{""}]
        for _ in range(most):
            powers.append(_joined(powers[-1], first))
        return f"(?:{left}){{{least},{most}}}", set().union(*powers[least:])
    right, second = pattern(draw, depth - 1)
    if kind == 3:
        return f"(?:{left}|{right})", first | second
    return left + right, _joined(first, second)


def _joined(first: Language, second: Language) -> Language:
    """Return each text of one followed by each of the other; of too many, some."""
    if max(len(first), len(second)) > LARGEST:
        return max(first, second, key=len)
    return {one + other for one in first for other in second}


def constraints(draw: random.Random, tally: Tally) -> None:
    """Compare which tokens may follow, on a way through a constraint, with a list of all texts."""
    tokenizer = vocabulary(draw)
    text, language = "a", set("a")
    for _ in range(20):
        text, language = pattern(draw, 3)
        if len(language) <= LARGEST:
            break
    else:
        return
    lines: tuple[str, ...] | None = None
    if draw.random() < 0.3:
        known = [each for each in sorted(language) if each and "\n" not in each]
        lines = (*draw.sample(known, min(3, len(known))), "ab", "é")
        language &= set(lines)
    tally.seen.append(
        f"{text!r} {lines} {[*map(tokenizer.token_bytes, range(1, tokenizer.n_vocab))]}"
    )
    whole = {each.encode() for each in language}
    request = Request(regex=text, allow=lines)
    spelled = functools.cache(lambda rest: _is_spelled(rest, tokenizer))
    possible = [each for each in whole if each and spelled(each)]
    try:
        progress = Constraints(request, tokenizer, tokenizer.n_vocab, END).after([])
    except ConfigError:
        tally.refused = True
        tally.require(not possible, f"refused, but {possible[:3]} can be written")
        return
    tally.require(bool(possible), "accepted, but no text can be written")
    written = b""
    while not _compare_next(tally, progress, tokenizer, written, whole, spelled):
        logits = torch.zeros(tokenizer.n_vocab)
        progress.forbid(logits, RowView((), 0, 0, {}))
        token = draw.choice([int(each) for each in (logits == 0).nonzero()])
        if token == END:
            return
        written += tokenizer.token_bytes(token)
        progress = progress.after(token)


def _compare_next(
    tally: Tally,
    progress: Progress,
    tokenizer: Pieces,
    written: bytes,
    whole: set[bytes],
    spelled: Callable[[bytes], bool],
) -> bool:
    """Compare what may follow a text with all texts that begin so; return whether it must end."""
    rests = [each[len(written) :] for each in whole if each.startswith(written)]
    expected = []
    for token in range(1, tokenizer.n_vocab):
        own = tokenizer.token_bytes(token)
        after = [rest[len(own) :] for rest in rests if rest.startswith(own)]
        expected.append(any(map(spelled, after)))
    tally.equal(progress.may_end, written in whole, f"may end after {written!r}")
    tally.equal(progress.must_end, not any(expected), f"must end after {written!r}")
    if progress.must_end:
        return True
    logits = torch.zeros(tokenizer.n_vocab)
    progress.forbid(logits, RowView((), 0, 0, {}))
    found = [bool(each) for each in logits == 0]
    tally.equal(found, [written in whole, *expected], f"what may follow {written!r}")
    return False


def _is_spelled(rest: bytes, tokenizer: Pieces) -> bool:
    """Whether tokens can write some bytes."""
    reached = [True, *[False] * len(rest)]
    for end in range(1, len(rest) + 1):
        for token in range(1, tokenizer.n_vocab):
            own = tokenizer.token_bytes(token)
            start = end - len(own)
            reached[end] |= start >= 0 and reached[start] and rest[start:end] == own
    return reached[-1]


# --- whole texts ----------------------------------------------------------------------------------

WORDS = ("The", " the", " a", "ab", "\n", "é", " 1", " of", "and ", ".")
_tiny = functools.cache(tiny)


def wish_of(draw: random.Random) -> dict[str, Any]:
    """Draw what is asked of a text, as both the library and the server take it."""
    wish: dict[str, Any] = {
        "max_tokens": draw.randint(1, 12),
        "seed": draw.getrandbits(32),
        "temperature": draw.choice((0, 0.7, 1, 1.5)),
        "top_k": draw.choice((0, 1, 5, 40)),
    }
    choices: dict[str, tuple[Any, ...]] = {
        "top_p": (0.5, 0.9),
        "min_p": (0.05, 0.5),
        "typical_p": (0.4,),
        "repetition_penalty": (1.3, 0.8),
        "presence_penalty": (0.5, -1),
        "frequency_penalty": (0.5,),
        "no_repeat_ngram": (2, 3),
        "stop": (["e"], ["the", " a"]),
        "ban": (["e"], ["th", "\n"]),
        "min_tokens": (1,),
        "ignore_eos": (True,),
        "regex": ("[a-z ]{1,9}", "(yes|no) .*"),
        "allow": (["yes", "no", "perhaps"],),
        "valid_utf8": (True,),
    }
    for name in draw.sample(sorted(choices), draw.randint(0, 4)):
        wish[name] = draw.choice(choices[name])
    return wish


def prompts_of(draw: random.Random) -> list[str]:
    """Draw prompts of different lengths."""
    texts = ["".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(draw.randint(2, 5))]
    return [draw.choice((texts[0], "")) + text if draw.random() < 0.3 else text for text in texts]


def company(draw: random.Random, tally: Tally) -> None:
    """Compare texts that are written together with each written alone."""
    model, tokenizer = _tiny()
    prompts, wish = prompts_of(draw), wish_of(draw)
    tally.seen.append(f"{prompts} {wish}")
    alone: list[tuple[Any, ...] | None] = []
    for prompt in prompts:
        try:
            (one,) = complete(model, tokenizer, prompt, **wish)
            alone.append((one.text, one.tokens, one.finish_reason, one.matches))
            _check_text(tally, one, wish)
        except (GenerationError, ConfigError):  # limits left no token, constraints no text
            alone.append(None)
    if None in alone:
        tally.refused = True
        return
    together = complete(model, tokenizer, prompts, logprobs=draw.random() < 0.5, **wish)
    for one, expected in zip(together, alone, strict=True):
        found = (one.text, one.tokens, one.finish_reason, one.matches)
        tally.equal(found, expected, f"{one.prompt!r} in company")


def _check_text(tally: Tally, found: Any, wish: dict[str, Any]) -> None:
    """Require of a text what was asked for."""
    for stop in wish.get("stop", ()) if "min_tokens" not in wish else ():
        tally.require(stop not in found.text, f"{stop!r} in {found.text!r}")
    for ban in wish.get("ban", ()):
        begun = (found.prompt + found.text).find(ban, max(0, len(found.prompt) - len(ban) + 1))
        tally.equal(begun, -1, f"{ban!r} in {found.text!r}")
    if found.matches and "regex" in wish:
        matched = re.fullmatch(wish["regex"], found.text) is not None
        tally.require(matched or found.finish_reason == "stop_text", f"no match: {found.text!r}")
    if found.matches and "allow" in wish and found.finish_reason != "stop_text":
        tally.require(found.text in wish["allow"], f"not allowed: {found.text!r}")


def served(stack: ExitStack) -> Check:
    """Return the check that an application in this process writes what the library writes."""
    client = stack.enter_context(connected())
    return functools.partial(_served, lambda body: client.post("/v1/completions", body))


def over_http(stack: ExitStack) -> Check:
    """Return the same check through a port of this machine."""
    url = stack.enter_context(running())
    client = stack.enter_context(httpx2.Client(timeout=60))
    return functools.partial(_served, lambda body: client.post(f"{url}/v1/completions", json=body))


def _served(ask: Callable[[Any], httpx2.Response], draw: random.Random, tally: Tally) -> None:
    model, tokenizer = _tiny()
    prompts, wish = prompts_of(draw), wish_of(draw)
    tally.seen.append(f"{prompts} {wish}")
    answer = ask({"prompt": prompts, **wish})
    try:
        expected = [one.text for one in complete(model, tokenizer, prompts, **wish)]
    except (GenerationError, ConfigError) as error:
        tally.refused = True
        tally.require(answer.status_code >= 400, f"the library refused it: {error}")
        return
    tally.equal(answer.status_code, 200, f"the status, {answer.text[:200]}")
    found = [choice["text"] for choice in answer.json()["choices"]]
    for prompt, mine, theirs in zip(prompts, found, expected, strict=True):
        tally.equal(mine, theirs, f"the server after {prompt!r}")
