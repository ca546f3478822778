"""README.md and docs/: every command runs and prints what is shown, and every link has a target.

In a console block a line that begins with "$ " is a command, and the lines below it are its output;
"…" stands for omitted output. No output is shown for a command that needs GPT-2 or a large text:
here the fixture `desk` provides small files in their place. SHORTER makes trainings and their texts
short. Commands of other programs are listed in ELSEWHERE. `gpt2kit serve` serves in the background,
on a free port in place of 8000, until the page's next server or its end.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from builders import add_vocabulary, write_hub, write_layout, write_nanogpt
from conftest import GOLDEN
from features_builders import matrices, write_sae
from peft_builders import adapted
from serve_builders import Background
from servers import FakeHub, FakeOpenAI, take_uploads
from training_builders import VERSES
from typer.testing import CliRunner

from gpt2kit.checkpoints.courses import LLMS_FROM_SCRATCH, TOY
from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.model import GPT2
from gpt2kit.store import catalogue
from gpt2kit.store.catalogue import Publication, PublishedFile

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("learn/*.md"))]
THEIRS = GOLDEN / "tf" / "micro-deep"  # instead of OpenAI's 124M

# Appended to these commands, where they override the page's options: three steps of a tiny model.
_TINY = (
    "--max_steps 3 --block_size 16 --batch_size 2 --warmup 1 --eval_every 3 --sample_tokens 4 "
    "--dtype float32"
)
SHORTER = {
    "finetune": _TINY,
    "train": f"{_TINY} --n_layer 2 --n_head 2 --n_embd 16",
    "synthetic": "--characters 8000",  # a training measures itself on a tenth of the text
}
# These test the options on the pages, since their commands are not run here.
ELSEWHERE = {
    "torchrun": "tests/training/test_distributed.py",
    "python": "the script is there; tests/scripts",
    "pip": ".ci/run",
    "hf": "huggingface_hub's program",
    "lm_eval": "another project's program",
}
# Options in the text that are not gpt2kit's.
OTHERS_OPTIONS = {
    "--help",
    "--ignore-eos",
    "--no-deps",
    "--require-hashes",
    "--nproc-per-node",
    "--max-restarts",
    "--array",
    "--cpus-per-task",
    "--requeue",
    "--model_args",
    "--tasks",
    "--against",
    "--tl_python",
    "--minicons_python",
    "--rounds",
    "--batch_size",
    "--sizes",
    "--without",
    "--engines",
    "--tokens",
    "--minutes",
    "--llama_server",
    "--transformers",
    "--cases",
    "--case",
    "--nanogpt",
}


# --- reading the pages ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A command of a page, and the lines that the page shows below it."""

    command: str
    shown: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The words as a shell has them: comments gone, quotes undone, < > | on their own."""
        plain = re.sub(
            r"\$'([^']*)'", lambda found: "'" + found[1].replace(r"\n", "\n") + "'", self.command
        )
        words = shlex.shlex(plain, posix=True, punctuation_chars="<>|")
        words.whitespace_split = True
        return list(words)

    @property
    def code(self) -> int:
        """The exit code: 1 where the page shows an error, 0 elsewhere."""
        return 1 if any(line.startswith("error: ") for line in self.shown) else 0


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def examples(page: Path) -> list[Example]:
    found: list[Example] = []
    for block in blocks(page, "console"):
        for command, rest in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            found.append(
                Example(command, tuple(rest.rstrip("\n").split("\n")) if rest.strip() else ())
            )
    return found


@functools.cache
def program() -> Any:
    return typer.main.get_command(app)


@functools.cache
def commands() -> dict[str, set[str]]:
    """Return the commands of gpt2kit, `plot KIND` among them, and the options of each."""
    found = {}

    def walk(command: Any, name: str) -> None:
        found[name] = {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for below, one in getattr(command, "commands", {}).items():
            if not one.hidden:
                walk(one, f"{name} {below}".strip())

    walk(program(), "")
    return found


# --- a desk with what the pages talk about --------------------------------------------------------


def stand_in(folder: Path, seed: int) -> Path:
    """Write a folder with GPT-2's files, a vocabulary of 512 tokens, and weights for the seed."""
    model, _ = load(THEIRS, device="cpu", dtype="float32")
    with torch.no_grad():
        model.wte.weight.mul_(1 + seed / 10)
    folder.mkdir(parents=True)
    (folder / "generation_config.json").write_text("{}")
    return add_vocabulary(write_hub(folder, model))


def publish(
    weights: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub, bucket: FakeOpenAI
) -> None:
    """Serve the stand-in for 124M as the Hub, and the TensorFlow checkpoint behind it as OpenAI."""
    files = {path.name: path.read_bytes() for path in (weights / "124M").iterdir()}
    small = GOLDEN / "bpe" / "small"
    theirs = {
        path.name: path.read_bytes()
        for path in THEIRS.iterdir()
        if path.suffix != ".npz" and path.name != "tensors.json"
    }
    theirs |= {
        "encoder.json": (small / "vocab.json").read_bytes(),
        "vocab.bpe": (small / "merges.txt").read_bytes(),
    }
    known = [
        tuple(
            PublishedFile(name, len(body), hashlib.sha256(body).hexdigest())
            for name, body in each.items()
        )
        for each in (files, theirs)
    ]
    hub.add("openai-community/gpt2", files)
    hub.add("someone/gpt2-novel", files)
    lora = adapted(weights.parent / "lora", load(THEIRS, device="cpu")[0])
    write_config = lora / "adapter_config.json"
    write_config.write_text(write_config.read_text().replace(str(lora.parent / "base"), "gpt2"))
    hub.add("someone/gpt2-lora", {path.name: path.read_bytes() for path in lora.iterdir()})
    bucket.add("124M", theirs)
    small_catalogue = {
        "124M": Publication(
            repository="openai-community/gpt2",
            hub_files=known[0],
            openai_directory="124M",
            openai_files=known[1],
        )
    }
    monkeypatch.setattr(catalogue, "PUBLICATIONS", small_catalogue)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    take_uploads(hub, monkeypatch)
    monkeypatch.setenv("GPT2KIT_OPENAI_URL", bucket.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)


def write_suites() -> None:
    """Write minimal pairs, a folder as BLiMP's, and one as SyntaxGym's."""
    Path("pairs.csv").write_text("good,bad\nThe cats sleep.,The cats sleeps.\n")
    Path("blimp").mkdir()
    pair = {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."}
    Path("blimp/agreement.jsonl").write_text(json.dumps(pair) + "\n")
    Path("syntaxgym").mkdir()
    regions = [
        {"region_number": 1, "content": "The cats"},
        {"region_number": 2, "content": "sleep"},
    ]
    suite = {
        "predictions": [{"type": "formula", "formula": "(2;%match%) < (1;%match%)"}],
        "items": [
            {"item_number": 1, "conditions": [{"condition_name": "match", "regions": regions}]}
        ],
    }
    Path("syntaxgym/number.json").write_text(json.dumps(suite))


def write_courses() -> None:
    """Write the files of two courses: GPT-2's vocabulary without a layer, and a ToyGPT."""
    shape = GPT2Config(n_vocab=50257, n_ctx=128, n_embd=8, n_head=1, n_layer=0)
    write_layout(
        Path("gpt2-small-124M.pth"), LLMS_FROM_SCRATCH, replace(shape, tie_word_embeddings=False)
    )
    text = "The dog ate my homework. The cat drank milk."
    Path("toy.txt").write_text(text)
    toy = GPT2Config(
        n_vocab=len(set(text)),
        n_ctx=32,
        n_embd=32,
        n_head=4,
        n_layer=3,
        qkv_bias=False,
        tie_word_embeddings=False,
        head_bias=True,
    )
    write_layout(Path("toy_gpt_model.pth"), TOY, toy)


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, texts and checkpoints of a desk; each test gets a copy."""
    folder = tmp_path_factory.mktemp("desk")
    with contextlib.chdir(folder):
        for seed, name in enumerate(("124M", "355M", "novel")):
            stand_in(folder / "weights" / name, seed)
        write_texts()
        write_suites()
        shutil.copytree(GOLDEN / "tf" / "micro-adam", "checkpoint/run1")
        shape = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        write_nanogpt(Path("out/ckpt.pt"), GPT2(replace(shape, activation_function="gelu")))
        write_courses()
        write_sae(
            Path("dante-sae"), matrices(192, 64), metadata={"hook_name": "blocks.4.hook_resid_pre"}
        )
    return folder


def write_texts() -> None:
    """Write texts and tables under the names that the pages use."""
    for name in ("divina", "book", "val", "names", "the-verdict", "tinyshakespeare"):
        Path(f"{name}.txt").write_text(VERSES * 6 + "ROMEO:\n", encoding="utf-8")
    for name in ("letter", "prompts", "sentences", "happy", "sad"):
        Path(f"{name}.txt").write_text("The dog\nThe cat sat\n")
    write_examples()
    Path("reading.csv").write_text(
        "item,position,word,rt\n1,2,mezzo,402\n1,1,Nel,310\n1,3,del,280\n2,1,vita,333\n"
    )
    Path("corpus").mkdir()
    Path("corpus/a.jsonl").write_text('{"text": "The dog"}\n{"text": "The cat sat"}\n')
    Path("corpus/b.txt").write_text("The dog\n\nThe cat\n")
    Path("stimuli.csv").write_text("item,sentence\n1,The dog ate\n")
    Path("cloze.csv").write_text("before,word\nThe dog,ate\n")
    Path("patches.csv").write_text("clean,corrupt,answer,wrong\ndi vi,di co,t,s\n")
    rewritten = {"text": "The dog ate", "rewritings": ["The dog sat", "The cat ate the dog"]}
    Path("rewritten.jsonl").write_text(json.dumps(rewritten) + "\n")
    Path("texts.jsonl").write_text(json.dumps({"text": "The dog ate the cat"}) + "\n")
    for name, texts in (("human", VERSES), ("machine", VERSES[::-1])):
        rows = [json.dumps({"text": line}) for line in texts.splitlines()[:4]]
        Path(f"{name}.jsonl").write_text("\n".join(rows))
    first = "Nel mezzo del cammin di nostra vita"
    Path("forbidden.txt").write_text("Vergilius\nvita\n")
    lines = (first, first.replace("cammin", "camino"), "vita nostra di cammin del mezzo Nel")
    Path("lines.txt").write_text("".join(f"{line}\n" for line in lines))
    Path("lambada.jsonl").write_text(json.dumps({"text": "The dog ate the cat"}) + "\n")
    endings = ["barks.", "sings an aria.", "is a cat.", "flies."]
    Path("hellaswag.jsonl").write_text(
        json.dumps({"ind": 0, "ctx": "The dog", "endings": endings, "label": 0}) + "\n"
    )


def write_examples() -> None:
    """Write tables of examples to learn."""
    pairs = [{"prompt": "The dog", "completion": "ate"}, {"prompt": "The cat", "completion": "sat"}]
    Path("pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs * 4))
    named = [{"instruction": each["prompt"], "output": each["completion"]} for each in pairs]
    Path("instruction-data.json").write_text(json.dumps(named))
    Path("sms.csv").write_text("text,label\n" + "win now,spam\nsee you,ham\nok,ham\n" * 3)
    Path("new.csv").write_text("text\nThe dog\n")
    Path("new.txt").write_text("The dog\n")


@pytest.fixture
def desk(tmp_path: Path, furnished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with models, texts and checkpoints under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "GPT2KIT_WEIGHTS": "weights",
        "COLUMNS": "100",
        "HF_HOME": str(tmp_path / "hf"),
        "TERM": "dumb",
    }.items():
        monkeypatch.setenv(name, value)
    for name, shape in SIZES.items():  # planning them all would take half a minute
        monkeypatch.setitem(SIZES, name, replace(shape, n_layer=1))
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    hub, bucket = FakeHub(), FakeOpenAI()
    publish(tmp_path / "weights", monkeypatch, hub, bucket)
    yield tmp_path
    hub.close()
    bucket.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    """What `gpt2kit serve` starts, instead of serving until a signal comes."""
    found = Background()
    monkeypatch.setattr("gpt2kit.serve.server.run", found.run)
    monkeypatch.setattr("gpt2kit.serve.server.bind", found.bind)
    yield found
    found.close()


# --- running what they say ------------------------------------------------------------------------


def run(example: Example, server: Background) -> tuple[int, str]:
    """Run a line with its redirections, and return the exit code and what a terminal would show."""
    if example.words[0] == "curl":
        words = [server.here(word) for word in example.words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout
    steps: list[list[str]] = [[]]
    for word in example.words:
        if word == "|":
            steps.append([])
        else:
            steps[-1].append(word)
    given, said, code = "", "", 0
    for step in steps:
        environment = dict(
            step.pop(0).split("=", 1) for _ in list(step) if re.fullmatch(r"[A-Z0-9_]+=.*", step[0])
        )
        target = None
        while len(step) > 2 and step[-2] in ("<", ">"):
            name, sign = step.pop(), step.pop()
            given, target = (
                (Path(name).read_text(encoding="utf-8"), target) if sign == "<" else (given, name)
            )
        assert step[0] == "gpt2kit", f"{step[0]} is not in ELSEWHERE"
        arguments = step[1:] + shorter(step)
        result = CliRunner(env=environment).invoke(app, arguments, input=given)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        given, code = result.stdout, code or result.exit_code
        said = result.output
        if target:
            Path(target).write_text(result.stdout, encoding="utf-8")
            said = result.stderr
    return code, server.as_shown(said)


def shorter(words: list[str]) -> list[str]:
    """Return the options that make a command short; the recipes of the steps are small already."""
    is_step = any(re.match(r"shakespeare-(\d|steps)", word) for word in words)
    return shlex.split(_TINY if is_step else SHORTER.get(words[1], ""))


def of_pages(chosen: Callable[[Path], bool]) -> pytest.MarkDecorator:
    """Run a test for each page for which a function returns true."""
    pages = list(filter(chosen, PAGES))
    return pytest.mark.parametrize(
        "page", pages, ids=[str(page.relative_to(ROOT)) for page in pages]
    )


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def same_number(shown: str, found: str) -> bool:
    """Whether two numbers agree within 1%, or one unit of the last digit: machines differ."""
    unit = 10.0 ** -len(shown.partition(".")[2].partition("e")[0])
    first, second = (float(text.replace(",", "")) for text in (shown, found))
    return "e-" in shown or math.isclose(first, second, rel_tol=0.01, abs_tol=1.01 * unit)


def same_line(shown: str, found: str) -> bool:
    """Whether a line is as the page shows it; the page may end it with "…"."""
    if shown.endswith("…"):
        return found.split()[: len(shown.split()) - 1] == shown.removesuffix("…").split()
    if NUMBER.sub("0", shown).split() != NUMBER.sub("0", found).split():
        return False
    return all(map(same_number, NUMBER.findall(shown), NUMBER.findall(found)))


def missing_line(shown: tuple[str, ...], found: list[str]) -> str | None:
    """Return the first line that the page shows and the command did not print, if any."""
    at, gap = 0, False
    for line in shown:
        if line == "…":
            gap = True
            continue
        while gap and at < len(found) and not same_line(line, found[at]):
            at += 1
        if at == len(found) or not same_line(line, found[at]):
            return line
        at, gap = at + 1, False
    return None if gap or at == len(found) else f"(the end; there is more: {found[at]!r})"


@of_pages(lambda page: bool(examples(page)))
def test_every_command_runs_and_prints_what_the_page_shows(
    page: Path, desk: Path, server: Background
) -> None:
    if any("gpt2kit download 124M" in example.command for example in examples(page)):
        shutil.rmtree("weights/124M")  # it comes from the local Hub then
    for example in examples(page):
        if example.words[0] in ELSEWHERE:
            continue
        code, said = run(example, server)
        assert code == example.code, f"$ {example.command}\n{said}"
        if example.shown:
            wrong = missing_line(example.shown, said.rstrip("\n").split("\n"))
            assert wrong is None, f"$ {example.command}\nnot printed: {wrong}\n--- printed\n{said}"


@of_pages(lambda page: bool(blocks(page, "python")))
def test_every_python_example_runs(
    page: Path, desk: Path, server: Background, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    found = blocks(page, "python")
    if any(Background.SHOWN in block for block in found):
        run(next(each for each in examples(page) if "gpt2kit serve" in each.command), server)
    if page.name == "circuits.md":  # its first commands make what its example reads
        for example in examples(page)[:3]:
            assert run(example, server)[0] == 0
    for block in found:
        exec(
            server.here(block)
            .replace("max_steps=300", "max_steps=60")
            .replace("block_size=256", "block_size=16"),
            names,
        )


# --- what they name is there ----------------------------------------------------------------------


@of_pages(lambda page: True)
def test_every_link_and_picture_is_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("https://", "http://")):
            target, _, anchor = link.partition("#")
            there = (page.parent / target).resolve() if target else page
            assert there.exists(), f"{page.name}: {link}"
            headings = (
                re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                if anchor
                else []
            )
            assert not anchor or anchor in [
                re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings
            ], link


@of_pages(lambda page: True)
def test_every_command_and_option_named_exists(page: Path) -> None:
    known = commands()
    options = set().union(*known.values()) | OTHERS_OPTIONS
    text = re.sub(
        r"^```text.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for named in re.findall(r"(?<![\w-])--[a-z][\w-]*", text):
        assert named in options, f"{page.name}: {named}"
    for named in re.findall(r"(?:^\$ |`|-m )gpt2kit ([a-z]+)", text, re.MULTILINE):
        assert named in known, f"{page.name}: gpt2kit {named}"
    for example in examples(page):
        words = example.words
        if words[0] == "torchrun":
            own = words[words.index("gpt2kit") + 1 :]
            assert {word for word in own if word.startswith("--")} <= known[own[0]], example.command
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), example.command


def test_every_command_in_the_tables_of_courses_can_be_typed() -> None:
    """They are parsed, not run: the pages that explain them do that."""
    page = DOCS / "learn" / "courses.md"
    found = re.findall(r"`(gpt2kit [^`]+)`", page.read_text(encoding="utf-8"))
    assert len(found) > 40
    for line in found:
        words = [word for word in Example(line, ()).words if word not in ("<", ">", "|")][1:]
        command = program()
        while below := getattr(command, "commands", {}):
            command = below[words.pop(0)]
        command.make_context(line, words)


def test_every_command_of_the_program_is_on_a_page() -> None:
    run_there = [
        " ".join(example.words)
        for page in PAGES
        if page.is_relative_to(DOCS)
        for example in examples(page)
    ]
    for command in commands().keys() - {"", "plot"}:
        assert any(
            re.search(rf"\bgpt2kit {re.escape(command)}(?![\w-])", words) for words in run_there
        ), f"no page shows {command}"


def test_every_page_and_every_picture_is_shown() -> None:
    everything = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for page in PAGES:
        index = (page.parent / "README.md").read_text(encoding="utf-8")
        assert page.name == "README.md" or f"({page.name})" in index, page.name
    assert all(f"images/{path.name})" in everything for path in (DOCS / "images").iterdir())
