"""The shape of the package: direction of imports, sizes, tests, start-up, documented tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "gpt2kit"
ARCHITECTURE = PACKAGE.parent / "docs/architecture.md"

# From the top down; a part imports from the layers below its own, and from itself.
LAYERS = """
__init__ __main__
cli
serve
bulk
plots
evaluation
inspection
training
generation
checkpoints engine
lora quantize
model data
variants
tokenizers store cache reference
files config
fields attention
errors dropout
"""
LEVEL = {name: -line for line, names in enumerate(LAYERS.splitlines()) for name in names.split()}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the module or subpackage of gpt2kit that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Return the parts of gpt2kit that a file imports, at any level."""
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


# The files that test modules without a file of tests of their own. Each of these modules is a part
# of a larger whole, and is tested as a part of it.
TESTED_BY = {
    "bulk/test_cutting.py": "bulk/sources",
    "bulk/test_kills.py": "bulk/texts bulk/words",
    "bulk/test_bulk.py": """
        bulk/handout bulk/job bulk/measures bulk/options
        bulk/processes bulk/run bulk/work
    """,
    "cli/test_parts_command.py": "cli/bulk cli/generation_in_parts",
    "data/test_streams.py": "data/packed data/parquet",  # formats, each through `read_batches`
    "checkpoints/test_courses.py": """
        checkpoints/layouts checkpoints/torch_files checkpoints/unsaid
    """,  # weights of other programs, each through `open_checkpoint`
    "checkpoints/test_gguf_numbers.py": "checkpoints/gguf/numbers",
    "checkpoints/test_gguf_reading.py": "checkpoints/gguf/header checkpoints/gguf/reading",
    "checkpoints/test_gguf_writing.py": """
        checkpoints/exports checkpoints/gguf/vocabulary checkpoints/gguf/writing checkpoints/plain
    """,  # from a model to a file that has been compared with it
    "checkpoints/test_peft.py": "checkpoints/peft/config checkpoints/peft/reading",
    "cli/test_peft_commands.py": "checkpoints/peft/writing",
    "checkpoints/test_reading.py": """
        checkpoints/config_json checkpoints/huggingface checkpoints/load
        checkpoints/nanogpt checkpoints/openai checkpoints/safetensors_files
    """,  # the formats, each through `load`
    "checkpoints/test_tf_bundle.py": "checkpoints/leveldb checkpoints/snappy checkpoints/tf_index",
    "cli/test_explain_command.py": "cli/explain_report cli/explain_words",
    "cli/test_generation.py": "cli/generation_report cli/prompts",
    "cli/test_filter_command.py": "cli/criteria cli/files",
    "cli/test_help.py": "cli/color cli/options",
    "cli/test_output.py": "cli/progress",
    "cli/test_plots_command.py": "cli/pictures",
    "cli/test_replay.py": "cli/receipts",
    "cli/test_steer_option.py": "cli/steering",
    "cli/test_suites_command.py": "evaluation/accuracy",
    "cli/test_training_commands.py": "cli/training_report cli/training_summary",
    "engine/test_decoder.py": "engine/native_engine engine/protocol engine/torch_engine",
    "engine/test_native.py": "engine/native/library",
    "engine/test_shortlist.py": "engine/native/sketch",
    "generation/test_constraints.py": """
        generation/constraints/automaton generation/constraints/constraint
        generation/constraints/entries generation/constraints/lines generation/constraints/pattern
        generation/constraints/regular generation/constraints/utf8
        generation/constraints/vocabulary
    """,  # from a pattern to the tokens that it allows
    "cli/test_surprisal_command.py": "evaluation/receipt",
    "data/test_example_rows.py": "data/batches",
    "evaluation/test_classification.py": "checkpoints/classifiers",
    "evaluation/test_cloze.py": "cli/cloze",
    "cli/test_embed_command.py": "data/arrays evaluation/vector_options",
    "cli/test_word_vectors.py": "evaluation/vector_tables",
    "evaluation/test_criteria.py": "evaluation/criteria_options",
    "evaluation/test_words.py": "evaluation/distributions evaluation/word_options",
    "generation/test_continuation.py": "generation/row",
    "generation/test_text.py": "generation/stop_texts",
    "inspection/test_explanation.py": "inspection/attribution",
    "inspection/test_patching.py": "inspection/patch_options",
    "inspection/test_running.py": "inspection/edits inspection/hooks inspection/places",
    "serve/test_asgi.py": """
        serve/answering serve/errors serve/receipts serve/rows serve/service serve/settings
    """,
    "checkpoints/test_onnx_writing.py": """
        checkpoints/onnx/folder checkpoints/onnx/graph checkpoints/onnx/nodes
        checkpoints/onnx/proven checkpoints/onnx/runtime checkpoints/onnx/weights
        checkpoints/onnx/writing
    """,
    "serve/test_server.py": "serve/connection serve/life",
    "store/test_download.py": "store/hub store/parts store/retries store/transfer",
    "test_lora.py": "checkpoints/adapters",
    "test_public_api.py": "inspection/public",
    "tokenizers/test_bpe.py": "tokenizers/bpe_files",
    "tokenizers/test_char.py": "tokenizers/listed",  # and test_word.py
    "tokenizers/test_tokenizers.py": "tokenizers/protocol",
    "training/test_distributed.py": "training/sharding",  # needs several processes
    "training/test_loop.py": "training/trainer",
    "training/test_options.py": "training/config training/keywords",
    "training/test_setup.py": "training/start",
}


def test_every_module_has_a_file_of_tests_in_the_same_folder_or_is_listed_with_one() -> None:
    listed = {module for names in TESTED_BY.values() for module in names.split()}
    for home in TESTED_BY:
        assert (TESTS / home).exists(), f"TESTED_BY names tests/{home}, which is not there"
    without = {
        module.removesuffix(".py")
        for module in (str(path.relative_to(PACKAGE)) for path in modules())
        if "__" not in module and not own_tests(Path(module))
    }
    missing = sorted(without - listed)
    assert not missing, f"write a file of tests for {missing}, or list them in TESTED_BY"
    stale = sorted(listed - without)
    assert not stale, f"{stale} have files of tests of their own: take them out of TESTED_BY"


def own_tests(module: Path) -> list[Path]:
    """Return the files of tests with the name of a module: test_name.py and test_name_*.py."""
    folder = TESTS / module.parent
    return [*folder.glob(f"test_{module.stem}.py"), *folder.glob(f"test_{module.stem}_*.py")]


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
