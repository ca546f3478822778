"""The public door: every exported name is there, and stays what it is."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import gpt2kit

API = Path(__file__).parent.parent / "docs/api.md"


@pytest.mark.parametrize("name", gpt2kit.__all__)
def test_every_exported_name_resolves(name: str) -> None:
    assert getattr(gpt2kit, name) is not None


def test_the_names_for_type_checkers_are_the_names_that_resolve() -> None:
    tree = ast.parse(Path(gpt2kit.__file__ or "").read_text(encoding="utf-8"))
    typed = {
        alias.asname: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == gpt2kit._EXPORTS


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        gpt2kit.nothing  # noqa: B018


def test_no_exported_name_is_also_a_module_beside_the_door() -> None:
    # Importing a module gpt2kit.generate would replace the function gpt2kit.generate.
    beside = {path.stem for path in Path(gpt2kit.__file__ or "").parent.iterdir()}
    assert not beside & set(gpt2kit.__all__)


def test_the_api_page_lists_every_public_name_with_its_own_first_line() -> None:
    page = API.read_text(encoding="utf-8")
    assert page == api(page), f"expected in {API.name}:\n{api(page)}"


def api(page: str) -> str:
    """Return the API page with a table of names and first lines for every module that it names."""

    def table(match: re.Match[str]) -> str:
        module = importlib.import_module(match[1])
        rows = [f"| `{name}` | {first_line(getattr(module, name))} |" for name in module.__all__]
        return "\n".join([f"## {match[1]}", "", "| name | |", "|---|---|", *rows, ""])

    return re.sub(r"^## (gpt2kit\S*)\n\n(?:\|.*\n)*", table, page, flags=re.MULTILINE)


def first_line(thing: object) -> str:
    """Return the first line of the docstring of a function or class."""
    if not callable(thing):
        return "The published sizes by name, each a GPT2Config."
    return (inspect.getdoc(thing) or "").split("\n")[0]
