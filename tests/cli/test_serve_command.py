"""serve: what the command makes of its options, and what it says before it serves."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary, write_hub
from serve_builders import CONFIG, tiny
from typer.testing import CliRunner

from gpt2kit.cli import app


@pytest.fixture
def runs(weights: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a model into the weights folder, and note what would be served instead of serving it."""
    add_vocabulary(write_hub(weights / "tiny", tiny()[0], n_positions=CONFIG.n_ctx))
    found: list[dict[str, Any]] = []

    def run(application: Any, bound: Any, *, when_ready: Any) -> int:
        service = application.service
        found.append({"service": service, "address": bound.getsockname()})
        when_ready()
        return 0

    monkeypatch.setattr("gpt2kit.serve.server.run", run)
    return found


def serve(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", "--model", "tiny", "--port", "0", *arguments])
    return result.exit_code, result.output


def test_every_option_reaches_the_server(runs: list[dict[str, Any]]) -> None:
    code, said = serve(
        *("--parallel", "3", "--max_rows", "5", "--queue", "6", "--queue_tokens", "700"),
        *(
            "--queue_logprobs",
            "800",
            "--queue_timeout",
            "8",
            "--drain",
            "9",
            "--api_key",
            "a",
            "--api_key",
            "b",
        ),
        *("--cors_origin", "https://example.com", "--allowed_host", "gpt2.example"),
        *("--served_name", "mine", "--model", "124M-not-there"),
    )
    assert code == 1  # the second model is not on this machine
    assert "124M-not-there" in said
    code, said = serve("--parallel", "3", "--served_name", "mine", "--api_key", "a")
    assert code == 0
    service = runs[-1]["service"]
    assert service.settings.parallel == 3
    assert service.settings.api_key == ("a",)
    assert [entry.name for entry in service.models.entries] == ["mine"]
    assert runs[-1]["address"][0] == "127.0.0.1"
    assert f"serving tiny at http://127.0.0.1:{runs[-1]['address'][1]}; Ctrl-C stops" in said
    assert "warning" not in said


def test_models_are_loaded_with_the_options(runs: list[dict[str, Any]]) -> None:
    assert serve("--dtype", "bfloat16")[0] == 0
    models = runs[-1]["service"].models
    model, tokenizer = models._load("tiny")
    assert (str(model.dtype), tokenizer.n_vocab) == ("torch.bfloat16", 512)


def test_an_open_server_without_a_key_is_warned_of(runs: list[dict[str, Any]]) -> None:
    assert "warning: every machine" in serve("--host", "0.0.0.0")[1]
    assert "warning" not in serve("--host", "0.0.0.0", "--api_key", "k")[1]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--parallel", "0", "parallel is 0, expected a whole number, from 1"),
        ("--port", "70000", "port is 70000, expected a whole number, from 0 to 65,535"),
        ("--drain", "-1", "drain is -1.0, expected a number, from 0"),
        ("--api_key", "two words", "an API key has a space"),
        ("--api_key", "@none", "cannot be read"),
        ("--dtype", "float12", "float12"),
    ],
)
def test_a_wrong_option_is_one_line(
    runs: list[dict[str, Any]], option: str, value: str, expected: str
) -> None:
    code, said = serve(option, value)
    assert code == 1
    assert expected in said
    assert said.startswith("error: ")
    assert not runs


def test_without_the_extra_it_says_what_to_install(
    runs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *others: Any, **named: Any) -> Any:
        if name == "starlette":
            raise ImportError(name)
        return real(name, *others, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    code, said = serve()
    assert code == 1
    assert said == (
        "error: this needs starlette, which is not installed; run: pip install 'gpt2kit[serve]'\n"
    )
    assert "starlette" in sys.modules  # only hidden
