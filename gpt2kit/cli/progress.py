"""Progress on stderr: bars on a terminal; in a log, a line for each file of a download."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2kit.cli import output
from gpt2kit.cli.output import human_size

if TYPE_CHECKING:
    from rich.progress import TaskID


def download_with_bars(
    model: str | None,
    *,
    source: str = "hub",
    revision: str | None = None,
    force: bool = False,
    verify: bool = True,
) -> Path:
    """Download a model, or for None GPT-2's vocabulary alone, and show its progress."""
    from gpt2kit.store.download import download, download_vocabulary

    with _Bars() if sys.stderr.isatty() else _Lines() as progress:
        if model is None:
            return download_vocabulary(progress=progress)
        return download(
            model, source=source, revision=revision, force=force, verify=verify, progress=progress
        )


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function of how much is done and of how much there is, for a bar on a terminal.

    None says that nobody knows how much there is.
    """
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<18}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.console(), transient=True) as progress:
        task = progress.add_task(output.one_line(what), total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


class _Lines:
    """Download progress as a line for each file, for logs."""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def started(self, file: str, total: int, already: int) -> None:
        resumed = f", {human_size(already)} of them here" if already else ""
        output.note(f"{file}: {human_size(total)}{resumed}")

    def advanced(self, n: int) -> None: ...

    def finished(self, file: str) -> None: ...

    def note(self, text: str) -> None:
        output.note(text)


class _Bars:
    """Download progress as a bar for each file."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=output.console())
        self._bars: dict[str, TaskID] = {}  # by the name of the file
        self._current: TaskID | None = None

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, file: str, total: int, already: int) -> None:
        if file not in self._bars:
            self._bars[file] = self._progress.add_task(file, total=total)
        self._current = self._bars[file]
        self._progress.update(self._current, completed=already)

    def advanced(self, n: int) -> None:
        if self._current is not None:
            self._progress.advance(self._current, n)

    def finished(self, file: str) -> None:
        self._progress.stop_task(self._bars[file])

    def note(self, text: str) -> None:
        self._progress.console.print(output.one_line(text))
