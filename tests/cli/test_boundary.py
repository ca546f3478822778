"""What every command does with a failure: one line that fits the command, and an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from typer.testing import CliRunner, Result

from gpt2kit import store
from gpt2kit.cli import app
from gpt2kit.errors import OutOfMemoryError

NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    OSError(12, "Cannot allocate memory"),
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let every command that looks for a model fail."""

    def choose(error: BaseException) -> None:
        def raise_it(*_: object) -> NoReturn:
            raise error

        monkeypatch.setattr(store, "find", raise_it)

    return choose


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_the_advice_for_too_little_memory_names_options_of_the_command(
    error: BaseException, fail: Callable[[BaseException], None]
) -> None:
    # Every command advised --dtype and --batch_size, also those that have no such options.
    fail(error)
    for arguments, advice in (
        (["inspect", "dante"], "a smaller model needs less"),
        (["explain", "dante", "x"], "a smaller model or --dtype bfloat16 needs less"),
        (
            ["score", __file__, "--model", "dante"],
            "a smaller model, --dtype bfloat16, --quantize int8 or a smaller --batch_size "
            "needs less",
        ),
    ):
        result = run(*arguments)
        assert result.stderr == f"error: not enough memory; {advice}\n"
        assert result.exit_code == 1


def test_advice_that_comes_with_the_error_is_kept(fail: Callable[[BaseException], None]) -> None:
    fail(OutOfMemoryError("not enough memory; --lora_rank 8 needs 2.1 GB"))
    assert run("inspect", "dante").stderr == (
        "error: not enough memory; --lora_rank 8 needs 2.1 GB\n"
    )


def test_a_bug_keeps_its_traceback(fail: Callable[[BaseException], None]) -> None:
    # A RuntimeError with "memory" in its text was taken for too little memory.
    fail(RuntimeError("a hole in the memory of this program"))
    result = run("inspect", "dante")
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'; see: gpt2kit --help"),
        (["generate", "--nonsense"], "No such option: --nonsense"),
        (["explain", "dante"], "Missing argument 'TEXT|-'; see: gpt2kit explain --help"),
        (
            ["explain", "dante", "x", "--json", "--html", "y"],
            "give --json or --html, not both; see: gpt2kit explain --help",
        ),
        (["plot", "lens"], "Missing option '--prompt'; see: gpt2kit plot lens --help"),
        (  # It began with "Value error, ", which names no cause.
            ["tokenize", "a", "--unknown", "x"],
            "Invalid value for '--unknown': 'x' is not one of 'error', 'skip'; see: ",
        ),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(arguments: list[str], message: str) -> None:
    # It was a box of seven lines.
    result = CliRunner().invoke(app, arguments, prog_name="gpt2kit")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["surprisal", "t.jsonl", "--text", "text"],
        ["filter", "t.jsonl"],
        ["detect", "t.jsonl"],
        ["embed", "t.jsonl"],
        ["classify", "dante", "t.jsonl"],
        ["patch", "t.jsonl"],
        ["evaluate", "dante", "--task", "pairs", "t.jsonl"],
        ["ablate", "dante", "--heads", "0.0", "--task", "pairs", "t.jsonl"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_output_never_replaces_the_input(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The user's table was lost, and its digest in the receipt was that of the result.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"text": "Nel"}\n')
    result = run(*arguments, "--out", str(tmp_path / "t.jsonl"))
    assert "which is an input and would be replaced; give another name" in result.stderr
    assert result.exit_code == 2
    assert (tmp_path / "t.jsonl").read_text() == '{"text": "Nel"}\n'
