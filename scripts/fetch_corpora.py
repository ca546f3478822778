"""Download the texts of the recipes and the demo, all in the public domain, and check them.

    python scripts/fetch_corpora.py                  all of them, into corpora/
    python scripts/fetch_corpora.py names verdict --out texts

A text that is there and right is not fetched again. stdout has a line for each file, its sha256 and
path, as `sha256sum -c` reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from gpt2kit.data.encodings import decode
from gpt2kit.errors import CorpusError, DownloadError, Gpt2KitError
from gpt2kit.files import write_whole
from gpt2kit.store.parts import RemoteFile, drop_sidecars
from gpt2kit.store.retries import Patience, Progress, Silent, shown
from gpt2kit.store.transfer import Transfer

GITHUB = "https://raw.githubusercontent.com"
HEADING = re.compile(r"(Inferno|Purgatorio|Paradiso)\W+Canto [IVX]+")
TITLES = ("LA DIVINA COMMEDIA", "di Dante Alighieri", "INFERNO", "PURGATORIO", "PARADISO")
CANTOS, VERSES = 100, 14_233


def comedy(text: str) -> str:
    """Return the poem alone, without Project Gutenberg's license and notes, and unindented.

    The license does not allow passing them on with the text. Raises CorpusError unless the poem
    has all cantos and verses.
    """
    lines = [line.strip() for line in text.splitlines()]
    first = next((index for index, line in enumerate(lines) if line == "LA DIVINA COMMEDIA"), 0)
    last = next(
        (
            index
            for index, line in enumerate(lines)
            if index > first and re.match(r"- - -|\*\*\* END OF|End of ", line)
        ),
        len(lines),
    )
    lines = lines[first:last]
    cantos = sum(HEADING.fullmatch(line) is not None for line in lines)
    verses = sum(
        bool(line) and not HEADING.fullmatch(line) and line not in TITLES for line in lines
    )
    if (cantos, verses) != (CANTOS, VERSES):
        raise CorpusError(
            f"the Comedy has {cantos} cantos and {verses:,} verses, "
            f"expected {CANTOS} and {VERSES:,}"
        )
    return "\n".join(lines).strip() + "\n"


@dataclass(frozen=True)
class Source:
    """A text on the network, with the file's sha256, or a function that extracts and checks it."""

    file: str
    url: str
    size: int | None = None
    sha256: str | None = None
    prepare: Callable[[str], str] | None = None


SOURCES = {
    "dante": Source(
        "dante-commedia.txt", "https://www.gutenberg.org/cache/epub/1012/pg1012.txt", prepare=comedy
    ),
    "shakespeare": Source(
        "tinyshakespeare.txt",
        f"{GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/"
        "tinyshakespeare/input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "names": Source(
        "names.txt",
        f"{GITHUB}/karpathy/makemore/988aa59e4d8fefa526d06f3b453ad116258398d4/names.txt",
        228_145,
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    ),
    "verdict": Source(
        "the-verdict.txt",
        f"{GITHUB}/rasbt/LLMs-from-scratch/28c65cdfbc3338e2e040016eea4b7fdf556e4d57/"
        "ch02/01_main-chapter-code/the-verdict.txt",
        20_479,
        "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
    ),
}


def fetch(
    source: Source,
    folder: Path,
    *,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch a text into a folder unless it is there; return its path.

    Raises DownloadError or CorpusError.
    """
    path = folder / source.file
    if _is_right(path, source):
        return path
    staging = folder / f".{source.file}.fetching"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with Transfer(
            endpoint=source.url,
            headers={},
            refusal=_refusal,
            patience=patience or Patience(),
            progress=progress or Silent(),
        ) as transfer:
            size = (
                source.size
                if source.size is not None
                else _size(transfer.head(source.url), source.url)
            )
            digests = {"sha256": source.sha256} if source.sha256 else {}
            transfer.fetch(
                RemoteFile(name=source.file, url=source.url, size=size, digests=digests), staging
            )
        fetched = staging / source.file
        if source.prepare is not None:
            write_whole(fetched, source.prepare(decode(fetched.read_bytes(), fetched)))
        fetched.replace(path)
        drop_sidecars(staging)
    except OSError as error:
        raise DownloadError(
            f"cannot write {error.filename or folder}: {error.strerror or error}", path=path
        ) from error
    finally:
        with contextlib.suppress(OSError):
            staging.rmdir()  # fails if a part is left, which the next call continues
    return path


def _is_right(path: Path, source: Source) -> bool:
    if not path.is_file():
        return False
    data = path.read_bytes()
    if source.prepare is None:
        return hashlib.sha256(data).hexdigest() == source.sha256
    try:
        return source.prepare(decode(data, path)).encode() == data
    except CorpusError:
        return False


def _size(headers: httpx2.Headers, url: str) -> int:
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit()):
        raise DownloadError(
            f"{shown(url)}: the server does not say how large the file is", url=shown(url)
        )
    return int(length)


def _refusal(response: httpx2.Response) -> str:
    return (
        f"{shown(str(response.url))}: the server answered {response.status_code}; "
        "any other copy of the text will do"
    )


class Notes(Silent):
    """Reports waits and retries on stderr."""

    def note(self, text: str) -> None:
        typer.echo(text, err=True)


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help=f"{', '.join(SOURCES)}; all without a name."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder to put them in.")
    ] = Path("corpora"),
) -> None:
    """Download the texts of the recipes and the demo, all in the public domain."""
    if unknown := set(names or ()) - SOURCES.keys():
        raise typer.BadParameter(
            f"no corpus is called {', '.join(sorted(unknown))}; there are {', '.join(SOURCES)}"
        )
    for name in names or SOURCES:
        try:
            path = fetch(SOURCES[name], out, progress=Notes())
        except Gpt2KitError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(1) from error
        typer.echo(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")


if __name__ == "__main__":
    app()
