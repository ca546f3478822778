"""docs/learn: what its pages quote is the code as it is; and notebooks have their pages' cells."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap

import make_notebook
import pytest

LEARN = make_notebook.LEARN
QUOTED = [
    (page.name, *found)
    for page in sorted(LEARN.glob("*.md"))
    for found in re.findall(
        r"^```py\n# (gpt2kit/\S+)\.py: ([\w.]+)\n(.*?)^```",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
]


def test_every_page_quotes_the_code() -> None:
    pages = {page.name for page in LEARN.glob("[0-9]*.md")}
    assert len(pages) == 8
    assert {page for page, *_ in QUOTED} == pages


@pytest.mark.parametrize(("page", "module", "name", "quoted"), QUOTED)
def test_what_a_page_quotes_is_in_the_code(page: str, module: str, name: str, quoted: str) -> None:
    """Runs of lines between two "…" stand together in the source of what the first line names."""
    found = importlib.import_module(module.replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    source = textwrap.dedent(inspect.getsource(found))
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    runs = re.split(r"^\s*…\n", quoted, flags=re.MULTILINE)
    assert any(run.strip() for run in runs), f"{page} quotes nothing of {name}"
    for run in runs:
        wanted = [line.strip() for line in run.splitlines() if line.strip()]
        there = [lines[i : i + len(wanted)] for i in range(len(lines))]
        assert not wanted or wanted in there, f"{page}: not in {name}:\n{run}"


@pytest.mark.parametrize(("name", "cells"), [("course", 20), ("circuits", 12)])
def test_a_notebook_has_the_cells_of_the_pages_and_their_outputs(name: str, cells: int) -> None:
    book = make_notebook.NOTEBOOKS[name]
    written = json.loads(book.path.read_text(encoding="utf-8"))
    assert make_notebook.sources(written) == make_notebook.sources(make_notebook.build(book))
    ran = [cell for cell in written["cells"] if cell["cell_type"] == "code"]
    assert len(ran) > cells
    for cell in ran:
        assert cell["outputs"], "".join(cell["source"])
        assert all(output["output_type"] != "error" for output in cell["outputs"])


def test_a_progress_bar_is_written_once_as_it_ended() -> None:
    said = "\x1b[2mread\x1b[0m\r\n 0/9\r\x1b[2K 9/9 loss 2.1\r\n\r\n\r\n\r\ndone\r\n"
    assert make_notebook.as_shown(said) == "read\n 9/9 loss 2.1\n\ndone\n"
