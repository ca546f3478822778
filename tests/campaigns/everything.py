"""Everything that the library does, mixed, in one process for as long as wanted.

    python tests/campaigns/everything.py --seconds 7200

does in turn, drawn by a seed: commands that write, whose files have to be, bit for bit, those of
an undisturbed run; commands that print, which have to print what they printed the first time; and
cases of the campaigns of drawn numbers and hostile files, which know what is right. Every ten
seconds a line of JSON tells what the process has; the last one tells what was wrong, too.
scripts/soak.py starts this beside a server, and compares.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from campaigns import drawn_numbers, hostile_files
from campaigns.cases import Cases, Target
from campaigns.luck_cases import Undisturbed
from campaigns.luck_child import FOLDERS
from campaigns.luck_commands import COMMANDS, Command, call, trained
from campaigns.served import state_of

LOOK_SECONDS = 10.0
NUMBERS = drawn_numbers.CAMPAIGN.targets
# Bombs may take five seconds of a machine of their own, and have less than that beside a server.
FILES = [
    each
    for each in hostile_files.CAMPAIGN.targets
    if not each.name.endswith(hostile_files.CAMPAIGN.slow)
]
PRINTING = (
    "generate the --model model --seed 1 --max_tokens 30 --top_k 3 --overflow slide",
    "generate the --model model --seed 1 --num_samples 3 --max_tokens 8 --json",
    "generate the --model model --quantize int8 --seed 1 --max_tokens 8",
    "generate the --model model --dtype bfloat16 --seed 1 --max_tokens 8",
    "generate the --model made/run --seed 2 --max_tokens 8 --no_repeat_ngram 2",
    "generate the --model model --seed 3 --max_tokens 8 --regex [a-z]+",
    "tokenize --model model the",
    "inspect model --json",
    "verify model",
    "models",
    "corpus verses.txt --json",
    "evaluate model other --corpus verses.txt --json",
    "score lines.txt --model model",
    "surprisal lines.txt --model model",
    "cloze the --model model --json",
    "detect lines.txt --model model",
    "diff model other --json",
    "originality verses.txt --corpus verses.txt",
    "explain model the --json",
    "heads model --json",
    "ablate model --heads all --each --corpus verses.txt",
    "neighbors the --model model",
    "replay missing.json",  # one line, and exit code 1
)


class Everything:
    """What the process does again and again, what it has seen, and what was wrong."""

    def __init__(self, folder: Path, commands: list[Command]) -> None:
        """Run every command undisturbed, each in a fork, while this process has no threads."""
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._commands = [
            Undisturbed(command, folder / f"command-{number}")
            for number, command in enumerate(commands)
        ]
        self._reading = folder / "reading"
        self._reading.mkdir()
        trained(self._reading)
        self._folder = folder
        for words in PRINTING:  # the first time some say that they keep something
            ended(_calling(words), self._reading)
        self._printed = {words: ended(_calling(words), self._reading) for words in PRINTING}
        self._cases: dict[str, Cases] = {}

    def warm_up(self) -> None:
        """Do everything once."""
        for undisturbed in self._commands:
            self._write(undisturbed)
        targets: list[Target] = [*NUMBERS, *FILES]
        for target in targets:
            self._try(target, 0)

    def step(self, draw: random.Random) -> None:
        """Do one thing."""
        kind = draw.choices(("write", "print", "number", "file"), (2, 2, 3, 3))[0]
        if kind == "write":
            self._write(draw.choice(self._commands))
        elif kind == "print":
            self._print(draw.choice(PRINTING))
        elif kind == "number":
            self._try(draw.choice(NUMBERS), draw.randrange(10**6))
        else:
            self._try(draw.choice(FILES), draw.randrange(10**6))

    def close(self) -> None:
        """End what was started."""
        for undisturbed in self._commands:
            undisturbed.close()
        for cases in self._cases.values():
            cases.close()

    def _write(self, undisturbed: Undisturbed) -> None:
        name = undisturbed.command.name
        code, printed = ended(undisturbed.command.body(undisturbed.place), undisturbed.place)
        if code:
            self.wrong.append(f"{name}: ended with {code}: {printed[-500:].decode()}")
        elif why := undisturbed.difference():
            self.wrong.append(f"{name}: {why}")
        self.seen["commands that write"] += 1
        undisturbed.reset()

    def _print(self, words: str) -> None:
        if (found := ended(_calling(words), self._reading)) != self._printed[words]:
            self.wrong.append(f"{words}: {found!r}, and at first {self._printed[words]!r}")
        self.seen["commands that print"] += 1

    def _try(self, target: Target, seed: int) -> None:
        if target.name not in self._cases:
            self._cases[target.name] = target.prepare(self._folder / f"case-{len(self._cases)}")
        result = self._cases[target.name].run(seed)
        if result.outcome == "failed":
            self.wrong.append(f"{target.name} {seed}: {result.why}")
        self.seen[f"cases: {type(target).__name__}"] += 1


def _calling(words: str) -> Callable[[], None]:
    return lambda: call(words.split())


def ended(body: Callable[[], Any], place: Path) -> tuple[int, bytes]:
    """Call a command in a folder; return its exit code, and what it wrote to stdout and stderr."""
    code = 0
    with inside(place), tempfile.TemporaryFile() as file, redirected(file.fileno()):
        try:
            body()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        file.seek(0)
        return code, file.read()


@contextlib.contextmanager
def inside(place: Path) -> Iterator[None]:
    """Work in a folder, with all that gpt2kit keeps below it."""
    before = os.environ.copy()
    os.environ.update({variable: str(place / name) for variable, name in FOLDERS.items()})
    os.environ["GPT2KIT_QUICK_EXIT"] = "0"
    try:
        with contextlib.chdir(place):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def redirected(descriptor: int) -> Iterator[None]:
    """Write stdout and stderr into a file."""
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(descriptor, number)
        yield
    finally:
        for number, each in zip((1, 2), kept, strict=True):
            os.dup2(each, number)
            os.close(each)


def state() -> dict[str, int]:
    """Return what this process has: bytes of memory, threads, open files, other processes.

    Not garbage, for which Python looks every half an hour with as many modules as here, and not
    memory that is free for the next tensors and rows.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # of glibc
    own = os.getpid()
    found = state_of(own)
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    names = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    return {
        "memory": found.memory,
        "threads": found.threads,
        "files": found.descriptors,
        # Python keeps one that looks after what its processes share.
        "processes": sum(b"multiprocessing.resource_tracker" not in name for name in names),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    torch.set_num_threads(1)  # also in forks: the number of threads decides how sums are rounded
    with tempfile.TemporaryDirectory() as folder:
        everything = Everything(Path(folder), COMMANDS)
        everything.warm_up()
        end = time.monotonic() + options.seconds
        look = min(LOOK_SECONDS, options.seconds / 10)
        next_look = time.monotonic() + look
        while time.monotonic() < end:
            everything.step(draw)
            if time.monotonic() > next_look:
                print(json.dumps(state()), flush=True)
                next_look = time.monotonic() + look
        everything.close()
        found = {"seen": everything.seen, "wrong": everything.wrong}
        print(json.dumps(state() | found), flush=True)


if __name__ == "__main__":
    main()
