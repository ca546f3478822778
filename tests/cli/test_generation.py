"""generate, as a user types it: what is on stdout, what is on stderr, and the exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, write_hub
from typer.testing import CliRunner, Result

import gpt2kit
from gpt2kit.cli import app
from gpt2kit.cli.output import harmless
from gpt2kit.engine import native
from gpt2kit.model import GPT2


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2) -> str:
    return str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def generate(
    model: str, *arguments: str, stdin: str | bytes | None = None, seed: str | None = "1"
) -> Result:
    seeded = ["--seed", seed] if seed else []
    return run("generate", *arguments, "--model", model, "--device", "cpu", *seeded, stdin=stdin)


def text(model: str, *arguments: str, stdin: str | bytes | None = None) -> str:
    result = generate(model, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


# --- stdout ---------------------------------------------------------------------------------------


def test_stdout_is_the_prompt_and_its_continuation_and_nothing_else(model: str) -> None:
    expected = gpt2kit.generate(
        *gpt2kit.load(model, device="cpu"), "the end", max_tokens=12, seed=1
    )
    result = generate(model, "the end", "--max_tokens", "12")
    assert result.stdout == f"the end{expected}\n"
    assert result.stderr == ""


def test_no_prompt_leaves_the_continuation(model: str) -> None:
    assert text(model, "the end") == "the end" + text(model, "the end", "--no_prompt")


@pytest.mark.parametrize("prompt", ["-", None])
def test_the_prompt_comes_from_standard_input(model: str, prompt: str | None) -> None:
    arguments = [prompt] if prompt else []
    assert text(model, *arguments, stdin="Perché 🙂\n") == text(model, "Perché 🙂")


def test_bytes_that_are_not_utf8_are_replaced(model: str) -> None:
    assert text(model, "-", stdin=b"a\xffb") == text(model, "a\ufffdb")


def test_an_empty_prompt_starts_a_new_text(model: str) -> None:
    expected = gpt2kit.generate(*gpt2kit.load(model, device="cpu"), "", seed=1)
    assert text(model, "") == f"{expected}\n"


def test_dashes_and_underscores_are_the_same(model: str) -> None:
    assert text(model, "a", "--max-tokens", "5", "--top-k", "3") == text(
        model, "a", "--max_tokens", "5", "--top_k", "3"
    )


CHANGES: list[list[str]] = [
    ["--max_tokens", "5"],
    ["--temperature", "0"],
    ["--temperature", "3"],
    ["--top_k", "2"],
    ["--top_p", "0.1"],
    ["--min_p", "0.9"],
    ["--repetition_penalty", "50"],
    ["--presence_penalty", "2"],
    ["--frequency_penalty", "2"],
    ["--typical_p", "0.1"],
    ["--no_repeat_ngram", "1"],
    ["--ban", "e", "--ban", "a"],
    ["--bias", "64:100"],
    ["--bias", " the:100"],
    ["--seed", "2"],
    ["--num_samples", "2"],
    ["--overflow", "stop"],
    ["--draft", "MODEL"],
    ["--no_prompt"],
    ["--json"],
]


@pytest.mark.parametrize("option", CHANGES, ids=" ".join)
def test_every_option_changes_the_output(model: str, option: list[str]) -> None:
    plain = ["generate", "the end", "--model", model, "--device", "cpu", "--ignore_eos"]
    before = run(*plain, "--seed", "1").stdout
    option = [model if word == "MODEL" else word for word in option]
    after = run(*plain, *([] if option[0] == "--seed" else ["--seed", "1"]), *option)
    assert after.exit_code == 0, after.stderr
    assert after.stdout != before


def test_alternatives_are_in_the_json(model: str) -> None:
    found = json.loads(text(model, "a", "--json", "--top_logprobs", "3", "--max_tokens", "4"))
    expected = gpt2kit.complete(
        *gpt2kit.load(model, device="cpu"), "a", seed=1, max_tokens=4, top_logprobs=3
    )[0]
    assert found["top_logprobs"] == [
        [list(pair) for pair in each] for each in expected.top_logprobs or ()
    ]
    refused = generate(model, "a", "--top_logprobs", "3")
    assert refused.exit_code == 2
    assert "--json" in refused.stderr


def test_a_token_with_a_bias_is_given_as_its_id_or_as_its_text(model: str) -> None:
    options = ["--max_tokens", "3", "--no_prompt", "--ignore_eos"]
    assert text(model, "x", "--bias", "64:100", *options) == "aaa\n"
    assert text(model, "x", "--bias", "a:100", *options) == "aaa\n"
    assert text(model, "x", "--bias", "::100", *options) == ":::\n"


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ("abc", "has no number at its end"),
        ("a:b", "has no number at its end"),
        ("az:5", "takes one token, and the text 'az' has 2: 64 'a', 89 'z'"),
        ("with:5", "' with', the word with the space before it, is one token"),
        (":5", "takes one token, and the text '' has 0"),
        ("a:101", "from -100 to 100"),
        ("a:nan", "from -100 to 100"),
        ("99999:5", "has the id 99999, expected ids from 0 to 511"),
    ],
)
def test_a_bias_that_is_none_is_refused_in_one_line(model: str, bias: str, message: str) -> None:
    refused = generate(model, "x", "--bias", bias)
    assert refused.exit_code in (1, 2)
    assert refused.stdout == ""
    assert message in " ".join(refused.stderr.replace("│", " ").split())


def test_texts_to_ban_come_from_the_command_line_and_from_a_file(
    model: str, tmp_path: Path
) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(b" t\r\n\na\n")
    options = ["--max_tokens", "40", "--no_prompt", "--ignore_eos"]
    found = text(model, "x", "--ban", f"@{file}", *options)
    assert found == text(model, "x", "--ban", " t", "--ban", "a", *options)
    assert " t" not in found
    assert "a" not in found
    file.write_text("\n")
    refused = generate(model, "x", "--ban", f"@{file}")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "no texts to ban; expected one on each line" in refused.stderr


def test_a_text_has_the_least_number_of_tokens(model: str) -> None:
    marker = ["--bias", "511:100", "--no_prompt", "--json"]
    assert len(json.loads(text(model, "x", *marker))["tokens"]) == 1
    assert len(json.loads(text(model, "x", *marker, "--min_tokens", "7"))["tokens"]) == 8


def test_a_text_that_nothing_may_follow_ends_in_one_line(model: str) -> None:
    letters = [word for i in range(256) for word in ("--ban", chr(i)) if chr(i).isprintable()]
    lengths = ["--min_tokens", "600", "--max_tokens", "600"]
    refused = generate(model, "x", *lengths, "--no_repeat_ngram", "1", *letters)
    assert refused.exit_code == 1
    last = refused.stderr.strip().split("\n")[-1]
    assert "ban and no_repeat_ngram and min_tokens leave no token to go on with" in last


def test_stop_texts_and_markers_are_obeyed(model: str) -> None:
    whole = text(model, "a", "--ignore_eos", "--no_prompt")
    stop = whole[10:13]
    cut = text(model, "a", "--ignore_eos", "--no_prompt", "--stop", stop, "--stop", "never in it")
    assert cut == whole[: whole.index(stop)] + "\n"
    assert text(model, "<|endoftext|>a", "--special", "--no_prompt") != text(
        model, "<|endoftext|>a", "--no_prompt"
    )


def test_ignore_eos_goes_on_after_the_end(model: str) -> None:
    seeds = [str(seed) for seed in range(40)]
    ended = next(
        seed
        for seed in seeds
        if "end_of_text" in generate(model, "a", "--json", "--top_k", "0", seed=seed).stdout
    )
    found = json.loads(
        generate(model, "a", "--json", "--top_k", "0", "--ignore_eos", seed=ended).stdout
    )
    assert found["finish_reason"] == "max_tokens"
    assert "<|endoftext|>" in found["text"]


def test_several_samples_are_printed_one_after_the_other(model: str) -> None:
    options: Any = {"max_tokens": 8, "seed": 1, "num_samples": 3}
    completions = gpt2kit.complete(*gpt2kit.load(model, device="cpu"), "a", **options)
    expected = "\n\n".join("a" + completion.text for completion in completions)
    assert text(model, "a", "--max_tokens", "8", "--num_samples", "3") == f"{expected}\n"


@pytest.mark.parametrize("batch_size", ["1", "2", "16"])
@pytest.mark.parametrize("source", ["file", "-"])
def test_every_line_of_a_file_is_continued_as_it_would_be_alone(
    model: str, tmp_path: Path, batch_size: str, source: str
) -> None:
    prompts = ["the end", "a", "Perché no?", "the end"]
    (tmp_path / "prompts").write_text("\n\n".join(prompts) + "\r\n", encoding="utf-8")
    stdin = (tmp_path / "prompts").read_text(encoding="utf-8") if source == "-" else None
    name = "-" if source == "-" else str(tmp_path / "prompts")
    found = text(
        model,
        "--prompts_file",
        name,
        "--batch_size",
        batch_size,
        "--json",
        "--max_tokens",
        "9",
        stdin=stdin,
    )
    alone = [text(model, prompt, "--json", "--max_tokens", "9") for prompt in prompts]
    rows, expected = (
        [json.loads(line) for line in found.splitlines()],
        [json.loads(line) for line in alone],
    )
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in expected]
    assert [row["prompt"] for row in rows] == prompts


def test_no_prompt_changes_nothing_for_json(model: str) -> None:
    # The prompt has a field of its own, so nothing is to be done; it was a usage error.
    assert text(model, "a", "--json", "--no_prompt") == text(model, "a", "--json")


def test_json_has_the_text_tokens_logprobs_and_how_to_repeat_them(model: str) -> None:
    found = json.loads(text(model, "Perché", "--json", "--max_tokens", "6"))
    assert found.keys() == {
        "prompt",
        "text",
        "tokens",
        "finish_reason",
        "seed",
        "sample",
        "logprobs",
    }
    assert (found["prompt"], found["seed"], found["sample"], found["finish_reason"]) == (
        "Perché",
        1,
        0,
        "max_tokens",
    )
    assert len(found["tokens"]) == len(found["logprobs"]) == 6
    assert all(logprob < 0 for logprob in found["logprobs"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_every_dtype_writes_text(model: str, dtype: str) -> None:
    result = generate(model, "a", "--dtype", dtype, "--stats", "--max_tokens", "4")
    assert result.exit_code == 0
    assert dtype in result.stderr


@pytest.mark.parametrize("draft", ["lookup", "MODEL"])
def test_a_draft_changes_no_greedy_text(model: str, tmp_path: Path, draft: str) -> None:
    (tmp_path / "prompts").write_text("the end of the end of\na\nPerché no?\n")
    options = [
        "--prompts_file",
        str(tmp_path / "prompts"),
        "--temperature",
        "0",
        "--num_samples",
        "2",
        "--stop",
        "zz",
    ]
    plain = text(model, *options)
    assert text(model, *options, "--draft", draft.replace("MODEL", model)) == plain
    assert (
        text(
            model,
            *options,
            "--draft",
            draft.replace("MODEL", model),
            "--draft_tokens",
            "2",
            "--batch_size",
            "1",
        )
        == plain
    )
    seeded = ["a", "--num_samples", "3", "--repetition_penalty", "1.1"]
    assert text(model, *seeded, "--draft", "lookup") == text(model, *seeded)


def test_stats_say_how_many_proposals_were_accepted(model: str) -> None:
    pattern = (
        r"draft +(\d+) tokens proposed, ([\d.]+)% of them accepted, ([\d.]+) tokens per step\n"
    )
    arguments = ["a", "--stats", "--ignore_eos", "--max_tokens", "25", "--temperature", "0"]
    found = re.search(
        pattern, generate(model, *arguments, "--draft", model, "--draft_tokens", "3").stderr
    )
    assert found is not None
    assert found.groups() == ("18", "100.0", "4.00")
    assert "draft" not in generate(model, *arguments).stderr


# --- stderr ---------------------------------------------------------------------------------------


def test_a_drawn_seed_is_shown_and_repeats_the_text(model: str) -> None:
    first = generate(model, "a", seed=None)
    seed = re.fullmatch(r"seed (\d+)\n", first.stderr)
    assert seed is not None
    assert generate(model, "a", seed=seed[1]).stdout == first.stdout
    assert generate(model, "a", "--temperature", "0", seed=None).stderr == ""


def test_compile_compiles_the_step_and_stats_say_so(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        compiled.append(function)
        return function

    monkeypatch.setenv("GPT2KIT_NATIVE", "0")
    monkeypatch.setattr(torch, "compile", watched)
    plain = generate(model, "a", "--stats", "--max_tokens", "4")
    result = generate(model, "a", "--stats", "--max_tokens", "4", "--compile")
    assert result.stdout == plain.stdout
    assert "by torch\n" in plain.stderr
    assert "by torch compiled\n" in result.stderr
    assert len(compiled) == 1


def test_compile_is_refused_where_it_would_have_no_effect(model: str) -> None:
    if native.level() is not None:
        result = generate(model, "a", "--compile")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: --compile is for torch")


def test_stats_go_to_stderr(model: str) -> None:
    result = generate(model, "the end", "--stats", "--ignore_eos", "--max_tokens", "7")
    assert result.stdout == text(model, "the end", "--ignore_eos", "--max_tokens", "7")
    assert re.search(
        r"prompt +\d+ tokens, [\d,.]+ tokens/s, first new token after \d+\.\d+ s", result.stderr
    )
    assert re.search(r"decode +7 tokens, [\d,.]+ tokens/s", result.stderr)
    assert re.search(r"memory +[\d.]+ [MG]B at most", result.stderr)
    assert re.search(r"model +[\d.]+ kB of weights on cpu, float32, loaded in", result.stderr)


@pytest.mark.filterwarnings("default::gpt2kit.errors.Gpt2KitWarning")
def test_a_prompt_that_is_too_long_is_a_warning_with_both_lengths(model: str) -> None:
    result = generate(model, "x y " * 40, "--max_tokens", "2")
    assert result.exit_code == 0
    assert re.search(
        r"warning: the prompt has \d+ tokens, but the model reads at most 32: "
        r"the first \d+ are left out",
        result.stderr,
    )


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--max_tokens", "-1"], "max_tokens is -1, expected a whole number"),
        (["a", "--batch_size", "0"], "batch_size is 0, expected a whole number, 1 or more"),
        (["a", "--temperature", "-1"], "temperature is -1.0, expected a number, 0 or more"),
        (["a", "--temperature", "nan"], "temperature is nan"),
        (["a", "--top_p", "0"], "top_p is 0.0"),
        (["a", "--min_p", "2"], "min_p is 2.0"),
        (["a", "--dtype", "int4"], "dtype is 'int4', expected auto, float32"),
        (["a", "--device", "tpu9"], "device is 'tpu9'"),
        (["a", "--stop", ""], "a stop text is empty"),
        (["a", "--seed", "99999999999999999999999"], "seed is 99999999999999999999999"),
        (["--prompts_file", "/nowhere/prompts"], "/nowhere/prompts: No such file"),
        (["--prompts_file", os.devnull], "no prompts"),
        (["a", "--draft", "dante"], "the draft model dante has another vocabulary than"),
        (["a", "--draft", "my-novel"], "no model is called my-novel"),
        (
            ["a", "--draft", "lookup", "--draft_tokens", "65"],
            "draft_tokens is 65, expected a whole number, from 1 to 64",
        ),
        (["a", "--draft_tokens", "3"], "draft_tokens is given without a draft; add one (--draft)"),
        (
            ["a", "--compile", "--draft", "lookup"],
            "compile is for one token at a time, and a draft proposes several; leave out --compile",
        ),
        (["a", "--num_samples", "1000000000000"], "num_samples is 1000000000000"),
        (["a " * 60, "--overflow", "error"], "reads at most 32"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_one(
    model: str, arguments: list[str], message: str
) -> None:
    result = run(
        "generate",
        *arguments,
        "--model",
        model,
        *(["--device", "cpu"] if "--device" not in arguments else []),
    )
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--top_k", "x"],
        ["--nonsense"],
        ["a", "b"],
        ["a", "--prompts_file", "x"],
        ["a", "--overflow", "wrap"],
        ["--json", "--color", "always"],
    ],
)
def test_wrong_usage_is_exit_code_two(model: str, arguments: list[str]) -> None:
    assert run("generate", *arguments, "--model", model).exit_code == 2


def test_an_unknown_model_says_what_to_type() -> None:
    result = run("generate", "a", "--model", "my-novel")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no model is called my-novel" in result.stderr


def test_an_empty_prompts_file_is_an_error(model: str, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("\n \n")
    result = generate(model, "--prompts_file", str(tmp_path / "prompts"))
    assert result.exit_code == 1
    assert "no prompts; expected one on each line" in result.stderr


def test_a_model_that_is_not_here_is_downloaded_first_unless_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run("generate", "a", "--model", "124M")
    assert result.exit_code == 1
    assert "124M is not on this machine yet: downloading it" in result.stderr
    assert "HF_HUB_OFFLINE forbids" in result.stderr


# --- as a process ---------------------------------------------------------------------------------


def command(model: str, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gpt2kit",
        "generate",
        *arguments,
        "--model",
        model,
        "--device",
        "cpu",
        "--seed",
        "1",
    ]


def test_a_closed_pipe_is_no_error(model: str) -> None:
    process = subprocess.Popen(
        command(model, "a", "--max_tokens", "3000", "--ignore_eos"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdout is not None
    assert process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_terminal_without_unicode_gets_question_marks(model: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(
        command(model, "Perché 🙂", "--max_tokens", "2"),
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"Perch? ?")


def test_a_full_disk_is_one_line(model: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(model, "a", "--max_tokens", "2"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_ctrl_c_is_exit_code_130_without_a_traceback(model: str) -> None:
    process = subprocess.Popen(
        command(model, "a", "--max_tokens", "1000000", "--ignore_eos"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


class Terminal:
    """A gpt2kit generate that believes it is used by a person."""

    def __init__(self, model: str, *arguments: str, stdout: int | None = None) -> None:
        self._terminal, child = pty.openpty()
        command = [
            sys.executable,
            "-m",
            "gpt2kit",
            "generate",
            "--model",
            model,
            "--device",
            "cpu",
            *arguments,
        ]
        self.process = subprocess.Popen(
            command,
            stdin=child,
            stdout=child if stdout is None else stdout,
            stderr=child,
            close_fds=True,
        )
        os.close(child)
        self._shown = b""

    def read_until(self, wanted: str) -> str:
        """Return what is shown up to and with the wanted text."""
        end = wanted.encode().replace(b"\n", b"\r\n")
        while end not in self._shown:
            assert select.select([self._terminal], [], [], 60)[0], self._shown
            self._shown += os.read(self._terminal, 4096)
        before, _, self._shown = self._shown.partition(end)
        return (before + end).decode()

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def leave(self) -> int:
        self.type("\x04")
        code = self.process.wait(timeout=60)
        os.close(self._terminal)
        return code


def test_without_a_prompt_a_terminal_is_asked_for_prompts(model: str) -> None:
    options = ["--max_tokens", "4", "--temperature", "0"]
    terminal = Terminal(model, *options, "--overflow", "error")
    terminal.read_until("Ctrl-D leaves")
    terminal.read_until("> ")
    for prompt in ("the end", "Perché"):
        terminal.type(f"{prompt}\n")
        expected = gpt2kit.generate(
            *gpt2kit.load(model, device="cpu"), prompt, max_tokens=4, temperature=0
        )
        terminal.read_until(f"{prompt}{expected}\n")
        terminal.read_until("> ")
        terminal.type(f"{'too long ' * 20}\n")  # an error does not end the loop
        terminal.read_until("error: ")
        terminal.read_until("> ")
    assert terminal.leave() == 0


def test_ctrl_c_stops_the_text_and_not_the_prompt_loop(model: str) -> None:
    terminal = Terminal(model, "--max_tokens", "1000000", "--ignore_eos", "--stats", "--seed", "1")
    terminal.read_until("> ")
    terminal.type("the end\n")
    terminal.read_until("the end")
    time.sleep(0.5)
    terminal.process.send_signal(signal.SIGINT)
    rate = re.search(r"decode +[\d,]+ tokens, ([\d,.]+) tokens/s", terminal.read_until("at most"))
    assert rate is not None
    assert float(rate[1].replace(",", "")) < 1e6  # it used to be counted over no time at all
    terminal.read_until("> ")
    assert terminal.leave() == 0


def test_the_sign_that_asks_for_a_prompt_does_not_reach_a_file(model: str, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        terminal = Terminal(model, "--max_tokens", "2", "--seed", "1", stdout=out.fileno())
        terminal.read_until("> ")
        terminal.type("a\n")
        terminal.read_until("> ")
        assert terminal.leave() == 0
    assert (tmp_path / "out").read_text() == text(model, "a", "--max_tokens", "2")


def test_a_closed_stream_is_no_traceback(model: str) -> None:
    lines = [
        " ".join(command(model, "" if closed == "<&-" else "a", "--max_tokens", "2", closed))
        for closed in ("<&-", ">&-", "2>&-")
    ]
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    for process in [
        subprocess.Popen(["bash", "-c", line], **pipes) for line in lines
    ]:  # all at once: starting takes the time
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        assert process.returncode == 0, process.args


def test_prompts_can_come_from_a_pipe(model: str) -> None:
    arguments = " ".join(command(model, "--max_tokens", "2", "--json"))
    done = subprocess.run(
        ["bash", "-c", f"{arguments} --prompts_file <(printf 'a\nb\n')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["prompt"] for line in done.stdout.splitlines()] == ["a", "b"]


def test_arguments_are_utf8_whatever_the_locale_says(model: str) -> None:
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        command(model, "Perché", "--max_tokens", "0"),
        capture_output=True,
        env=environment,
        check=True,
    )
    assert done.stdout.decode() == "Perché\n"


@pytest.mark.parametrize("batch_size", ["1", "2", "16"])
def test_texts_and_samples_are_the_same_in_any_batch(
    model: str, tmp_path: Path, batch_size: str
) -> None:
    (tmp_path / "prompts").write_text("a\nthe end\n")
    arguments = [
        "--prompts_file",
        str(tmp_path / "prompts"),
        "--num_samples",
        "3",
        "--max_tokens",
        "5",
    ]
    assert text(model, *arguments, "--batch_size", batch_size) == text(
        model, *arguments, "--batch_size", "6"
    )
    rows = [
        json.loads(line)
        for line in text(model, *arguments, "--batch_size", batch_size, "--json").splitlines()
    ]
    assert [(row["prompt"], row["sample"]) for row in rows] == [
        (prompt, sample) for prompt in ("a", "the end") for sample in range(3)
    ]


def test_a_byte_order_mark_on_standard_input_is_not_part_of_the_prompt(model: str) -> None:
    assert text(model, "-", stdin=b"\xef\xbb\xbfa\n") == text(model, "a")


def test_the_version_is_shown() -> None:
    assert run("--version").stdout == f"gpt2kit {gpt2kit.__version__}\n"


def test_colors_are_for_terminals_and_change_nothing_else(model: str) -> None:
    plain = text(model, "the end", "--max_tokens", "20")
    assert text(model, "the end", "--max_tokens", "20", "--color", "auto") == plain  # no terminal
    shown_plain = harmless(plain)  # among colors, control characters are always written out
    always = text(model, "the end", "--max_tokens", "20", "--color", "always")
    assert "\x1b[48;5;" in always
    assert re.sub(r"\x1b\[[0-9;]*m", "", always) == shown_plain
    assert text(model, "the end", "--max_tokens", "20", "--color", "always") == always
    terminal = Terminal(model, "the end", "--max_tokens", "20", "--seed", "1", "--color", "auto")
    shown = terminal.read_until("12 and more").replace("\r\n", "\n")
    assert terminal.leave() == 0
    assert "\x1b[48;5;" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).startswith(shown_plain)
