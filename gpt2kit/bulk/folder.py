"""The folder of an output: which parts are done, running or failed, and their receipts.

DIR/plan.json             what is computed, and in which parts
DIR/parts/00017.jsonl     the rows of a part; the file appears when they are all there
DIR/parts/00017.json      its receipt: rows, tokens, errors, seconds, host, engine, sha256
DIR/claims/00017          which worker has the part in hand
DIR/failed/00017.txt      why a part could not be done
DIR/summary.json          the sums of all receipts
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.bulk import claims
from gpt2kit.bulk.plan import Plan
from gpt2kit.errors import FileError
from gpt2kit.files import fsync_directory, naming, new_file, read_json, sweep_parts

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


@dataclass(frozen=True)
class Folder:
    """The folder that a command writes into."""

    path: Path

    @property
    def folders(self) -> list[Path]:
        """The folders in it."""
        return [self.path / name for name in ("parts", "claims", "failed")]

    def make(self) -> None:
        """Make the folder and those in it."""
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)

    def output(self, number: int) -> Path:
        """Return the name of a finished part."""
        return self.path / "parts" / f"{number:05}.jsonl"

    def receipt(self, number: int) -> Path:
        """Return the name of a part's receipt."""
        return self.path / "parts" / f"{number:05}.json"

    def claim(self, number: int) -> Path:
        """Return the name of the claim on a part."""
        return self.path / "claims" / f"{number:05}"

    def failure(self, number: int) -> Path:
        """Return the name of the file that says why a part failed."""
        return self.path / "failed" / f"{number:05}.txt"

    def part_file(self, number: int) -> Path:
        """Return the name of a part while this process writes it."""
        name = f".{number:05}.{socket.gethostname()}.{os.getpid()}.tmp"
        return self.path / "parts" / name

    def is_done(self, number: int) -> bool:
        """Whether a part is finished, asked by its name: listings of folders may be old."""
        return self.output(number).exists()

    def todo(self, plan: Plan) -> list[int]:
        """Return the parts that are not finished, the largest first."""
        left = [part for part in plan.parts if not self.is_done(part.number)]
        return [part.number for part in sorted(left, key=lambda part: -part.size)]

    def failures(self) -> dict[int, int]:
        """Return the time of each failed part's record, by the number of the part."""
        found = {}
        for path in (self.path / "failed").glob("*.txt"):
            with contextlib.suppress(OSError, ValueError):
                found[int(path.stem)] = path.stat().st_mtime_ns
        return found

    def sweep(self, number: int) -> None:
        """Delete what killed workers left of a part that this process has claimed."""
        for name in ("parts", "claims"):
            for path in (self.path / name).glob(f".{number:05}.*"):
                path.unlink(missing_ok=True)

    def write(self, number: int, lines: Iterable[bytes]) -> str:
        """Write the lines of a part under its temporary name, and return their sha256."""
        digest = hashlib.sha256()
        path = self.part_file(number)
        with naming(path), path.open("wb") as file:
            for line in lines:
                digest.update(line)
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def commit(self, number: int, written: Path, receipt: dict[str, Any]) -> None:
        """Give a part its final name, which says that it is done; its receipt comes first.

        If another worker took the part over and swept the file away, that one finishes it.
        """
        with contextlib.suppress(FileNotFoundError):
            part = self.part_file(number).with_suffix(".receipt")  # which `sweep` deletes, too
            with new_file(self.receipt(number), part=part) as file:
                file.write((json.dumps(receipt) + "\n").encode())
                written.stat()  # raises if it was swept away: the receipt is the other worker's
            os.replace(written, self.output(number))
            fsync_directory(written.parent)
            self.failure(number).unlink(missing_ok=True)

    def receipts(self, plan: Plan) -> Iterator[dict[str, Any]]:
        """Yield the receipt of each finished part, in order."""
        for part in plan.parts:
            if self.is_done(part.number):
                yield read_json(self.receipt(part.number))

    def running(self, plan: Plan) -> list[int]:
        """Return the parts that a worker has in hand now."""
        found = [
            int(path.name)
            for path in (self.path / "claims").iterdir()
            if re.fullmatch(r"\d+", path.name) and not claims.is_stale(path)
        ]
        return sorted(set(found) & {part.number for part in plan.parts})

    def sweep_claims(self) -> None:
        """Delete what killed workers left of what is done: claims that nobody takes over."""
        for path in (self.path / "claims").iterdir():
            found = re.fullmatch(r"(\.?)(plan|\d+)(\..*)?", path.name)
            if found is None:
                continue
            is_plan = found[2] == "plan"
            is_done = (self.path / "plan.json").exists() if is_plan else self.is_done(int(found[2]))
            if is_done and (found[1] or claims.is_stale(path)):
                path.unlink(missing_ok=True)
        sweep_parts(self.path / "claims" / claims.CLOCK)
        sweep_parts(self.path / "plan.json")

    def summarize(self, plan: Plan) -> dict[str, Any]:
        """Return the sums of all receipts."""
        found = list(self.receipts(plan))
        began = [each["began"] for each in found]
        ended = [each["ended"] for each in found]
        return {
            "parts": len(plan.parts),
            "done": len(found),
            **{
                name: sum(each[name] for each in found)
                for name in ("rows", "written", "errors", "tokens", "seconds")
            },
            "elapsed": max(ended) - min(began) if found else 0.0,
            "hosts": sorted({each["host"] for each in found}),
            "engines": sorted({each["engine"] for each in found}),
            "identity": dict(plan.identity),
        }

    def write_summary(self, plan: Plan) -> None:
        """Write summary.json."""
        with new_file(self.path / "summary.json") as file:
            file.write((json.dumps(self.summarize(plan), indent=1) + "\n").encode())


class RowsDone:
    """Counts the rows of finished parts, whichever worker finished them.

    It looks for each part that it has not seen finished, at most once a second, and for at most a
    twentieth of the time.
    """

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self._folder = folder
        self._left = list(plan.parts)
        self._rows = 0
        self._next = -math.inf  # when to look again

    def count(self) -> int:
        """Return how many rows were done when it last looked."""
        began = time.monotonic()
        if began >= self._next:
            parts, self._left = self._left, []
            for part in parts:
                if self._folder.is_done(part.number):
                    self._rows += part.rows
                else:
                    self._left.append(part)
            ended = time.monotonic()
            self._next = ended + max(1.0, 20 * (ended - began))
        return self._rows


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error is the disk's or the file system's, so that another part fails as well."""
    return isinstance(error, OSError) and error.errno in _DISK


def check_is_output(path: Path) -> None:
    """Raise FileError unless a folder has a plan in it."""
    if not (path / "plan.json").is_file():
        raise FileError(path, "no plan.json in it; expected the folder of a command with --out")
