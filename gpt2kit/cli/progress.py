"""Progress on stderr: bars on a terminal; elsewhere a line for each file of a download, and nothing for what only computes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from gpt2kit.cli.output import human_size


def download_with_bars(
    model: str,
    *,
    source: str = "hub",
    revision: str | None = None,
    force: bool = False,
    verify: bool = True,
) -> Path:
    """Download a model and show how it goes."""
    from gpt2kit.store.download import download

    with _Bars() if sys.stderr.isatty() else _Lines() as progress:
        return download(
            model, source=source, revision=revision, force=force, verify=verify, progress=progress
        )


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to tell how much is done and how much there is, which a bar shows while the block lasts."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


class _Lines:
    """A line for each file, for logs."""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def started(self, file: str, total: int, already: int) -> None:
        resumed = f", going on at {human_size(already)}" if already else ""
        typer.echo(f"{file}: {human_size(total)}{resumed}", err=True)

    def advanced(self, n: int) -> None: ...

    def finished(self, file: str) -> None: ...

    def note(self, text: str) -> None:
        typer.echo(text, err=True)


class _Bars:
    """A bar for each file."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._file: str | None = None
        self._task: int | None = None

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, file: str, total: int, already: int) -> None:
        if self._file == file:  # it begins again
            self._progress.update(self._task, completed=already)  # type: ignore[arg-type]
        else:
            self._file, self._task = (
                file,
                self._progress.add_task(file, total=total, completed=already),
            )

    def advanced(self, n: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, n)  # type: ignore[arg-type]

    def finished(self, file: str) -> None:
        if self._task is not None:
            self._progress.stop_task(self._task)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)
