"""fetch_corpora.py: the right text or none, from a server on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import FakeServer
from typer.testing import CliRunner

from gpt2kit.errors import CorpusError, DownloadError
from gpt2kit.store.retries import Patience

SCRIPT = Path(__file__).parents[2] / "scripts/fetch_corpora.py"
PATIENCE = Patience(connect=2, read=2, tries=3, lookups=2, backoff=0.01)
NAMES = b"emma\nolivia\nava\n" * 1000


@pytest.fixture(scope="module")
def script() -> Any:
    specification = importlib.util.spec_from_file_location("fetch_corpora", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["fetch_corpora"] = module  # where dataclasses look
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.contents["/names.txt"] = NAMES
    yield server
    server.close()


@pytest.fixture
def names(script: Any, server: FakeServer) -> Any:
    return script.Source(
        "names.txt", f"{server.url}/names.txt", len(NAMES), hashlib.sha256(NAMES).hexdigest()
    )


def ebook(verses: int = 14_233) -> str:
    """Something of the shape of the Comedy at Project Gutenberg."""
    lines = [
        "Licence",
        "*** START OF THE PROJECT GUTENBERG EBOOK ***",
        "",
        "Produced by",
        "  LA DIVINA COMMEDIA",
        "  di Dante Alighieri",
    ]
    cantos = [("Inferno", 34), ("Purgatorio", 33), ("Paradiso", 33)]
    for canticle, n in cantos:
        lines += ["", f"  {canticle.upper()}", ""]
        for canto in range(n):
            lines += [
                "",
                f"  {canticle} • Canto {'X' * (canto // 9 + 1)}",
                "",
                *(f"  verso {verse}" for verse in range(142)),
                "",
            ]
    lines += ["  l’amor"] * (verses - 100 * 142)
    return "\r\n".join(
        [
            *lines,
            "",
            "  - - - - -",
            "",
            "  à = a grave",
            "*** END OF THE PROJECT GUTENBERG EBOOK ***",
            "Licence",
        ]
    )


def test_a_text_is_fetched_once(
    script: Any, server: FakeServer, names: Any, tmp_path: Path
) -> None:
    path = script.fetch(names, tmp_path / "corpora", patience=PATIENCE)
    assert path.read_bytes() == NAMES
    assert [file.name for file in path.parent.iterdir()] == ["names.txt"]
    script.fetch(names, tmp_path / "corpora", patience=PATIENCE)
    assert len(server.gets("names.txt")) == 1


def test_a_damaged_copy_is_fetched_again(script: Any, names: Any, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(NAMES[:-1])
    assert script.fetch(names, tmp_path, patience=PATIENCE).read_bytes() == NAMES


def test_a_broken_connection_is_gone_on_with(
    script: Any, server: FakeServer, names: Any, tmp_path: Path
) -> None:
    server.order("names.txt", "cut", after=10_000)
    assert script.fetch(names, tmp_path, patience=PATIENCE).read_bytes() == NAMES
    assert [request.headers.get("range") for request in server.gets("names.txt")] == [
        None,
        "bytes=10000-",
    ]


def test_a_text_with_another_hash_is_refused(
    script: Any, server: FakeServer, names: Any, tmp_path: Path
) -> None:
    server.contents["/names.txt"] = NAMES.replace(b"ava", b"eva")
    with pytest.raises(DownloadError, match="has the sha256"):
        script.fetch(names, tmp_path, patience=PATIENCE)
    assert not (tmp_path / "names.txt").exists()


def test_a_missing_text_is_refused(
    script: Any, server: FakeServer, names: Any, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match=r"none\.txt: the server answered 404"):
        script.fetch(replace(names, url=f"{server.url}/none.txt"), tmp_path, patience=PATIENCE)
    assert list(tmp_path.iterdir()) == []


def test_the_comedy_is_cut_out_of_the_ebook_and_counted(
    script: Any, server: FakeServer, tmp_path: Path
) -> None:
    server.contents["/pg1012.txt"] = b"\xef\xbb\xbf" + ebook().encode()
    source = script.Source("dante.txt", f"{server.url}/pg1012.txt", prepare=script.comedy)
    text = script.fetch(source, tmp_path, patience=PATIENCE).read_bytes().decode()
    assert text.startswith(
        "LA DIVINA COMMEDIA\ndi Dante Alighieri\n\nINFERNO\n\n\nInferno • Canto X\n\nverso 0\n"
    )
    assert text.endswith("\nl’amor\n")
    assert "Gutenberg" not in text
    assert "\r" not in text
    script.fetch(source, tmp_path, patience=PATIENCE)
    assert len(server.gets("pg1012.txt")) == 1


def test_a_comedy_that_lacks_a_verse_is_refused(
    script: Any, server: FakeServer, tmp_path: Path
) -> None:
    server.contents["/pg1012.txt"] = ebook(14_232).encode()
    source = script.Source("dante.txt", f"{server.url}/pg1012.txt", prepare=script.comedy)
    with pytest.raises(CorpusError, match="100 cantos and 14,232 verses, expected 100 and 14,233"):
        script.fetch(source, tmp_path, patience=PATIENCE)
    assert not (tmp_path / "dante.txt").exists()


def test_a_comedy_of_another_edition_is_counted_too(script: Any, test_data: Path) -> None:
    text = (test_data / "corpora/dante-commedia.txt").read_text(encoding="utf-8")
    assert script.comedy(text).count("Canto") == 100


def test_the_command_prints_a_sum_for_each_file(
    script: Any, names: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "SOURCES", {"names": names})
    result = CliRunner().invoke(script.app, ["names", "--out", str(tmp_path)])
    assert result.stdout == f"{names.sha256}  {tmp_path / 'names.txt'}\n"
    result = CliRunner().invoke(script.app, ["poems", "--out", str(tmp_path)])
    assert result.exit_code == 2


def test_a_failure_is_one_line(
    script: Any, server: FakeServer, names: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "SOURCES", {"names": replace(names, url=f"{server.url}/none.txt")})
    result = CliRunner().invoke(script.app, ["--out", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
