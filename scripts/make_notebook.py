"""Write docs/learn/course.ipynb: the pages of docs/learn as one notebook, with the outputs of its cells.

    python scripts/make_notebook.py [--check]

A command on a page becomes a cell that runs it, a plot is shown, and Python examples are cells as they
are. Commands that need GPT-2's own weights are shown, not run. `--check` writes nothing and exits
with 1 if the notebook does not have the cells of today's pages. Running the cells needs
`pip install '.[plots,notebook]'`, tinyshakespeare.txt, names.txt and the-verdict.txt in the working
folder (`python scripts/fetch_corpora.py`), and about half an hour.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import nbformat

LEARN = Path(__file__).parent.parent / "docs" / "learn"
NOTEBOOK = LEARN / "course.ipynb"
INTRODUCTION = """# How a GPT works

The eight pages of [docs/learn](README.md) as a notebook. Lines that begin with `!` are commands of a terminal."""

# A command with one of these words needs GPT-2's weights, or a file that only the reader has.
NOT_RUN = ("124M", "gpt2-small", "divina", "letter.txt", "--version")


def pages() -> list[Path]:
    """Return the pages in the order in which they are read."""
    return sorted(LEARN.glob("[0-9]*.md"))


def cells(page: str) -> list[Any]:
    """Return the cells of one page: its text, its commands and its Python examples."""
    found = []
    for part in re.split(
        r"^(```(?:console|python)\n.*?^```)$", page, flags=re.MULTILINE | re.DOTALL
    ):
        if part.startswith("```python"):
            found.append(nbformat.v4.new_code_cell(_inside(part)))
        elif part.startswith("```console") and (commands := _commands(part)):
            found += [nbformat.v4.new_code_cell(command) for command in commands]
        elif text := _text(part):
            found.append(nbformat.v4.new_markdown_cell(text))
    return found


def _inside(block: str) -> str:
    return "\n".join(block.splitlines()[1:-1])


def _commands(block: str) -> list[str]:
    """Return the cells for the commands of a console block; none if they cannot be run everywhere."""
    lines = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    if any(word in line for line in lines for word in NOT_RUN):
        return []
    return [_cell(line.partition("    #")[0]) for line in lines]


def _cell(command: str) -> str:
    """Return the cell that runs a command, and shows the picture if it makes one."""
    words = shlex.split(command)
    if words[:2] != ["gpt2kit", "plot"]:
        return f"!{command}"
    out = words[words.index("--out") + 1] if "--out" in words else f"{words[2]}.png"
    named = command if "--out" in words else f"{command} --out {out}"
    return f'!{named}\n\nfrom IPython.display import Image\n\nImage("{out}", width=800)'


def _text(part: str) -> str:
    """Return the text between two blocks, without pictures: the cells make them."""
    text = re.sub(r"^!\[.*\n?", "", part, flags=re.MULTILINE)
    text = re.sub(r"^Next: .*\n?", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def build() -> Any:
    """Return the notebook of today's pages, without outputs."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell(INTRODUCTION)]
    for page in pages():
        notebook.cells += cells(page.read_text(encoding="utf-8"))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same in every build, unlike the random ones
    notebook.metadata.kernelspec = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    return notebook


def is_current() -> bool:
    """Return whether the notebook has the cells of today's pages."""
    if not NOTEBOOK.exists():
        return False
    written = nbformat.read(NOTEBOOK, as_version=4)
    return [cell.source for cell in written.cells] == [cell.source for cell in build().cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit code 1 if it is old"
    )
    if parser.parse_args().check:
        sys.exit(
            0 if is_current() else "docs/learn/course.ipynb is older than the pages: make it anew"
        )
    from nbclient import NotebookClient

    notebook = build()
    NotebookClient(notebook, timeout=3600).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this machine
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
