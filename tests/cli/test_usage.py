"""Wrong usage in one line: what was expected, what was found, and whose help to read."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from gpt2kit.cli import app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (  # It did not say what was expected.
            ["generate", "Nel", "mezzo", "--model", "dante"],
            "too many arguments: mezzo; put a text of several words in quotes, such as",
        ),
        (["serve", "dante"], "too many arguments: dante; name a model with --model; see: "),
        (  # It spoke of an input that is unable to be parsed, and did not show it.
            ["generate", "--seed", "one"],
            "Invalid value for '--seed': expected a whole number, found 'one'; see: ",
        ),
        (["generate", "--top_p", "x"], "Invalid value for '--top_p': expected a number, found"),
        (  # The nearest name was one of three in the order of the alphabet.
            ["generate", "--modle", "dante"],
            "No such option: --modle; did you mean --model? see: gpt2kit generate --help",
        ),
        (["genrate"], "No such command 'genrate'; did you mean generate? see: gpt2kit --help"),
        (  # One command was suggested in two spellings.
            ["plot", "atention"],
            "No such command 'atention'; did you mean attention or attention-bars? see: ",
        ),
    ],
)
def test_wrong_usage_says_what_was_expected_and_found(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments, prog_name="gpt2kit")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
