"""The commands that write, each on tiny models and texts in an empty folder."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
from builders import add_vocabulary
from bulk_builders import WORDS, write_texts
from conftest import make_model
from servers import FakeHub
from training_builders import VERSES

from campaigns.luck_child import Child
from gpt2kit.checkpoints.load import write_model
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.tokenizers import CharTokenizer, load_tokenizer

_TRAINING = (
    "--block_size=16 --batch_size=2 --warmup=1 --eval_every=2 --save_every=1 --sample_tokens=4 "
    "--dtype=float32 --device=cpu --seed=1"
)
_SHAPE = "--n_layer=1 --n_head=2 --n_embd=16"
SECONDS = 300.0  # after which a command that has not ended is stuck, on a busy machine too


@dataclass(frozen=True)
class Command:
    """A command, what is there before it, and how it is given again after it was stopped.

    It is called in a folder, and what it writes is in `made`. `prepare` writes what is there
    before. `again` is added the second time if `when` is there then.
    """

    name: str
    prepare: Callable[[Path], None]
    words: str | Callable[[], Any]
    again: str = ""
    when: str = ""
    inputs: tuple[str, ...] = ()  # what can be cut short while it is read, and cannot be taken
    texts: tuple[str, ...] = ()  # the same, but a part of it cannot be told from the whole
    spare: tuple[str, ...] = ()  # what it does without if it cannot be written
    only_once: bool = False  # it is refused when all is done
    dated: bool = False  # it writes the times of files
    server: Callable[[], AbstractContextManager[None]] | None = None

    def body(self, place: Path) -> Callable[[], Any]:
        """Return what the process does."""
        if callable(self.words):
            return self.words
        words = self.words.split()
        if self.when and os.path.lexists(place / self.when):
            words += self.again.split()
        return lambda: call(words)


# A fork has what its parent made: all commands, once (conftest keeps them).
typer.main.get_command(app)


def call(words: list[str]) -> None:
    """Be the program."""
    from gpt2kit.__main__ import main

    sys.argv = ["gpt2kit", *words]
    main()


def finished(place: Path, words: str) -> None:
    """Run a command to its end."""
    if words.startswith(("train", "finetune")):
        import torch._dynamo  # noqa: F401  # or every fork that trains would import it

    ended = Child(lambda: call(words.split()), place).end(SECONDS)
    if ended.code:
        raise AssertionError(f"{words}: {ended.code}: {ended.said}")


# --- what is there before -------------------------------------------------------------------------


def _model(folder: Path, *, seed: int = 0, n_embd: int = 32) -> None:
    config = GPT2Config(n_vocab=512, n_ctx=32, n_embd=n_embd, n_head=2, n_layer=1)
    add_vocabulary(folder) if folder.exists() else folder.mkdir(parents=True)
    add_vocabulary(folder)
    tokenizer = load_tokenizer(folder)
    write_model(folder, make_model(config, seed=seed), tokenizer)


def model(place: Path) -> None:
    """A model and another one, texts and words to measure."""
    _model(place / "model")
    _model(place / "other", seed=1)
    for name in ("made", "weights", "cache"):
        (place / name).mkdir()
    (place / "verses.txt").write_text(VERSES, encoding="utf-8")
    write_texts(place / "texts.jsonl", 24)
    (place / "lines.txt").write_text(
        "".join(f"{a} {b}.\n" for a, b in zip(WORDS, WORDS[3:], strict=False))
    )
    with (place / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        rows.writerows(
            [n, f"the {a} on the {b}"]
            for n, (a, b) in enumerate(zip(WORDS, WORDS[2:], strict=False))
        )


def letters(place: Path) -> None:
    """A model of characters as a training writes it."""
    model(place)
    tokenizer = CharTokenizer.from_text(VERSES)
    config = GPT2Config(n_vocab=tokenizer.n_vocab, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
    (place / "letters").mkdir()
    write_model(place / "letters", make_model(config), tokenizer)


def trained(place: Path) -> None:
    """A run that has ended."""
    model(place)
    finished(place, f"train verses.txt {_SHAPE} {_TRAINING} --max_steps=3 --out=made/run")


def adapted(place: Path) -> None:
    """A run that has trained adapters."""
    letters(place)
    finished(
        place,
        f"finetune verses.txt --model=letters {_TRAINING} --max_steps=2 --lora_rank=2 --out=run",
    )


def scored(place: Path) -> None:
    """The finished parts of a command over many files."""
    model(place)
    finished(place, "score texts.jsonl --model=model --out=parts --part_rows=6 --text_field=text")


def installed(place: Path) -> None:
    """A model in the folder of models, as a run, with int8 weights beside it."""
    model(place)
    _model(place / "weights" / "mine")
    (place / "weights" / "mine" / "run.json").write_text("{}")


def replaced(place: Path) -> None:
    """A model where the command is going to write one."""
    model(place)
    shutil.copytree(place / "other", place / "made" / "out")


# --- servers --------------------------------------------------------------------------------------


def _files() -> dict[str, bytes]:
    """A model as it is on the Hub."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        _model(Path(folder) / "model")
        return {path.name: path.read_bytes() for path in (Path(folder) / "model").iterdir()}


@contextmanager
def hub() -> Iterator[None]:
    """A Hub in a process of its own, so that a fork copies no thread of it."""
    files = _files()
    read, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        server = FakeHub()
        server.add("me/tiny", files)
        os.write(told, server.url.encode())
        while True:
            time.sleep(3600)
    os.environ["HF_ENDPOINT"] = os.read(read, 100).decode()
    os.close(read)
    os.close(told)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        del os.environ["HF_ENDPOINT"]


COMMANDS = [
    Command(
        "train",
        model,
        f"train verses.txt {_SHAPE} {_TRAINING} --max_steps=4 --out=made/run",
        "--resume",
        "made/run/run.json",
        texts=("verses.txt",),
        spare=("made/run/loss.png",),
    ),
    Command(
        "finetune",
        letters,
        f"finetune verses.txt --model=letters {_TRAINING} --max_steps=3 --out=made/run",
        "--resume",
        "made/run/run.json",
        inputs=("letters/model.safetensors",),
        spare=("made/run/loss.png",),
    ),
    Command(
        "finetune with adapters",
        letters,
        f"finetune verses.txt --model=letters {_TRAINING} --max_steps=3 --lora_rank=2 "
        "--out=made/run",
        "--resume",
        "made/run/run.json",
        spare=("made/run/loss.png",),
    ),
    Command(
        "more steps",
        trained,
        f"train verses.txt {_SHAPE} {_TRAINING} --max_steps=6 --out=made/run --resume",
        inputs=("made/run/states/step-00000003/weights.safetensors",),
        spare=("made/run/loss.png",),
    ),
    Command(
        "convert",
        replaced,
        "convert model --to made/out --force",
        inputs=("model/model.safetensors",),
    ),
    Command(
        "convert to GGUF",
        model,
        "convert model --to made/m.gguf --format gguf",
        "--force",
        "made/m.gguf",
        inputs=("model/model.safetensors",),
    ),
    Command(
        "convert to llm.c",
        model,
        "convert model --to made/m.bin --format llmc",
        "--force",
        "made/m.bin",
    ),
    Command(
        "convert to ONNX", model, "convert model --to made/out --format onnx", "--force", "made/out"
    ),
    Command(
        "convert to PEFT", adapted, "convert run --to made/out --format peft", "--force", "made/out"
    ),
    Command("merge", adapted, "merge run --out made/out", "--force", "made/out"),
    Command(
        "blend",
        model,
        "blend model other --alpha 0.6 --out made/out",
        "--force",
        "made/out",
        inputs=("other/model.safetensors",),
    ),
    Command("download", model, "download me/tiny", server=hub),
    Command(
        "generate with a receipt",
        model,
        "generate the --model model --seed 1 --max_tokens 4 --receipt made/r.json --receipt_text",
        inputs=("model/model.safetensors",),
    ),
    Command(
        "keep int8 weights",
        installed,
        "generate the --model weights/mine --quantize int8 --seed 1 --max_tokens 2",
        spare=("weights/mine/",),
        dated=True,
    ),
    Command(
        "surprisal",
        model,
        "surprisal lines.txt --model model --out made/words.csv",
        texts=("lines.txt",),
    ),
    Command(
        "embed",
        model,
        "embed rows.csv --text text --model model --out made/vectors.npz",
        texts=("rows.csv",),
    ),
    Command(
        "filter",
        model,
        "filter rows.csv --text text --model model --out made/kept.jsonl",
        texts=("rows.csv",),
    ),
    Command(
        "score by the pile",
        model,
        "score texts.jsonl --text_field=text --model model --out made/parts --part_rows=6",
        texts=("texts.jsonl",),
    ),
    Command(
        "score with workers",
        model,
        "score texts.jsonl --text_field=text --model model --out made/parts --part_rows=6 "
        "--workers 2",
    ),
    Command(
        "generate by the pile",
        model,
        "generate --prompts texts.jsonl --model model --seed 1 --max_tokens 3 --out made/parts "
        "--part_rows=6",
    ),
    Command("merge parts", scored, "parts parts --merge made/all.jsonl"),
    Command("plot", trained, "plot losses --run made/run --out made/losses.svg"),
    Command("remove", installed, "rm mine --yes", only_once=True),
    Command(
        "card for the Hub",
        trained,
        "push made/run me/verses --dry_run made/card",
        "--force",
        "made/card",
    ),
]
