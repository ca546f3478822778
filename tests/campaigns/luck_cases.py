"""Cases of bad luck: a command that is stopped or hindered, what it leaves, and the next run."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from campaigns.cases import Result
from campaigns.luck_child import Child, Ended, Seen, Trouble
from campaigns.luck_commands import SECONDS, Command
from gpt2kit.store.integrity import CHECKED

Luck = Literal[
    "killed at an instant",
    "killed at a change",
    "full disk",
    "refused by the system",
    "vanishing folder",
    "clock that jumps",
    "two at once",
    "input cut short",
    "little memory",
]
# Names that are not final: hidden ones, and those of a download that goes on later.
_UNFINISHED = re.compile(r"(^|/)\.|\.tmp$|\.part$|\.part\.json$")
_CLAIMS = re.compile(r"/claims/")  # of workers by the pile: whose name says who works now
_GROWING = re.compile(r"(metrics|samples)\.jsonl$")  # of records, a last line may be torn
_DERIVED = re.compile(r"run/(loss\.png|report\.json)$")  # of a run that was stopped, another one
_OTHERS = ("cache/matplotlib", "cache/Microsoft")  # which matplotlib and onnxruntime write
# What is another number each time.
_VOLATILE = {
    *("seconds", "began", "ended", "elapsed", "pid", "tokens_per_second", "made", "date", "time"),
    *("created", "started", "finished", "host", "modified"),
}
_RUST = "memory allocation of"  # said by libraries in Rust, such as tiktoken, which end the process
_SWALLOWED = "Exception ignored in"  # said by Python when a library has swallowed a Ctrl-C
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_REFUSALS = (errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT)


def digest(path: Path) -> str:
    """Return a digest of a file, of JSON without what is another number each time."""
    data = path.read_bytes()
    if path.name == CHECKED:  # it has the times of files
        data = repr(sorted(json.loads(data))).encode()
    elif path.suffix in (".json", ".jsonl"):
        with contextlib.suppress(ValueError):
            lines = [data] if path.suffix == ".json" else data.splitlines()
            data = repr([_lasting(json.loads(line)) for line in lines]).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if key not in _VOLATILE}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def tree(folder: Path) -> dict[str, str]:
    """Return digests of all files, hidden ones too, by their names; and all folders."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name.startswith(_OTHERS):
            continue
        with contextlib.suppress(FileNotFoundError):
            found[name] = "a folder" if path.is_dir() else digest(path)
    return found


@dataclass(frozen=True)
class LuckTarget:
    """A command, and what befalls it."""

    luck: Luck
    command: Command
    limits_memory: bool = False
    stuck: float = 9 * SECONDS

    @property
    def name(self) -> str:
        return f"{self.luck}: {self.command.name}"

    def prepare(self, folder: Path) -> LuckCases:
        """Run the command undisturbed."""
        return LuckCases(self, Undisturbed(self.command, folder))


class Undisturbed:
    """A command that has run undisturbed, and what it did: the same for all kinds of bad luck."""

    def __init__(self, command: Command, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.command = command
        self.before = folder / "before"  # what is there before each case
        self.place = folder / "place"  # has the same name in all cases: some files know theirs
        self._open = contextlib.ExitStack()
        if command.server is not None:
            self._open.enter_context(command.server())
        self.place.mkdir()
        command.prepare(self.place)
        shutil.copytree(self.place, self.before, symlinks=True)
        self.seen = self._observed()
        for name in self.seen.modules:  # so that a fork has them
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self.reset()
        begun = time.monotonic()
        self.finish(Child(command.body(self.place), self.place))
        self.seconds = time.monotonic() - begun
        if tree(self.place) != self.after:
            raise AssertionError(f"{command.name}: not the same twice: {self.difference()}")
        self.reset()
        self.whole = {(name, found) for name, found in self.seen.named}
        self.whole |= {*tree(self.before).items(), *self.after.items()}

    def _observed(self) -> Seen:
        child = Child(self.command.body(self.place), self.place, digest=digest)
        self.finish(child)
        self.after = tree(self.place)
        return child.seen()

    def finish(self, child: Child) -> None:
        """Wait for a run that has to succeed."""
        ended = child.end(SECONDS)
        if ended.code:
            raise AssertionError(f"{self.command.name}: {ended.code}: {ended.said}")

    def reset(self) -> None:
        """Let all be as it was before the command."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.before, self.place, symlinks=True)

    def difference(self) -> str:
        """Say how the place differs from what an undisturbed run leaves."""
        found, wanted = tree(self.place), self.after
        return "; ".join(
            [f"{name} lacks" for name in sorted(wanted.keys() - found.keys())]
            + [f"{name} is left over" for name in sorted(found.keys() - wanted.keys())]
            + [
                f"{name} differs"
                for name in sorted(found.keys() & wanted.keys())
                if found[name] != wanted[name]
            ]
        )

    def close(self) -> None:
        self._open.close()


class LuckCases:
    """The cases of a target; each is known by its seed, if not by its instant."""

    def __init__(self, target: LuckTarget, undisturbed: Undisturbed) -> None:
        self.target = target
        self._command = target.command
        self._run = undisturbed
        self._place = undisturbed.place

    def describe(self, seed: int) -> tuple[str, bytes]:
        """Return what befalls the command."""
        draw = random.Random(f"{self.target.name} {seed}")
        if self.target.luck == "killed at an instant":
            return "a signal after a share of the time that the command takes", b""
        return str(self._trouble(draw)), b""

    def run(self, seed: int) -> Result:
        """Run the command once with bad luck, and then again."""
        draw = random.Random(f"{self.target.name} {seed}")
        try:
            return self._outcome(draw)
        finally:
            self._run.reset()

    def close(self) -> None:
        """End the server."""
        self._run.close()

    def _child(self, trouble: Trouble | None = None) -> Child:
        return Child(self._command.body(self._place), self._place, trouble)

    def _trouble(self, draw: random.Random) -> Trouble | None:
        """Return what befalls the command from inside."""
        nth = draw.randrange(max(1, self._run.seen.changes))
        match self.target.luck:
            case "killed at a change":
                return Trouble("kill", nth, draw.choice(_SIGNALS))
            case "full disk":
                return Trouble("full", nth)
            case "refused by the system":
                return Trouble("refuse", draw.choice((0, nth, nth)), draw.choice(_REFUSALS))
            case "vanishing folder":
                return Trouble("vanish", nth)
            case "clock that jumps":
                return Trouble("clock", seed=draw.randrange(2**32))
            case "little memory":
                return Trouble("memory", number=draw.randrange(0, 64))
            case "input cut short":
                name = draw.choice(self._command.inputs + self._command.texts)
                size = (self._run.before / name).stat().st_size
                nth = draw.randint(1, max(1, self._run.seen.opened.get(name, 1)))
                return Trouble("cut", nth, draw.randrange(size), file=name)
        return None

    def _outcome(self, draw: random.Random) -> Result:
        luck = self.target.luck
        trouble = self._trouble(draw)
        others: list[Child] = []
        if luck == "killed at an instant":
            ended = self._killed(draw)
        elif luck == "two at once":
            others = [self._child()]
            time.sleep(draw.choice((0, draw.random() * self._run.seconds)))
            ended = self._child().end(SECONDS)
        elif luck == "input cut short" and draw.random() < 0.5 and trouble is not None:
            child = self._child()
            time.sleep(draw.random() * self._run.seconds)
            with contextlib.suppress(FileNotFoundError):
                os.truncate(self._place / trouble.file, trouble.number)
            ended = child.end(SECONDS)
        else:
            if luck == "clock that jumps":
                self._change_times(draw)
            ended = self._child(trouble).end(SECONDS)
        for each in (ended, *(child.end(SECONDS) for child in others)):
            if why := self._wrong_end(each):
                return Result("failed", why)
        return self._judged(ended, trouble)

    def _killed(self, draw: random.Random) -> Ended:
        """Send a signal at a random instant, sooner if the command has ended before."""
        number = draw.choice(_SIGNALS)
        most = self._run.seconds
        for _ in range(20):
            child = self._child()
            until = time.monotonic() + draw.random() * most
            while time.monotonic() < until and not child.has_ended():
                time.sleep(0.001)
            if not child.has_ended():
                child.send(number, draw=draw)
                return child.end(SECONDS)
            child.end(SECONDS)
            self._run.reset()
            most *= 0.8
        raise AssertionError("the command always ends before its signal")

    def _change_times(self, draw: random.Random) -> None:
        """Let all files be of the future, or of the past."""
        for path in self._place.rglob("*"):
            moment = draw.choice((0.0, 3.2e9, time.time() + draw.uniform(0, 1e5)))
            os.utime(path, (moment, moment))

    def _wrong_end(self, ended: Ended) -> str:
        """Say what is wrong with how a command ended, if anything is."""
        said = ended.said.strip()
        killed = self.target.luck.startswith("killed")
        signals = (-9, -15, -2, 130, 143) if killed else ()
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        if killed and ended.code == 0 and said.startswith(_SWALLOWED):
            return ""
        if _RUST in said and self.target.luck == "little memory":
            return ""
        if "Traceback" in said or (ended.code not in (0, 1, *signals)):
            return f"ended with {ended.code}: {said[-1200:]}"
        if ended.code == 1 and len(errors) != 1:
            return f"ended with 1 and {len(errors)} errors: {said[-1200:]}"
        return ""

    def _judged(self, ended: Ended, trouble: Trouble | None) -> Result:
        luck = self.target.luck
        if luck == "input cut short":
            return self._judged_reading(ended, trouble)
        why = self._torn()
        same = tree(self._place) == self._run.after
        if why:
            return Result("failed", why)
        may_lack = luck in ("two at once", "vanishing folder")
        if ended.code == 0 and not (same or may_lack or self._is_spare()):
            return Result("failed", f"ended well, but {self._run.difference()}: {ended.said}")
        if luck == "vanishing folder":
            shutil.rmtree(self._place / "made", ignore_errors=True)
            shutil.copytree(self._run.before / "made", self._place / "made", symlinks=True)
        if not (same and self._command.only_once):
            again = self._child().end(SECONDS)
            if again.code:
                return Result("failed", f"the next run: {again.code}: {again.said[-1500:]}")
        if tree(self._place) != self._run.after and not (ended.code == 0 and self._is_spare()):
            return Result("failed", f"after the next run {self._run.difference()}")
        swallowed = ended.code == 0 and ended.said.startswith(_SWALLOWED)
        if ended.code == -signal.SIGABRT or swallowed:
            return Result("undetectable", ended.said.strip()[-200:])
        return Result("same" if ended.code == 0 else "refused", ended.said.strip()[-200:])

    def _judged_reading(self, ended: Ended, trouble: Trouble | None) -> Result:
        assert trouble is not None
        same = {**tree(self._place), trouble.file: ""} == {**self._run.after, trouble.file: ""}
        if ended.code == 0 and not same:
            if trouble.file in self._command.texts:
                return Result("undetectable")
            return Result("failed", f"ended well, but {self._run.difference()}")
        shutil.copyfile(self._run.before / trouble.file, self._place / trouble.file)
        again = self._child().end(SECONDS)
        if again.code:
            return Result("failed", f"the next run: {again.code}: {again.said[-1500:]}")
        if tree(self._place) != self._run.after:
            return Result("failed", f"after the next run {self._run.difference()}")
        return Result("same" if ended.code == 0 else "refused", ended.said.strip()[-200:])

    def _is_spare(self) -> bool:
        """Whether only what the command can do without is missing."""
        spare = self._command.spare
        different = {*tree(self._place).items()} ^ {*self._run.after.items()}
        return bool(spare) and all(name.startswith(spare) for name, _ in different)

    def _torn(self) -> str:
        """Name a file that has a final name and is not whole, if there is one."""
        for name, found in tree(self._place).items():
            if found == "a folder" or _UNFINISHED.search(name) or _CLAIMS.search(name):
                continue
            if _GROWING.search(name) or (
                _DERIVED.search(name) and _is_complete(self._place / name)
            ):
                continue
            if (name, found) not in self._run.whole:
                return f"{name} is not whole"
        return ""


def _is_complete(path: Path) -> bool:
    """Whether a picture has its end, and a document its last bracket."""
    return path.read_bytes().rstrip().endswith((b"}", b"IEND\xaeB`\x82"))
