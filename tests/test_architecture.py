"""The shape of the package: which way imports point, what start-up costs, and that the documented tree is the real one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gpt2kit"
ARCHITECTURE = PACKAGE.parent / "docs/architecture.md"

# From the top down; a part imports from the layers below its own, and from itself.
LAYERS = """
__init__ __main__
cli
plots
evaluation
inspection
training generation
checkpoints engine
lora quantize
model data
tokenizers store cache reference
files config
fields
errors memory dropout
"""
LEVEL = {name: -line for line, names in enumerate(LAYERS.splitlines()) for name in names.split()}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the module or subpackage of gpt2kit that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Return the parts of gpt2kit that a file imports anywhere, the public door and type hints of its own aside."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "gpt2kit":
            parts |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpt2kit."):
            parts.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            parts |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("gpt2kit.")
            }
    return parts


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in modules()} == LEVEL.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = part_of(path)
    upward = {part for part in imported_parts(path) if part != own and LEVEL[part] >= LEVEL[own]}
    assert not upward, f"{path.name} imports {upward}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if part_of(path) in ("cli", "__main__"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {
        "print",
        "exit",
        "quit",
        "sys.exit",
        "os._exit",
        "typer.echo",
        "sys.stdout.write",
        "sys.stderr.write",
    }


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_small_enough_to_be_read(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    longest = max(((node.end_lineno or 0) - node.lineno + 1 for node in functions), default=0)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600
    assert longest <= 100


@pytest.mark.parametrize(
    "command", [["-c", "import gpt2kit"], ["-c", "import gpt2kit.cli"], ["-m", "gpt2kit", "--help"]]
)
def test_torch_is_not_imported_before_it_is_needed(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True
    )
    imported = {
        line.rsplit("|", 1)[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "gpt2kit" in imported
    assert not imported & {"torch", "numpy", "tiktoken", "safetensors", "huggingface_hub", "httpx2"}


def test_the_tree_in_the_documentation_lists_every_module_with_its_own_first_line() -> None:
    documented = re.search(
        r"```text\n(.*?)```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert documented is not None
    assert documented[1] == tree(), f"expected this tree in {ARCHITECTURE.name}:\n{tree()}"


def tree() -> str:
    """Return every module with the first line of its docstring, a folder's own modules below it."""
    lines = []
    for path in sorted(
        modules(), key=lambda path: (len(path.relative_to(PACKAGE).parts) > 1, path)
    ):
        *folders, name = path.relative_to(PACKAGE).parts
        if name == "__init__.py" and folders:
            name = f"{folders.pop()}/"
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[
            0
        ]
        lines.append(f"{'    ' * len(folders) + name:<32}{first.removesuffix('.')}".rstrip() + "\n")
    return "".join(lines)
