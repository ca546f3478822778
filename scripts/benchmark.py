#!/usr/bin/env python3
"""Measure the speed of gpt2kit beside transformers, CTranslate2 and llama.cpp, in one run.

    python scripts/benchmark.py decode   [--against hf,ct2,llama]
        tokens/s of generating one text, after a prompt of 16 tokens
    python scripts/benchmark.py batch    [--against hf,ct2]
        the same for several texts at once
    python scripts/benchmark.py context  [--against hf]
        the same after 16 tokens and after 1,000; `cost` is the time per token after 1,000 divided
        by the time per token after 16
    python scripts/benchmark.py scale    [--against hf]
        the same for models of several sizes, with random weights that are made once; `ratio`
        compares bytes of weights per second with those of the first size
    python scripts/benchmark.py prefill  [--against hf,ct2,llama]
        tokens/s of reading a prompt of 1,000 tokens
    python scripts/benchmark.py prefix
        seconds to read one such prompt, and the time for several, relative to one, if they are
        equal, if they differ in their last 16 tokens, and if they differ from the first token on
    python scripts/benchmark.py draft    [--draft lookup|MODEL]
        tokens/s of generating with a draft and without, for a list, code and prose; `cost_of_8` is
        the time to read eight tokens at once divided by the time to read one. It needs a trained
        model: --model dante
    python scripts/benchmark.py constrain
        tokens/s of generating under a pattern that comes to new states with each token, with
        valid_utf8, without a constraint but with all logits, and without either; `added` is the
        share of time that the pattern adds to a token with all logits; `tables_s` and
        `forbid_30000_s` are the seconds until a pattern or a list of 30,000 lines is ready,
        `kept_s` those of the second time. It needs a vocabulary: --model 124M
    python scripts/benchmark.py load     [--against hf]
        seconds to load a model, and the memory used
    python scripts/benchmark.py cold     [--against hf]
        seconds of a whole process that generates 20 tokens
    python scripts/benchmark.py evaluate [--against hf]
        tokens/s of scoring a text, in batches of 4 windows that overlap by half; transformers runs
        the loop of its own documentation
    python scripts/benchmark.py score    [--against hf,minicons] [--minicons_python PYTHON]
        tokens/s of scoring sentences of 8 to 15 tokens in batches of 32, and in_pairs: of reading
        once what the two sentences of a pair share, half of their tokens; `forward`: of
        transformers reading a single text that is as long as the model allows; `one_by_one`: of
        minicons without batches, as it does by default. minicons may be installed in an
        environment of its own: --minicons_python is the python there
    python scripts/benchmark.py serve    [--against llama,hf]
        tokens/s of 8 clients together, or --batch_size, each with a stream of its own; seconds to
        the median first token (first_s) and to the last one (last_first_s), and the median gap
        between two pieces; the longest gap of four streams while a long prompt arrives (stall_ms);
        seconds to the first token of that prompt (long_first_s), of one alone (alone_first_s), and
        of that one again with another end (warm_first_s); `of_complete` compares tokens/s with
        those of gpt2kit.complete for the same prompts; http_share is the part of the server's
        processor time in which its first thread spoke HTTP; peak_GB is the server's
    python scripts/benchmark.py train    [--against hf,nanogpt] [--nanogpt FOLDER] [--dropout P]
        tokens/s and memory of training on batches of 4 x 256 in bfloat16; transformers and nanoGPT,
        of which --nanogpt is a copy of the repository, run in a plain loop
    python scripts/benchmark.py patch    [--against tl] [--tl_python PYTHON]
        seconds of patching the residual stream at every layer and position of a prompt of 16
        tokens, and the processor time that it takes; TransformerLens makes a run for each. It may
        be installed in an environment of its own: --tl_python is the python there
    python scripts/benchmark.py plan     [--cases NAME,…]
        the memory that `gpt2kit plan` shows for fine-tuning, the peak of a process that does three
        steps of it, with random weights, and the error of the plan; one round suffices

Every engine runs in a process of its own, and the engines take turns, so that other work on the
machine slows all of them down alike. The output has the medians of the rounds, their ratios to the
first engine and, for generating, the share of the memory bandwidth: the bytes of weights that are
read per second divided by the bandwidth, which is measured in every round. The last line is JSON.

With `--without shortlist`, each engine of gpt2kit also runs without the shortlist, in the same
rounds: GPT2KIT_SHORTLIST=0 is in the environment of its process. `--help` lists the other names.

With `--device cuda`, decode, batch, scale and prefill run on a GPU; the bandwidth is that of its
memory.

The model is any that gpt2kit finds, with its vocabulary. For CTranslate2 and llama.cpp it is
converted once, into the folder --work.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measures.draft import TEXTS
from measures.plan import CASES, STEPS
from measures.sizes import make
from measures.timing import SHORT, Figures, Task, bandwidth, gpu_bandwidth, peak_memory, seconds

KINDS = {
    "kit": ("float32", "bfloat16", "int8"),
    "hf": ("float32", "bfloat16"),
    "ct2": ("float32", "int8_float32"),
    "llama": ("f32", "bf16", "q8_0"),
    "tl": ("float32",),
    "minicons": ("float32", "bfloat16"),
    "nanogpt": ("bfloat16",),
}
BYTES = {  # per weight
    "float32": 4.0,
    "bfloat16": 2.0,
    "int8": 1.0,
    "int8_float32": 1.0,
    "f32": 4.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
}


@dataclass(frozen=True)
class Work:
    """One kind of work: which other engines can do it, and its default sizes."""

    peers: str = ""
    tokens: int = 128  # to generate or to score; for train, the number of steps
    batch: int = 1  # texts at once
    long_prompt: bool = False
    at_the_limit: bool = False  # whether memory bandwidth limits the speed


WORKS = {
    "decode": Work("hf ct2 llama", at_the_limit=True),
    "batch": Work("hf ct2", batch=8, at_the_limit=True),
    "context": Work("hf", tokens=24, long_prompt=True, at_the_limit=True),
    "scale": Work("hf", at_the_limit=True),
    "prefill": Work("hf ct2 llama", tokens=1, long_prompt=True),
    "prefix": Work(tokens=1, batch=8, long_prompt=True),
    "draft": Work(),
    "constrain": Work(),
    "load": Work("hf"),
    "cold": Work("hf"),
    "evaluate": Work("hf", tokens=2560, batch=4),
    "score": Work("hf minicons", tokens=2560, batch=32),
    "serve": Work("llama hf", batch=8, long_prompt=True),
    "train": Work("hf nanogpt", tokens=6),
    "patch": Work("tl", tokens=0),
    "plan": Work(tokens=STEPS),
}
ON_A_GPU = {"kit": ("float32", "bfloat16", "bfloat16-compiled"), "hf": ("float32", "bfloat16")}
# The module in measures, if it is not named after the work.
MODULES = {"batch": "decode", "scale": "decode", "prefill": "decode"}

# Each has a variable in the environment: GPT2KIT_NATIVE …
SWITCHES = (  # GPT2KIT_… variables
    *("native", "shortlist", "large_pages", "quick_exit"),
    *("own_dropout", "piecewise_loss", "kept_memory"),
)


@dataclass(frozen=True)
class Contestant:
    """An engine such as kit-int8, and its task."""

    engine: str
    task: Task
    about: str = ""  # how its task differs from the others

    @property
    def name(self) -> str:
        return f"{self.engine} {self.about}".strip()


# --- one engine -----------------------------------------------------------------------------------


def in_this_process(engine: str, task: Task) -> Figures:
    """Return the engine's figures and, unless it gives its own, the peak memory of this process."""
    family, kind = engine.split("-", 1)
    measure = importlib.import_module(f"measures.{MODULES.get(task['what'], task['what'])}")
    figures: Figures = getattr(measure, family)(kind, task)
    return figures | {"peak_GB": figures.get("peak_GB", peak_memory() / 1e9)}


def in_its_own_process(engine: str, task: Task) -> Figures:
    """Return the engine's figures; if it fails, print why and return none."""
    python = task.get(f"{engine.partition('-')[0]}_python", sys.executable)
    command = [python, __file__, "engine", engine, json.dumps(task)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(task), check=False
    )
    if done.returncode:
        print(f"{engine}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
        return {}
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def environment(task: Task) -> dict[str, str]:
    """Return the environment of an engine's process: what `without` names is turned off."""
    off = {f"GPT2KIT_{task['without'].upper()}": "0"} if "without" in task else {}
    return os.environ | off


def cold(engine: str, task: Task) -> Figures:
    """Return the seconds of a whole process that loads the model and generates 20 greedy tokens.

    `kit-help` only prints the help.
    """
    family, kind = engine.split("-", 1)
    kit = [sys.executable, "-m", "gpt2kit"]
    generate = [
        *kit,
        "generate",
        "Every effort moves you",
        "--model",
        task["model"],
        "--max_tokens",
        "20",
        "--temperature",
        "0",
    ]
    program = (
        "import torch; from transformers import GPT2LMHeadModel; "
        "ids = torch.tensor([[6109, 3626, 6100, 345]]); "
        f"model = GPT2LMHeadModel.from_pretrained({task['model']!r}, dtype=torch.{kind}).eval(); "
        "print(model.generate(ids, max_new_tokens=20, min_new_tokens=20, "
        "do_sample=False, pad_token_id=0))"
    )
    command = {
        "kit": [*kit, "--help"]
        if kind == "help"
        else [*generate, *(["--quantize", "int8"] if kind == "int8" else ["--dtype", kind])],
        "hf": [sys.executable, "-c", program],
    }[family]

    def go() -> None:
        subprocess.run(command, capture_output=True, env=environment(task), check=True)

    return {"seconds": seconds(go)}


# --- the comparison -------------------------------------------------------------------------------


def matrix_weights(model: str) -> int:
    """Return the number of weights in the matrices that are read for one token."""
    from gpt2kit.checkpoints.load import open_checkpoint

    config = open_checkpoint(Path(model)).config
    shapes = {
        name: shape
        for name, shape in config.shapes().items()
        if len(shape) == 2 and name != "wpe.weight"
    }
    if not config.tie_word_embeddings:
        del shapes["wte.weight"]
    return sum(rows * columns for rows, columns in shapes.values())


def engines_of(what: str, against: str, device: str = "cpu") -> list[str]:
    """Return the engines for a kind of work; families that cannot do it are left out."""
    families = [family for family in against.split(",") if family]
    theirs = [family for family in KINDS if family != "kit"]
    if unknown := set(families) - {*theirs}:
        raise SystemExit(f"--against knows {', '.join(theirs)}, not {', '.join(sorted(unknown))}")
    kinds: dict[str, tuple[str, ...]] = KINDS if device == "cpu" else ON_A_GPU
    able = [
        family for family in families if family in WORKS[what].peers.split() and family in kinds
    ]
    if what == "train":
        return [f"{family}-bfloat16" for family in [*able, "kit"]]
    if what == "patch":
        return [f"{family}-float32" for family in [*able, "kit"]]
    engines = [f"{family}-{kind}" for family in [*able, "kit"] for kind in kinds[family]]
    return engines + (["kit-help"] if what == "cold" else [])


def compare(contestants: list[Contestant], rounds: int) -> dict[str, Any]:
    """Measure every contestant in every round and return the medians."""
    task = contestants[0].task
    measure = cold if task["what"] == "cold" else in_its_own_process
    found: list[list[Figures]] = [[] for _ in contestants]
    bandwidths = []
    for _ in range(rounds):
        if WORKS[task["what"]].at_the_limit:
            device = task["device"]
            bandwidths.append(
                (bandwidth(task["threads"]) if device == "cpu" else gpu_bandwidth(device)) / 1e9
            )
        for contestant, figures in zip(contestants, found, strict=True):
            figures.append(measure(contestant.engine, contestant.task))
    result: dict[str, Any] = {"task": task, "rounds": rounds, "first": contestants[0].name}
    if bandwidths:
        result["bandwidth_GBps"] = round(statistics.median(bandwidths), 1)
    rows = [medians(figures) for figures in found]
    for contestant, row in zip(contestants, rows, strict=True):
        if bandwidths and row:
            read = (
                matrix_weights(contestant.task["model"]) * BYTES[contestant.engine.split("-")[1]]
            )  # bytes for each step
            row["weights_GBps"] = row["tokens_per_second"] / task["batch"] * read / 1e9
            row["of_bandwidth"] = row["weights_GBps"] / statistics.median(bandwidths)
    rows = with_ratios(contestants, rows)
    result["engines"] = {
        each.name: {name: round(value, 3) for name, value in row.items()}
        for each, row in zip(contestants, rows, strict=True)
    }
    return result


def medians(figures: list[Figures]) -> Figures:
    """Return the median of each figure over the rounds in which the engine did not fail."""
    names = dict.fromkeys(name for some in figures for name in some)
    return {
        name: statistics.median(some[name] for some in figures if name in some) for name in names
    }


def with_ratios(contestants: list[Contestant], rows: list[Figures]) -> list[Figures]:
    """Add to each row the ratio of its first figure to that of the first row.

    In `scale` it is the ratio of weights per second to the first row of the same engine.
    """
    if contestants[0].task["what"] == "plan":
        return rows  # of different trainings, which are not compared
    scale = contestants[0].task["what"] == "scale"
    found = []
    for contestant, row in zip(contestants, rows, strict=True):
        base = next(
            theirs
            for other, theirs in zip(contestants, rows, strict=True)
            if not scale or other.engine == contestant.engine
        )
        shown, counts = next(iter(row), ""), "weights_GBps" if scale else next(iter(row), "")
        ratio = (
            {shown: row[shown], "ratio": row[counts] / base[counts]}
            if counts in row and counts in base
            else {}
        )
        found.append({**ratio, **row})
    return found


def show(result: dict[str, Any]) -> None:
    task = result["task"]
    device = f"{task['threads']} threads" if task["device"] == "cpu" else task["device"]
    about = (
        f"{task['what']}: batch {task['batch']}, prompt {task['prompt_tokens']}, "
        f"{task['tokens']} tokens, {device}"
    )
    speed = (
        "" if "bandwidth_GBps" not in result else f", memory reads {result['bandwidth_GBps']} GB/s"
    )
    print(f"{about}, medians of {result['rounds']}{speed}")
    keys = list(dict.fromkeys(key for row in result["engines"].values() for key in row))
    print(f"{'':<24}" + "".join(f"{key:>18}" for key in keys))
    for engine, row in result["engines"].items():
        print(f"{engine:<24}" + "".join(f"{row.get(key, ''):>18}" for key in keys))
    print(json.dumps(result))


def contestants_of(options: argparse.Namespace) -> list[Contestant]:
    """Return the contestants, each engine of gpt2kit also without what --without names."""
    switches = [name for name in options.without.split(",") if name]
    if unknown := set(switches) - set(SWITCHES):
        raise SystemExit(f"--without knows {', '.join(SWITCHES)}, not {', '.join(sorted(unknown))}")
    found = []
    for contestant in trainings(options) if options.what == "plan" else with_everything(options):
        found.append(contestant)
        if contestant.engine.startswith("kit-"):
            for name in switches:
                about = f"{contestant.about} without {name}".strip()
                task = {**contestant.task, "without": name}
                found.append(Contestant(contestant.engine, task, about))
    return found


def trainings(options: argparse.Namespace) -> list[Contestant]:
    """Return a contestant for each training to plan, each with a model of random weights."""
    names = options.cases.split(",")
    if unknown := set(names) - CASES.keys():
        raise SystemExit(f"--cases knows {', '.join(CASES)}, not {', '.join(sorted(unknown))}")
    task: Task = {
        "what": "plan",
        "prompt_tokens": 0,
        "tokens": STEPS,
        "batch": 1,
        "threads": options.threads,
        "device": "cpu",
        "work": str(options.work),
    }
    return [
        Contestant(
            f"kit-{CASES[name].get('dtype', 'bfloat16')}",
            {**task, "case": name, "model": str(make(CASES[name]["size"], options.work))},
            name,
        )
        for name in names
    ]


def with_everything(options: argparse.Namespace) -> list[Contestant]:
    """Return a contestant for each engine.

    In `scale` there is one for each size, in `draft` for each text.
    """
    from gpt2kit import store
    from gpt2kit.checkpoints.load import open_checkpoint

    work: Work = WORKS[options.what]
    if options.batch_size and work.batch == 1:
        batched = ", ".join(what for what in WORKS if WORKS[what].batch > 1)
        raise SystemExit(f"--batch_size is for {batched}, not for {options.what}")
    if options.device != "cpu" and MODULES.get(options.what, options.what) != "decode":
        raise SystemExit(
            f"--device is for decode, batch, scale and prefill, not for {options.what}"
        )
    engines = (
        options.engines.split(",")
        if options.engines
        else engines_of(options.what, options.against, options.device)
    )
    folders = (
        {size: make(size, options.work) for size in options.sizes.split(",")}
        if options.what == "scale"
        else {}
    )
    path = next(iter(folders.values()), None) or store.find(options.model)
    config = open_checkpoint(path).config
    tokens = options.tokens or work.tokens
    task: Task = {
        "what": options.what,
        "model": str(path),
        "n_vocab": config.n_vocab,
        "work": str(options.work),
        "prompt_tokens": min(options.prompt_tokens, config.n_ctx - tokens)
        if work.long_prompt
        else SHORT,
        "tokens": tokens,
        "batch": options.batch_size or work.batch,
        "threads": options.threads,
        "device": options.device,
        "llama_server": options.llama_server,
        "transformers": options.transformers,
        "tl_python": options.tl_python,
        "minicons_python": options.minicons_python,
        "nanogpt": options.nanogpt,
        "dropout": options.dropout,
    }
    if options.what == "scale":
        return [
            Contestant(engine, {**task, "model": str(folder)}, size)
            for engine in engines
            for size, folder in folders.items()
        ]
    if options.what == "draft":
        task |= {
            "draft": options.draft if options.draft == "lookup" else str(store.find(options.draft)),
            "temperature": options.temperature,
        }
        return [
            Contestant(engine, {**task, "text": text}, text) for engine in engines for text in TEXTS
        ]
    return [Contestant(engine, task) for engine in engines]


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=WORKS)
    parser.add_argument(
        "--against",
        default="",
        metavar="hf,ct2,llama,tl,minicons,nanogpt",
        help="other engines to compare with, which must be installed; none by default",
    )
    parser.add_argument(
        "--engines",
        help="exactly these engines, such as hf-float32,kit-int8; ratios are to the first",
    )
    parser.add_argument("--model", default="124M", help="a size, a folder or a Hub id")
    parser.add_argument(
        "--sizes",
        default="124M,355M,774M",
        help="for scale; 1558M needs 6 GB on disk and in memory",
    )
    parser.add_argument(
        "--without",
        default="",
        metavar="NAME,…",
        help=f"also run gpt2kit without these: {', '.join(SWITCHES)}",
    )
    parser.add_argument(
        "--cases",
        default=",".join(CASES),
        metavar="NAME,…",
        help=f"for plan, trainings of: {', '.join(CASES)}",
    )
    parser.add_argument("--draft", default="lookup", metavar="lookup|MODEL", help="for draft")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="for draft; at 0 a small model repeats itself",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("weights/benchmark"),
        help="the folder of converted and random models",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--tokens",
        type=int,
        help="to generate (128 by default); for evaluate and score, to score (2560); for train, "
        "steps (6)",
    )
    parser.add_argument(
        "--prompt_tokens",
        type=int,
        default=1000,
        help="length of the long prompt in prefill, context, prefix and serve",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        help="for batch, prefix and serve (the clients), 8 by default; for evaluate, 4; score, 32",
    )
    parser.add_argument(
        "--llama_server", default="llama-server", metavar="PROGRAM", help="for serve"
    )
    parser.add_argument(
        "--transformers", default="transformers", metavar="PROGRAM", help="for serve"
    )
    parser.add_argument(
        "--tl_python", default=sys.executable, metavar="PYTHON", help="for patch, TransformerLens's"
    )
    parser.add_argument(
        "--minicons_python", default=sys.executable, metavar="PYTHON", help="for score, minicons's"
    )
    parser.add_argument(
        "--nanogpt", default="nanoGPT", metavar="FOLDER", help="for train, a copy of the repository"
    )
    parser.add_argument(
        "--dropout", type=float, metavar="P", help="for train; the model's own by default"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu, cuda, cuda:1, …: for decode, batch, scale and prefill, kit and hf",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def main() -> None:
    if sys.argv[1:2] == ["engine"]:
        print(json.dumps(in_this_process(sys.argv[2], json.loads(sys.argv[3]))))
        return
    options = parser().parse_args()
    from gpt2kit.checkpoints.load import resolve_device
    from gpt2kit.errors import ConfigError

    try:
        resolve_device(options.device)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    options.work.mkdir(parents=True, exist_ok=True)
    show(compare(contestants_of(options), options.rounds))


if __name__ == "__main__":
    main()
