"""convert --format gguf, llmc and onnx, as a user types them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from conftest import make_model
from gguf_builders import characters
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from gpt2kit.checkpoints.classifiers import LabelWords, add_class_head
from gpt2kit.checkpoints.load import open_checkpoint, write_model
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of characters, in the current folder."""
    monkeypatch.chdir(tmp_path)
    config = GPT2Config(n_vocab=40, n_ctx=16, n_embd=32, n_head=2, n_layer=1)
    Path("small").mkdir()
    write_model(Path("small"), make_model(config), characters(40))
    return tmp_path


def test_gguf_is_compared_and_the_line_for_llama_cpp_comes_last(small: Path) -> None:
    result = run("convert", "./small", "--format", "gguf", "--dtype", "q8_0", "--to", "a b.gguf")
    assert result.exit_code == 0, result.output
    path, command = result.stdout.splitlines()
    assert path == "a b.gguf"
    words = shlex.split(command)
    assert words[:5] == ["llama-completion", "-m", "a b.gguf", "-c", "16"]
    assert words[-1] == "--ignore-eos"
    assert "tensors equal" in result.stderr
    assert "prompt and text together have more than 16" in result.stderr
    assert open_checkpoint(Path("a b.gguf")).format == "GGUF, F32 and Q8_0"


def test_onnx_is_computed_by_onnxruntime_and_the_line_for_node_comes_last(small: Path) -> None:
    arguments = ["convert", "./small", "--format", "onnx", "--to", "out"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    path, command = result.stdout.splitlines()
    assert path == "out"
    assert shlex.split(command)[:2] == ["node", "-e"]
    assert '"./out"' in command
    assert "tensors equal" in result.stderr
    assert "add --force to replace it" in run(*arguments).stderr
    assert run(*arguments, "--dtype", "int8", "--force").exit_code == 0
    assert [each.name for each in Path("out/onnx").iterdir()] == ["model_quantized.onnx"]
    assert "is no folder of this kind" in run(*arguments[:-1], "small", "--force").stderr


def test_a_converted_file_is_used_as_a_model_everywhere(small: Path) -> None:
    for format, name in (("gguf", "small.gguf"), ("llmc", "small.bin")):
        assert run("convert", "./small", "--format", format, "--to", name).exit_code == 0
        vocabulary = ["--vocabulary", "./small"] if format == "llmc" else []
        arguments = ["--model", f"./{name}", "--max_tokens", "3", "--temperature", "0"]
        expected = run("generate", "a", "--model", "./small", *arguments[2:]).stdout
        assert run("generate", "a", *arguments, *vocabulary).stdout == expected
        assert run("inspect", name).exit_code == 0
        assert run("verify", name).exit_code == 0
        assert run("convert", name, "--to", f"back-{format}", *vocabulary).exit_code == 0
        weights = Path(f"back-{format}/model.safetensors").read_bytes()
        assert weights == Path("small/model.safetensors").read_bytes()


WORDS = LabelWords(("a", "b"), "\n")


@pytest.mark.parametrize("format", ["hf", "gguf", "llmc", "onnx"])
def test_words_for_labels_go_along_or_their_lack_is_said(small: Path, format: str) -> None:
    """They were left out without a word."""
    WORDS.write(small / "small")
    name = {"gguf": "a/m.gguf", "llmc": "a/m.bin"}.get(format, "a")
    result = run("convert", "./small", "--format", format, "--to", name)
    assert result.exit_code == 0, result.output
    if format in ("hf", "onnx"):
        assert LabelWords.read(Path("a")) == WORDS
    else:
        said = "the file has no labels.json: in the other program, the label is the likeliest of"
        assert f"{said} 'a', 'b' behind a text and '\\n'" in result.stderr


@pytest.mark.parametrize("format", ["gguf", "llmc", "onnx"])
def test_a_head_for_labels_is_refused_by_name(small: Path, format: str) -> None:
    """ONNX left it out without a word."""
    model = make_model(GPT2Config(n_vocab=40, n_ctx=16, n_embd=32, n_head=2, n_layer=1))
    add_class_head(model, ("a", "b"))
    Path("head").mkdir()
    write_model(Path("head"), model, characters(40))
    result = run("convert", "./head", "--format", format, "--to", "out")
    assert result.exit_code == 1
    assert "cannot express a head for labels; --format hf writes" in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("format", ["hf", "gguf", "llmc", "onnx"])
def test_a_tied_head_that_differs_is_refused(small: Path, format: str) -> None:
    # The formats for other programs left it out without a word.
    tensors = load_file("small/model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["wte.weight"] + 1}, "small/model.safetensors")
    result = run("convert", "./small", "--format", format, "--to", "out")
    assert result.exit_code == 1
    assert "lm_head.weight differs from wte.weight, but the head is tied" in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("format", ["gguf", "llmc"])
def test_damaged_weights_are_called_damaged_and_not_too_large(small: Path, format: str) -> None:
    tensors = load_file("small/model.safetensors")
    tensors["ln_f.bias"][3] = float("nan")
    save_file(tensors, "small/model.safetensors")
    result = run("convert", "./small", "--format", format, "--to", "out")
    assert "ln_f.bias holds 1 numbers that are NaN or infinite; the weights are" in result.stderr


def test_a_file_is_replaced_with_force_and_only_by_its_own_kind(small: Path) -> None:
    to = ["convert", "./small", "--format", "gguf", "--to"]
    assert run(*to, "small.gguf").exit_code == 0
    before = os.stat("small.gguf").st_ino
    assert "add --force to replace it" in run(*to, "small.gguf").stderr
    assert os.stat("small.gguf").st_ino == before
    assert run(*to, "small.gguf", "--force").exit_code == 0
    assert os.stat("small.gguf").st_ino != before
    Path("thesis").write_text("mine")
    assert "is no file of this format" in run(*to, "thesis", "--force").stderr
    assert Path("thesis").read_text() == "mine"
    assert "is a folder" in run(*to, "small", "--force").stderr
    assert not [path for path in small.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "gguf", "--dtype", "float64"], "GGUF has f32, f16, bf16, q8_0, q4_0"),
        (["--format", "llmc", "--dtype", "f16"], "llm.c has f32, bf16"),
        (["--format", "onnx", "--dtype", "bf16"], "ONNX has f32, f16, int8"),
        (["--dtype", "q8_0"], "only --format gguf has"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--format", "llmc", "--untie"], "--untie has no effect here"),
        (["--untie"], "--untie has no effect here"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    small: Path, arguments: list[str], message: str
) -> None:
    result = run("convert", "./small", "--to", "new", *arguments)
    assert result.exit_code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not Path("new").exists()


def test_short_names_of_dtypes_are_taken_for_folders_and_long_ones_for_files(small: Path) -> None:
    assert run("convert", "./small", "--to", "new", "--dtype", "bf16").exit_code == 0
    to = ["--format", "gguf", "--to", "new.gguf", "--dtype", "bfloat16"]
    assert run("convert", "./small", *to).exit_code == 0
    assert open_checkpoint(Path("new.gguf")).format == "GGUF, BF16 and F32"
