"""Wrong usage in one line: what was expected, what was found, and whose help to read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

_NUMBERS = {"int_parsing": "a whole number", "float_parsing": "a number"}  # pydantic's types
_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)
_SUGGESTED = re.compile(r"Did you mean (.*)\?")


def message(error: Any) -> str:
    """Return the line that a usage error of Typer's is shown as; empty if no command was typed."""
    found = str(error.message).removesuffix(".")
    if extra := _EXTRA.fullmatch(found):
        found = f"too many arguments: {extra[1]}{_hint(error)}"
    elif possible := getattr(error, "possibilities", None):
        found += f"; {_did_you_mean(_closest(error.option_name, possible))}"
    elif suggested := _SUGGESTED.search(found):
        names = suggested[1].replace("'", "").split(", ")
        once = [name for name in names if "_" not in name or name.replace("_", "-") not in names]
        found = found[: suggested.start()].rstrip(" .") + f"; {_did_you_mean(once)}"
    else:
        found = str(error.format_message()).removeprefix("Invalid value: ").removesuffix(".")
        found = found.replace(": Value error, ", ": ", 1)  # typer's, before "'x' is not one of"
        if number := _number(error):
            found = f"{found.partition(': ')[0]}: {number}"
    if not found:
        return ""
    command = error.ctx.command_path if error.ctx else "gpt2kit"
    return f"{found}{' ' if found.endswith('?') else '; '}see: {command} --help"


def _hint(error: Any) -> str:
    """Say how the arguments that are too many were probably meant."""
    parameters = {each.name: each for each in error.ctx.command.params} if error.ctx else {}
    if {"prompt", "text"} & parameters.keys():
        return '; put a text of several words in quotes, such as "The dog"'
    return "; name a model with --model" if "model" in parameters else ""


def _closest(typed: str, possible: Sequence[str]) -> Sequence[str]:
    """Return the option that is much like the typed one, or else all that Typer suggests."""
    return difflib.get_close_matches(typed, possible, 1, 0.7) or sorted(possible)


def _did_you_mean(names: Sequence[str]) -> str:
    *others, last = names
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def _number(error: Any) -> str | None:
    """Say in short that a value is not a number, if that is the error."""
    problems: list[Any] = getattr(error.__cause__, "errors", list)()
    if problems and (expected := _NUMBERS.get(problems[0]["type"])):
        return f"expected {expected}, found {problems[0]['input']!r}"
    return None
