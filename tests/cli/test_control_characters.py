"""No control character of a name, text or tensor reaches a terminal, from any command."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pty
import re
import shutil
import sys
import threading
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import pytest
import torch
import typer
from builders import write_hub
from conftest import make_model
from features_builders import write_sae
from peft_builders import write_peft
from safetensors.torch import load_file, save_file

from gpt2kit import cli
from gpt2kit.checkpoints.classifiers import LabelWords
from gpt2kit.cli import app, output
from gpt2kit.config import GPT2Config
from gpt2kit.tokenizers import CharTokenizer

# A terminal's title, blinking red by ESC and by the one-character CSI, text that runs backwards,
# a backspace, a line that is overwritten. A name may also have a newline and a byte that is not
# UTF-8, which Python holds as a lone surrogate.
ESCAPES = "\x1b]0;owned\x07\x1b[5;31m\x9b5m\u202ee\u2066\x7f\x08\rX"
NAME = f"{ESCAPES}\nY\udcff"
MODEL, OTHER, BROKEN, TF = NAME, f"{NAME}2", f"{NAME}broken", f"{NAME}tf"
SAE = f"{NAME}sae"
PEFT = f"{NAME}peft"
SPAM = f"{NAME}spam"
PATCHED = ("--model", MODEL, "--answer", "a", "--wrong", "b")
TEXT = f"the {ESCAPES}\x00 end is near\n" * 12
RAW = re.compile("\x1b\\]|\x1b\\[5;31m|[\x07\x9b\u202e\u2066\x7f\x08\x00\udcff]|\rX|\nY")


@pytest.fixture
def desk(weights: Path) -> Path:
    """Make models and texts with hostile names and contents in the working directory."""
    tokenizer = CharTokenizer(sorted(set(TEXT)))
    config = GPT2Config(n_vocab=len(tokenizer.tokens), n_ctx=32, n_embd=16, n_head=2, n_layer=2)
    for number, name in enumerate((MODEL, OTHER, BROKEN)):
        folder = write_hub(weights / "plain", make_model(config, seed=number))
        tokenizer.save(folder)
        if name is BROKEN:
            tensors = load_file(folder / "model.safetensors")
            save_file(tensors | {ESCAPES: torch.zeros(1)}, folder / "model.safetensors")
        folder.rename(weights / name)  # the library that writes it takes no such names
    (weights / TF).mkdir()
    (weights / f"{NAME}tf" / "checkpoint").write_text(
        f'model_checkpoint_path: "{ESCAPES}\nY"\n', newline=""
    )
    desk = weights.parent
    (desk / NAME).write_text(TEXT, newline="")
    (desk / f"{NAME}.jsonl").write_text(json.dumps({ESCAPES: 1}))
    write_sae(desk / "sae").rename(desk / SAE)
    kept = {"time": ESCAPES, "model": NAME, "prompt": ESCAPES, "text": f"a\n{ESCAPES}"}
    Path(os.environ["GPT2KIT_DATA"], "history.jsonl").write_text(json.dumps(kept))
    write_peft(desk / "peft", {ESCAPES: torch.zeros(1)}, f"{NAME[:-1]}base").rename(desk / PEFT)
    quoted = ESCAPES.replace('"', '""')
    (desk / f"{NAME}.labels.csv").write_text(f'text,label\nthe,end\nend,"{quoted}"\n' * 4)
    pair = {"prompt": "the ", "completion": ESCAPES}
    (desk / f"{NAME}.pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 4)
    shutil.copytree(weights / MODEL, weights / SPAM)
    LabelWords(("end", ESCAPES), "\n").write(weights / SPAM)
    (desk / f"{NAME}.csv").write_text(f'good,bad,paradigm\nthe,end,"{quoted}"\n')
    return desk


SHORT = ["--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8"]
STEPS = ["--max_steps", "2", "--eval_every", "1", "--batch_size", "2", "--sample_tokens", "30"]

# Each command in the ways in which it shows names and texts. The output of a plain text, such as
# that of generate, is written as it is into a pipe.
CASES: list[list[str]] = [
    ["generate", ESCAPES, "--model", MODEL, "--max_tokens", "60", "--seed", "1", "--stats"],
    ["generate", "the", "--model", MODEL, "--max_tokens", "60", "--color", "always"],
    ["generate", "the", "--model", MODEL, "--prompts_file", NAME],
    ["generate", "the", "--model", f"none/{NAME}"],
    ["generate", "the", "--model", MODEL, "--max_tokens", "3", "--steer", f"{ESCAPES} - the @1"],
    ["generate", "the", "--model", MODEL, "--max_tokens", "3", "--steer", "the - end @1 *2"],
    ["generate", "the", "--model", MODEL, "--steer", f"sae:{NAME}#1"],
    ["sae", NAME],
    ["sae", SAE],
    ["sae", SAE, "--model", MODEL, "--text", ESCAPES, "--top", "3"],
    ["sae", SAE, "--model", MODEL, "--text", ESCAPES, "--top", "3", "--json"],
    ["sae", SAE, "--model", MODEL, "--text", ESCAPES, "--feature", "3"],
    ["sae", SAE, "--model", MODEL, "--text", ESCAPES, "--feature", "3", "--color", "always"],
    ["sae", SAE, "--model", MODEL, "--text", ESCAPES, "--steer", "3=8", "--max_tokens", "5"],
    ["sae", SAE, "--model", MODEL, "--text", ESCAPES, "--steer", ESCAPES],
    ["sae", SAE, "--model", MODEL, "--corpus", NAME],
    ["generate", "--model", MODEL, "--prompts_file", NAME, "--max_tokens", "9"],
    ["generate", ESCAPES, "--model", MODEL, "--max_tokens", "60", "--json"],
    ["generate", "the", "--model", MODEL, "--ban", f"@none{NAME}"],
    ["generate", "the", "--model", MODEL, "--receipt", f"none{NAME}/{NAME}"],
    ["replay", NAME],
    ["replay", f"{NAME}.jsonl", ESCAPES],
    ["history"],
    ["history", ESCAPES],
    ["history", "--json"],
    ["serve", "--model", BROKEN, "--port", "0"],
    ["serve", "--model", f"none{NAME}"],
    ["serve", "--model", MODEL, "--host", ESCAPES],
    ["tokenize", ESCAPES, "--model", MODEL],
    ["tokenize", ESCAPES, "--model", MODEL, "--json"],
    ["tokenize", f"{ESCAPES}Z", "--model", MODEL],
    ["download", f"org/{NAME}"],
    ["download", NAME, "--source", "openai"],
    ["models"],
    ["models", "--json"],
    ["rm", OTHER],
    ["rm", OTHER, "--yes"],
    ["rm", f"none{NAME}"],
    ["convert", MODEL, "--to", f"{NAME}new"],
    ["convert", MODEL, "--to", f"{NAME}new", "--format", "gguf"],
    ["convert", MODEL, "--to", f"{NAME}new", "--format", "llmc"],
    ["convert", MODEL, "--to", f"{NAME}new", "--format", "peft"],
    ["convert", f"./{PEFT}", "--to", f"{NAME}new", "--format", "peft"],
    ["generate", "the", "--adapter", f"./{PEFT}", "--model", MODEL],
    ["merge", f"./{PEFT}", "--out", f"{NAME}new"],
    ["convert", MODEL, "--to", f"{NAME}new", "--format", "onnx"],
    ["convert", BROKEN, "--to", f"{NAME}new"],
    ["convert", TF, "--to", f"{NAME}new"],
    ["push", MODEL, NAME],
    ["push", MODEL, "org/name", "--dry_run", f"{NAME}new"],
    ["push", f"none{NAME}", "org/name", "--dry_run", f"{NAME}new"],
    ["push", MODEL, "org/name", "--license", ESCAPES],
    ["inspect", MODEL],
    ["inspect", MODEL, "--json"],
    ["inspect", MODEL, "--modules"],
    ["inspect", MODEL, "--vocabulary"],
    ["inspect", MODEL, "--vocabulary", "--json"],
    ["inspect", BROKEN],
    ["inspect", TF],
    ["verify", MODEL],
    ["verify", BROKEN],
    ["train", NAME, *SHORT, *STEPS, "--out", f"{NAME}run"],
    ["train", f"none{NAME}"],
    ["finetune", NAME, "--model", MODEL, *STEPS, "--block_size", "8"],
    ["finetune", NAME, "--model", f"none{NAME}"],
    ["finetune", f"{NAME}.pairs.jsonl", "--model", MODEL, *STEPS, "--block_size", "8"],
    ["finetune", f"{NAME}.labels.csv", "--model", MODEL, *STEPS, "--label_field", "label"],
    ["classify", SPAM, NAME, "--format", "txt"],
    ["classify", SPAM, NAME, "--format", "txt", "--json"],
    ["classify", SPAM, f"{NAME}.labels.csv", "--label", "label", "--out", f"{NAME}new.csv"],
    ["classify", MODEL, NAME],
    ["recipes", NAME],
    ["merge", NAME, "--out", f"{NAME}new"],
    ["corpus", NAME, "--block_size", "16"],
    ["corpus", NAME, "--tokenizer", "word", "--block_size", "16"],
    ["corpus", NAME, "--model", MODEL, "--json"],
    ["corpus", f"none{NAME}"],
    ["synthetic", "brackets", "--out", f"{NAME}new.txt", "--characters", "40"],
    ["synthetic", "repeats", "--out", NAME],
    ["synthetic", ESCAPES, "--out", NAME],
    ["plan", NAME, "--model", MODEL],
    ["plan", f"{NAME}.jsonl", "--model", MODEL],
    ["evaluate", MODEL, OTHER, "--corpus", NAME],
    ["evaluate", MODEL, "--task", "lambada", f"{NAME}.jsonl"],
    ["evaluate", MODEL, "--task", "pairs", f"{NAME}.jsonl"],
    ["evaluate", MODEL, "--task", "pairs", f"{NAME}.csv", "--out", f"{NAME}new.csv"],
    ["evaluate", MODEL, "--task", "syntaxgym", f"{NAME}.csv"],
    ["evaluate", MODEL, "--corpus", NAME, "--encoding", ESCAPES],
    ["score", NAME, "--model", MODEL],
    ["score", NAME, "--model", MODEL, "--json"],
    ["score", f"{NAME}.jsonl", "--model", MODEL, "--out", f"{NAME}out"],
    ["score", f"{NAME}.jsonl", "--model", MODEL, "--out", f"{NAME}out", "--on_error", "stop"],
    ["score", f"{NAME}.csv", "--model", MODEL, "--out", f"{NAME}out"],
    ["parts", NAME],
    ["surprisal", NAME, "--model", MODEL],
    ["surprisal", NAME, "--model", MODEL, "--unit", "token", "--json"],
    ["surprisal", NAME, "--model", MODEL, "--words", ESCAPES, "--by", "item"],
    ["surprisal", NAME, "--model", MODEL, "--out", f"{NAME}.csv"],
    ["cloze", "the end", "--model", MODEL, "--most", "20"],
    ["cloze", ESCAPES, "--model", MODEL, "--most", "20", "--json"],
    ["filter", NAME, "--model", MODEL, "--format", "txt", "--out", f"{NAME}new.csv"],
    ["filter", f"{NAME}.jsonl", "--model", MODEL, "--out", f"{NAME}new.jsonl"],
    ["detect", NAME, "--model", MODEL, "--format", "txt"],
    ["embed", NAME, "--model", MODEL, "--format", "txt", "--out", f"{NAME}new.jsonl"],
    ["detect", NAME, "--model", MODEL, "--format", "txt", "--json"],
    ["detect", NAME, "--model", MODEL, "--calibration", f"none{NAME}"],
    ["diff", MODEL, OTHER, "--corpus", NAME],
    ["diff", MODEL, BROKEN],
    ["blend", MODEL, OTHER, "--alpha", "0.5", "--out", f"{NAME}new"],
    ["originality", NAME, "--corpus", NAME],
    ["originality", NAME, "--corpus", NAME, "--list"],
    ["explain", MODEL, ESCAPES, "--lens", "--attention", "0.1", "--attribution"],
    ["explain", MODEL, ESCAPES, "--color", "always"],
    ["explain", MODEL, ESCAPES, "--json"],
    ["explain", MODEL, ESCAPES, "--html", f"{NAME}.html"],
    ["explain", MODEL, ESCAPES, "--html", f"{NAME}.html", "--switch_heads"],
    ["explain", MODEL, "the", "--attribution", "--target", ESCAPES],
    ["heads", MODEL, "--text", ESCAPES, "--length", "4"],
    ["heads", MODEL, "--json", "--out", f"{NAME}new.csv"],
    ["heads", MODEL, "--picture", f"{NAME}.png"],
    ["heads", f"none{NAME}"],
    [
        "patch",
        "--model",
        MODEL,
        "--clean",
        ESCAPES,
        "--corrupt",
        ESCAPES,
        "--answer",
        "a",
        "--wrong",
        "b",
    ],
    ["patch", f"none{NAME}.csv"],
    ["ablate", MODEL, "--heads", "0.1", "--over", NAME],
    ["ablate", MODEL, "--heads", "all", "--each", "--over", NAME, "--out", f"{NAME}new.csv"],
    ["ablate", MODEL, "--heads", "0.1", "--over", f"none{NAME}"],
    ["ablate", MODEL, "--heads", ESCAPES, "--over", NAME],
    ["ablate", MODEL, "--mlps", "0", "--prompt", ESCAPES, "--answer", ESCAPES, "--wrong", "a"],
    ["ablate", MODEL, "--mlps", "0", "--task", "pairs", f"{NAME}.csv", "--json"],
    ["neighbors", ESCAPES, "+the", "-end", "--model", MODEL],
    ["neighbors", ESCAPES, "the", "--model", MODEL],
    ["neighbors", ESCAPES, "--model", MODEL, "--json"],
    ["neighbors", NAME, "--model", MODEL],
    ["plot", "tokens", "--model", MODEL, "--prompt", ESCAPES, "--out", f"{NAME}.png"],
    ["plot", "tokens", "--model", MODEL, "--prompt", ESCAPES, "--out", f"{NAME}.gif"],
    ["plot", "mlp-in-out", "--model", MODEL, "--prompt", ESCAPES, "--out", f"{NAME}.png"],
    ["plot", "losses", "--run", f"none{NAME}"],
    ["plot", "gradients", "--run", f"none{NAME}"],
    # usage errors, which typer would print by itself
    [NAME],
    ["generate", f"--{NAME}"],
    ["generate", "the", NAME],
    ["generate", "the", "--top_k", NAME],
    ["generate", "the", "--overflow", NAME],
    ["models", f"--json={NAME}"],
    ["plot", NAME],
]


def run(arguments: Sequence[str], streams: Sequence[TextIO], patch: pytest.MonkeyPatch) -> None:
    """Run a command with these streams as stdout and stderr."""
    patch.setenv("TERM", "xterm-256color")
    patch.delenv("NO_COLOR", raising=False)
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"n\n")))
    patch.setattr(sys, "stdout", streams[0])
    patch.setattr(sys, "stderr", streams[1])
    output.prepare_streams()
    with pytest.raises(SystemExit):
        app(arguments)


def run_on_terminal(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return everything that a command sends to a pseudo-terminal."""
    master, slave = pty.openpty()
    tty.setraw(slave)  # newlines stay newlines
    received: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # when the other end is closed
            while data := os.read(master, 65536):
                received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with (
        os.fdopen(slave, "w", encoding="utf-8") as screen,
        os.fdopen(os.dup(slave), "w", encoding="utf-8") as also_screen,
        monkeypatch.context() as patch,
    ):
        run(arguments, (screen, also_screen), patch)
    reader.join()
    os.close(master)
    return b"".join(received).decode("utf-8", errors="surrogateescape")


def run_in_pipes(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Return what a command writes to stdout and stderr if they are no terminal."""
    pipes = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(pipe, encoding="utf-8", newline="") for pipe in pipes]
    with monkeypatch.context() as patch:
        run(arguments, streams, patch)
    for stream in streams:
        stream.flush()
    stdout, stderr = (pipe.getvalue().decode("utf-8", "surrogateescape") for pipe in pipes)
    return stdout, stderr


every_case = pytest.mark.parametrize(
    "arguments", CASES, ids=lambda case: " ".join(re.findall(r"[a-z_-]{3,}", " ".join(case)))
)


@every_case
@pytest.mark.filterwarnings("default")
def test_a_terminal_is_shown_escapes_and_obeys_none(
    arguments: list[str],
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Names, texts and messages were written to the terminal as they were.
    screen = run_on_terminal(arguments, monkeypatch)
    assert RAW.search(screen) is None
    assert screen


@every_case
@pytest.mark.filterwarnings("default")
def test_logs_and_json_are_harmless_too(
    arguments: list[str], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout, stderr = run_in_pipes(arguments, monkeypatch)
    assert RAW.search(stderr) is None
    if "--json" in arguments:
        assert RAW.search(stdout) is None
        for line in stdout.splitlines():
            json.loads(line)


def test_a_pipe_gets_texts_and_paths_as_they_are(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", ESCAPES, "--model", MODEL, "--max_tokens", "60", "--seed", "1"]
    assert run_in_pipes(arguments, monkeypatch)[0].startswith(ESCAPES)
    assert run_in_pipes(["convert", MODEL, "--to", f"{NAME}new"], monkeypatch)[0] == f"{NAME}new\n"


def test_every_command_is_among_the_cases() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == {case[0] for case in CASES} - {NAME}


FOLDER = Path(cli.__file__).parent
WRITERS = re.compile(
    r"print|input|Console|rich\.print|typer\.(echo|secho|confirm|prompt|style)"
    r"|sys\.(stdout|stderr)(\.buffer)?\.write(lines)?"
)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_only_output_py_writes_to_the_terminal(path: Path) -> None:
    if path.name in ("output.py", "generation.py"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not [call for call in calls if WRITERS.fullmatch(call)]
