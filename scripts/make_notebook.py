"""Write the notebooks: pages of docs with the outputs of their commands and examples.

    python scripts/make_notebook.py [course|circuits] [--check]

A command on a page becomes a cell that runs it, a picture is shown, and Python examples are cells
as they are. Commands that need GPT-2's own weights are text. The cells are run in the working
folder. That of docs/learn needs tinyshakespeare.txt, names.txt and the-verdict.txt in it (`python
scripts/fetch_corpora.py`) and half an hour; docs/circuits.md needs ten minutes, and its pictures
are written to docs/images. `--check` writes nothing; its exit code is 1 if a notebook does not have
the cells of today's pages.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
LEARN = DOCS / "learn"
_HOW = """A line that begins with `!` is a command
of a terminal; `pip install '.[plots]'` in gpt2kit's folder brings all that the cells need."""
_COURSE = f"""# How a GPT works

The eight pages of [docs/learn](README.md) as a notebook. {_HOW}"""
_CIRCUITS = f"""The page [docs/circuits.md](../circuits.md) as a notebook. {_HOW}"""


@dataclass(frozen=True)
class Notebook:
    """A notebook, the pages that it is made from, and the text that it begins with."""

    path: Path
    pages: tuple[Path, ...]
    title: str


NOTEBOOKS = {
    "course": Notebook(LEARN / "course.ipynb", tuple(sorted(LEARN.glob("[0-9]*.md"))), _COURSE),
    "circuits": Notebook(DOCS / "notebooks" / "circuits.ipynb", (DOCS / "circuits.md",), _CIRCUITS),
}

# A command with one of these words needs GPT-2's weights, or a file that only the reader has.
NOT_RUN = ("124M", "gpt2-small", "divina", "letter.txt", "--version")

WIDTH = 900  # pixels of a picture of docs/images

Cell = dict[str, Any]  # as the notebook format, version 4.5, has it


def cells(page: str) -> list[Cell]:
    """Return the cells of one page: its text, its commands and its Python examples."""
    found = []
    blocks = r"^(```(?:console|python)\n.*?^```)$"
    for part in re.split(blocks, page, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```python"):
            found.append(_code("\n".join(part.splitlines()[1:-1])))
        elif part.startswith("```console") and (commands := _commands(part)):
            found += [_code(command) for command in commands]
        elif text := _text(part):
            found.append({"cell_type": "markdown", "metadata": {}, "source": text})
    return found


def _code(source: str) -> Cell:
    empty: Cell = {"execution_count": None, "metadata": {}, "outputs": []}
    return {"cell_type": "code", "source": source, **empty}


def _commands(block: str) -> list[str]:
    """Return the cells for the commands of a console block; none if one needs what is not here."""
    lines = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    if any(word in line for line in lines for word in NOT_RUN):
        return []
    return [_shell(line.partition("    #")[0]) for line in lines]


def _shell(command: str) -> str:
    """Return the source of a cell that runs a command, and shows the picture if it makes one."""
    words = shlex.split(command)
    if "--picture" in words:
        picture = words[words.index("--picture") + 1]
    elif words[:2] != ["gpt2kit", "plot"]:
        return f"!{command}"
    else:
        if "--out" not in words:
            command += f" --out {words[2]}.png"
        picture = shlex.split(command)[-1]
    return f'!{command}\n\nfrom IPython.display import Image\n\nImage("{picture}", width=800)'


def _text(part: str) -> str:
    """Return the text between two blocks, without the pictures, which the cells make."""
    without = re.sub(r"^(!\[|Next: ).*\n?", "", part, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", without).strip()


def build(book: Notebook) -> dict[str, Any]:
    """Return the notebook of today's pages, without outputs."""
    found: list[Cell] = [{"cell_type": "markdown", "metadata": {}, "source": book.title}]
    for page in book.pages:
        found += cells(page.read_text(encoding="utf-8"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [{"id": f"cell-{number}", **cell} for number, cell in enumerate(found)],
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def sources(notebook: dict[str, Any]) -> list[str]:
    """Return the source of each cell; in a file it may be a list of lines."""
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook with the outputs of its cells; raises the error of a cell that fails."""
    import nbclient
    import nbformat

    ran = nbclient.NotebookClient(nbformat.from_dict(notebook), timeout=3600).execute()
    done: dict[str, Any] = json.loads(nbformat.writes(ran))
    for cell in done["cells"]:
        cell["metadata"] = {}  # times of this machine
        cell["outputs"] = compact(cell.get("outputs", []))
    return done


def compact(outputs: list[Cell]) -> list[Cell]:
    """Return the outputs of a cell as they look at its end: one text, and smaller pictures."""
    texts = ["".join(each["text"]) for each in outputs if each["output_type"] == "stream"]
    others = [each for each in outputs if each["output_type"] != "stream"]
    for each in others:
        if png := each.get("data", {}).get("image/png"):
            each["data"]["image/png"] = _fewer_colors(png)
    text = as_shown("".join(texts))
    return [{"name": "stdout", "output_type": "stream", "text": text}] * bool(text) + others


def as_shown(text: str) -> str:
    """Return what a terminal shows in the end: no colors, and only the last state of each line."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r\n", "\n")
    lines = [line.rpartition("\r")[2].rstrip() for line in plain.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _fewer_colors(png: str) -> str:
    """Return a base64 PNG with 64 colors, which is a third of its size."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64).save(
        small, "PNG", optimize=True
    )
    return base64.b64encode(small.getvalue()).decode("ascii")


def keep_pictures(pages: tuple[Path, ...]) -> None:
    """Copy the pictures that the cells made to docs/images, if a page shows them."""
    from PIL import Image

    for page in pages:
        for name in re.findall(r"\(images/([\w-]+\.png)\)", page.read_text(encoding="utf-8")):
            picture = Image.open(name)
            picture.thumbnail((WIDTH, WIDTH))
            picture.convert("RGB").quantize(64).save(DOCS / "images" / name, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NOTEBOOKS, nargs="?", default="course")
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 if old")
    chosen = parser.parse_args()
    book = NOTEBOOKS[chosen.name]
    notebook = build(book)
    if chosen.check:
        old = sources(json.loads(book.path.read_text(encoding="utf-8"))) != sources(notebook)
        sys.exit("the pages have changed; run scripts/make_notebook.py" if old else 0)
    text = json.dumps(run(notebook), indent=1, ensure_ascii=False, sort_keys=True)
    book.path.parent.mkdir(exist_ok=True)
    book.path.write_text(text + "\n", encoding="utf-8")
    if chosen.name == "circuits":
        keep_pictures(book.pages)


if __name__ == "__main__":
    main()
