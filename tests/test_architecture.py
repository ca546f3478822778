"""The shape of the package: which way imports point, what start-up costs, and that the README's tree is the real one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gpt2kit"
README = PACKAGE.parent / "README.md"

# From the foundations up; a module may import from lines above its own, and from its own package.
LAYERS = [
    {"errors", "allocator", "pages", "dropout"},
    {"files"},
    {"config", "sampling"},
    {"catalogue", "store", "recipes", "distributed"},
    {"cache", "tokenizers", "download"},
    {"model", "reference", "texts"},
    {"optim", "lora", "corpus", "quantize", "static_cache", "snapshot"},
    {"sharding"},
    {"native", "static_step", "checkpoints", "originality"},
    {"decoder", "train"},
    {"prompts"},
    {"speculate"},
    {"continuation"},
    {"generate", "plan", "surprisal", "tensorboard"},
    {"evaluate", "inspection", "verify", "training_setup"},
    {"tasks", "compare"},
    {"plots"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


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
            parts |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gpt2kit.")}
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
    assert not calls & {"print", "exit", "quit", "sys.exit", "os._exit", "typer.echo", "sys.stdout.write", "sys.stderr.write"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_small_enough_to_be_read(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    longest = max(((node.end_lineno or 0) - node.lineno + 1 for node in functions), default=0)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 480
    assert longest <= 70


@pytest.mark.parametrize("command", [["-c", "import gpt2kit"], ["-c", "import gpt2kit.cli"], ["-m", "gpt2kit", "--help"]])
def test_torch_is_not_imported_before_it_is_needed(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "gpt2kit" in imported
    assert not imported & {"torch", "numpy", "tiktoken", "safetensors", "huggingface_hub", "httpx2"}


def test_the_readme_tree_lists_every_module_with_its_own_first_line() -> None:
    tree, folder = {}, ""
    for indent, name, text in re.findall(r"^(│   )?[├└]── (\S+?/?)\s+# (.+)$", README.read_text(encoding="utf-8"), re.MULTILINE):
        folder = folder if indent else name if name.endswith("/") else ""
        tree[f"{name}__init__.py" if name.endswith("/") else folder + name] = text
    for path in modules():
        first_line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        name = path.relative_to(PACKAGE).as_posix()
        assert tree.get(name) == first_line.removesuffix("."), f"{name}: the README says {tree.get(name)!r}"
