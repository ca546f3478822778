"""Read a receipt, and compare it with what was written again: is it the same, and if not, why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check_names, rules, shortened
from gpt2kit.generation.receipts.receipt import (
    LINES,
    NOT_OPTIONS,
    VERSION,
    digest_of_lines,
    marks,
    sha256_of,
)
from gpt2kit.generation.request import Request, Sampling, as_request
from gpt2kit.generation.text import Completion

_KINDS = {
    "source": dict,
    "weights": str,
    "config": dict,
    "tokenizer": str,
    "options": dict,
    "draft": (str, dict, type(None)),
    "processors": list,
    "computed": dict,
    "versions": dict,
    "prompts": list,
    "texts": list,
}
_OF_TEXT = {"prompt": int, "sample": int, "sha256": str, "marks": str}


def check_receipt(found: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a dictionary has everything that a receipt has, of its kind."""
    if found.get("receipt") != VERSION:
        raise ConfigError(
            f"this is no receipt of version {VERSION}: receipt is {shortened(found.get('receipt'))}"
        )
    _check_kinds(found, _KINDS, "the receipt")
    for prompt in found["prompts"]:
        _check_kinds(prompt, {"sha256": str, "text": (str, type(None))}, "a prompt of the receipt")
    for text in found["texts"]:
        _check_kinds(text, _OF_TEXT, "a text of the receipt")
        if not 0 <= text["prompt"] < len(found["prompts"]):
            raise ConfigError(f"a text of the receipt has the prompt {shortened(text['prompt'])}")
    if not found["texts"]:
        raise ConfigError("the receipt has no texts")


def _check_kinds(found: Any, kinds: Mapping[str, Any], what: str) -> None:
    if not isinstance(found, Mapping):
        raise ConfigError(f"{what} is {shortened(found)}, expected an object")
    for name, kind in kinds.items():
        value = found.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"{what} has the {name} {shortened(value)}, which is none")


def request_of(found: Mapping[str, Any], **changed: Any) -> Request:
    """Return the request of a receipt, with other values for some options.

    Raises ConfigError for options that are invalid or unknown, for lines of which the receipt has
    only the digest, unless they are given, and for processors that are not given.
    """
    known = {*rules(Request), *rules(Sampling)} - {*NOT_OPTIONS}
    check_names(found["options"], known, what="the receipt")
    options = {**found["options"], **changed}
    options = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
    for name in LINES:
        if isinstance(options.get(name), Mapping):
            raise ConfigError(
                f"the receipt has only the digest of the lines of {name}; give them again: "
                f"--{name} FILE"
            )
    if found["processors"] and not options.get("logits_processors"):
        names = ", ".join(map(str, found["processors"]))
        raise ConfigError(
            f"the text was written with the logits processor {names[:200]}, which a receipt does "
            "not hold; replay it in Python"
        )
    if type(options.get("seed")) is not int:
        raise ConfigError(f"the receipt has the seed {shortened(options.get('seed'))}")
    return as_request(None, options)


def prompts_of(found: Mapping[str, Any], given: Sequence[str] | None) -> list[str]:
    """Return the prompts of a receipt: those given, if they are the same, or those in it.

    Raises ConfigError if they are neither given nor in it, or others than at the first time.
    """
    expected = [prompt["sha256"] for prompt in found["prompts"]]
    if given is None:
        texts = [prompt.get("text") for prompt in found["prompts"]]
        if None in texts:
            raise ConfigError(
                "the receipt has no prompt, only its digest; give the prompt: "
                "gpt2kit replay FILE PROMPT"
            )
        given = [str(text) for text in texts]
    prompts = list(dict.fromkeys(given))
    if [sha256_of(prompt) for prompt in prompts] != expected:
        n = len(expected)
        raise ConfigError(
            "the prompt is not the one of the receipt: its sha256 is another one"
            if n == len(prompts) == 1
            else f"the prompts are not the {n:,} of the receipt in their order"
        )
    return prompts


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in one sentence each what is different in two receipts and can change a text."""
    found: list[str] = []
    same_numbers = all(
        then["computed"].get(name) == now["computed"].get(name) for name in ("dtype", "quantize")
    )
    for name in ("weights", "tokenizer"):
        # Weights in another dtype are other bytes, and "dtype" says it already.
        if then[name] != now[name] and (same_numbers or name == "tokenizer"):
            found.append(f"{name}: sha256 {then[name][:12]} in the receipt, {now[name][:12]} now")
    steered = [_plain(each["source"].get("steer"), "") for each in (then, now)]
    if steered[0] != steered[1]:
        found.append(f"steer: {shortened(steered[0])} in the receipt, {shortened(steered[1])} now")
    if then["draft"] != now["draft"]:
        found.append("draft: another one, or other weights")
    for part in ("config", "options", "computed", "versions"):
        for name in dict.fromkeys([*then[part], *now[part]]):
            old, new = (_plain(each[part].get(name), name) for each in (then, now))
            if old != new:
                found.append(f"{name}: {shortened(old)} in the receipt, {shortened(new)} now")
    if list(then["processors"]) != list(now["processors"]):
        found.append("logits_processors: others than in the receipt")
    return found


def _plain(value: Any, name: str) -> Any:
    """Return a value as JSON has it, and lines by their digest."""
    if isinstance(value, (list, tuple)):
        return digest_of_lines(value) if name in LINES else [_plain(each, "") for each in value]
    return value


@dataclasses.dataclass(frozen=True)
class Replayed:
    """How one text compares with the one that a receipt is of.

    equal      whether it is the same
    token      the index of the first token that differs; None if it is equal, or if only the text
               of the receipt is another one
    character  the offset in the text at which that token begins
    """

    prompt: int
    sample: int
    equal: bool
    token: int | None = None
    character: int | None = None


def compare(entry: Mapping[str, Any], completion: Completion, decode: Any) -> Replayed:
    """Compare a text with its entry in a receipt; `decode` makes text of tokens."""
    old, new = entry["marks"], marks(completion.prompt, completion.tokens)
    where = entry["prompt"], entry["sample"]
    if old == new:
        return Replayed(*where, equal=entry["sha256"] == sha256_of(completion.text))
    both = zip(_fours(old), _fours(new), strict=False)
    shorter = min(len(old), len(new)) // 4
    first = next((i for i, (one, other) in enumerate(both) if one != other), shorter)
    return Replayed(*where, False, first, len(decode(completion.tokens[:first])))


def _fours(digits: str) -> list[str]:
    return [digits[i : i + 4] for i in range(0, len(digits), 4)]
