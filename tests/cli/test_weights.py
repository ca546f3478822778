"""download, models, rm, convert, inspect and verify, as a user types them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from builders import add_vocabulary, hub_state, write_hub, write_layout, write_nanogpt
from conftest import GOLDEN, make_model
from servers import FakeHub
from typer.testing import CliRunner, Result

import gpt2kit
from gpt2kit import store
from gpt2kit.checkpoints.courses import TOY
from gpt2kit.checkpoints.load import open_checkpoint
from gpt2kit.cli import app
from gpt2kit.cli.options import human_size
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2) -> Path:
    return add_vocabulary(write_hub(tmp_path / "model", tiny_model))


@pytest.fixture
def installed(tiny_model: GPT2) -> Path:
    """A model under its name in the weights folder."""
    return add_vocabulary(write_hub(store.weights_dir() / "novel", tiny_model))


def failed(result: Result) -> str:
    """Return the one line of an error."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# --- models and rm --------------------------------------------------------------------------------


def test_models_lists_what_is_here(installed: Path) -> None:
    shutil.copytree(GOLDEN / "tf" / "micro-a", store.weights_dir() / "old-run")
    lines = run("models").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["novel", "old-run", "dante"]
    assert re.search(r"novel +\d+\.\d kB +- +safetensors +", lines[0])
    assert "OpenAI TensorFlow" in lines[1]
    assert re.search(r"dante +\d\.\d MB +bundled +safetensors +", lines[2])
    rows = [json.loads(line) for line in run("models", "--json").stdout.splitlines()]
    assert [(row["name"], row["format"], row["path"]) for row in rows] == [
        ("novel", "safetensors", str(installed)),
        ("old-run", "OpenAI TensorFlow", str(store.weights_dir() / "old-run")),
        ("dante", "safetensors", str(store.BUNDLED / "dante")),
    ]


def test_a_damaged_model_is_listed_as_such(installed: Path) -> None:
    (installed / "model.safetensors").write_bytes(b"x")
    assert "damaged; see: gpt2kit verify" in run("models").stdout


def test_a_graph_for_other_programs_is_listed_as_one(installed: Path) -> None:
    """It was listed as damaged, with a warning of a field that gpt2kit had written itself."""
    (installed / "model.safetensors").unlink()
    (installed / "onnx").mkdir()
    (installed / "onnx" / "model.onnx").write_bytes(b"graph")
    config = json.loads((installed / "config.json").read_text())
    config["transformers.js_config"] = {"dtype": "fp32"}
    (installed / "config.json").write_text(json.dumps(config))
    result = run("models")
    assert re.search(r"novel .* ONNX, for other programs +", result.stdout)
    assert result.stderr == ""
    said = failed(run("generate", "a", "--model", "novel"))
    assert "a graph for programs that compute with ONNX, and no weights" in said
    assert run("rm", "novel", "--yes").exit_code == 0


def test_no_models_says_what_to_type() -> None:
    result = run("models")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["dante"]
    assert "gpt2kit download 124M" in result.stderr


def test_the_bundled_model_is_not_removed(installed: Path) -> None:
    assert "dante comes with gpt2kit and is not removed" in failed(run("rm", "dante", "--yes"))
    assert (store.BUNDLED / "dante" / "model.safetensors").exists()


def test_rm_asks_first(installed: Path) -> None:
    result = run("rm", "novel", stdin="n\n")
    assert result.exit_code == 0
    assert "Remove" in result.stderr
    assert installed.exists()
    assert run("rm", "novel", stdin="y\n").exit_code == 0
    assert not installed.exists()


def test_rm_does_not_ask_with_yes(installed: Path) -> None:
    assert run("rm", "novel", "--yes").exit_code == 0
    assert not installed.exists()


def test_models_reports_what_interrupted_commands_left_and_rm_deletes_it() -> None:
    # A kill while deleting left the weights under a hidden name, which no command mentioned.
    left = store.weights_dir() / ".novel.removed"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"x" * 1500)
    (store.weights_dir() / ".124M.download").mkdir()
    result = run("models")
    assert "novel: 1.5 kB left by an interrupted command; to delete it, run: gpt2kit rm novel" in (
        result.stderr
    )
    assert "124M: 0 bytes left by an unfinished download" in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["dante"]
    assert run("rm", "novel", "--yes").exit_code == 0
    assert not left.exists()
    assert "novel" not in run("models").stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("command", ["models", "verify novel", "rm novel --yes"])
def test_a_pipe_in_the_place_of_the_record_stops_no_command(command: str, installed: Path) -> None:
    # Each of them waited for ever.
    os.mkfifo(installed / store.MANIFEST)
    result = run(*command.split())
    assert result.exit_code == (1 if command.startswith("verify") else 0)
    assert ("found a pipe" in result.stdout) == command.startswith("verify")


@pytest.mark.parametrize("name", ["nothing", "../model", "/etc", "."])
def test_rm_removes_only_models_of_the_weights_folder(model: Path, name: str) -> None:
    failed(run("rm", name, "--yes"))
    assert model.exists()


def test_rm_asks_for_what_an_alias_means_and_never_takes_another_source(tiny_model: GPT2) -> None:
    # It used to delete 124M-openai, and without asking, when 124M was not there.
    original = add_vocabulary(write_hub(store.weights_dir() / "124M-openai", tiny_model))
    failed(run("rm", "124M", "--yes"))
    hub = add_vocabulary(write_hub(store.weights_dir() / "124M", tiny_model))
    assert "Remove" in run("rm", "gpt2", stdin="n\n").stderr
    assert hub.exists()
    assert run("rm", "gpt2", stdin="y\n").exit_code == 0
    assert not hub.exists()
    assert original.exists()


# --- download -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["125M"], "did you mean 124M"),
        (
            ["llama"],
            "llama is not a published GPT-2; there are distilgpt2, 124M, 355M, 774M, 1558M. "
            "A Hub id is org/name",
        ),
        (["distilgpt2", "--source", "openai"], "OpenAI did not publish distilgpt2"),
        (["124M", "--source", "openai", "--revision", "main"], "no revisions"),
    ],
)
def test_an_impossible_download_is_refused_before_it_starts(
    arguments: list[str], message: str
) -> None:
    assert message in failed(run("download", *arguments))


def test_a_download_ends_with_its_folder_on_stdout(
    tiny_model: GPT2, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub = FakeHub()
    hub.add("someone/novel", files)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        result = run("download", "someone/novel")
    finally:
        hub.close()
    assert result.exit_code == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert folder == store.weights_dir() / "someone--novel"
    assert "model.safetensors: " in result.stderr
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert "someone/novel" in run("models").stdout
    assert run("verify", "someone/novel", "--device", "cpu").exit_code == 0


def test_a_download_that_was_damaged_since_is_refused_until_it_is_fetched_again(
    installed: Path, tmp_path: Path
) -> None:
    # It loaded and wrote another model's text, though the right hashes lay beside it.
    files = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in installed.iterdir()
    }
    store.Manifest("hub", "someone/novel", "c0ffee", files).write(installed)
    generate = ["generate", "a", "--max_tokens", "1", "--model", "novel"]
    assert run(*generate).exit_code == 0
    weights = bytearray((installed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (installed / "model.safetensors").write_bytes(weights)
    for command in (
        generate,
        ["inspect", "novel"],
        ["convert", "novel", "--to", str(tmp_path / "out")],
    ):
        message = failed(run(*command))
        assert f"{installed / 'model.safetensors'}: not as it was downloaded" in message
        assert "run: gpt2kit download someone/novel --force" in message
        assert run(*command, "--no_verify").exit_code == 0
    gpt2kit.load("novel", verify=False)
    assert "safetensors" in run("models").stdout  # a list reads no weights
    assert re.search(r"^FAIL +file model.safetensors", run("verify", "novel").stdout, re.MULTILINE)


# --- convert --------------------------------------------------------------------------------------


def test_convert_writes_a_folder_and_says_where(model: Path, tmp_path: Path) -> None:
    result = run("convert", str(model), "--to", str(tmp_path / "out"))
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out'}\n")
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize("kind", ["tf folder", "tf prefix", "bin", "sharded", "nanogpt file"])
def test_convert_takes_every_format(tmp_path: Path, tiny_model: GPT2, kind: str) -> None:
    source = {
        "tf folder": lambda: GOLDEN / "tf" / "micro-partitioned",
        "tf prefix": lambda: GOLDEN / "tf" / "micro-simple" / "model-10",
        "bin": lambda: GOLDEN / "hf" / "bin-hub-legacy",
        "sharded": lambda: GOLDEN / "hf" / "safetensors-sharded",
        "nanogpt file": lambda: write_nanogpt(tmp_path / "ckpt.pt", tiny_model),
    }[kind]()
    result = run("convert", str(source), "--to", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    assert "no vocabulary was found" in result.stderr
    assert "--vocabulary" in result.stderr
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    assert all(
        torch.equal(after.tensors[name].read(), stored.read())
        for name, stored in before.tensors.items()
    )


def test_convert_changes_the_dtype_and_takes_a_vocabulary_on_request(
    model: Path, tmp_path: Path
) -> None:
    arguments = ["--to", str(tmp_path / "out"), "--dtype", "bfloat16", "--vocabulary", str(model)]
    assert run("convert", str(GOLDEN / "tf" / "micro-a"), *arguments).exit_code == 0
    assert open_checkpoint(tmp_path / "out").tensors["wte.weight"].dtype == torch.bfloat16
    assert (tmp_path / "out" / "vocab.json").exists()


def test_convert_keeps_what_is_there_unless_forced(
    model: Path, tmp_path: Path, tiny_config: GPT2Config
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary").write_text("mine")
    assert "already exists" in failed(run("convert", str(model), "--to", str(tmp_path / "out")))
    assert (tmp_path / "out" / "diary").read_text() == "mine"
    write_hub(tmp_path / "older", make_model(tiny_config, seed=9))
    assert run("convert", str(model), "--to", str(tmp_path / "older"), "--force").exit_code == 0
    assert torch.equal(
        open_checkpoint(tmp_path / "older").tensors["wte.weight"].read(),
        open_checkpoint(model).tensors["wte.weight"].read(),
    )


@pytest.mark.parametrize("kind", ["a home", "a folder of models", "a file"])
def test_force_replaces_a_model_and_nothing_else(model: Path, tmp_path: Path, kind: str) -> None:
    # It used to delete whatever stood there.
    target = tmp_path / "precious"
    if kind == "a file":
        target.write_text("thesis")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("thesis")
    if kind == "a folder of models":
        write_model_like(target)
    failed(run("convert", str(model), "--to", str(target), "--force"))
    assert (target if kind == "a file" else target / "thesis.txt").read_text() == "thesis"


def test_force_does_not_delete_a_file_beside_a_model(model: Path, tmp_path: Path) -> None:
    """Beside a model only folders were looked for, so a file was deleted with it."""
    target = tmp_path / "out"
    arguments = ("convert", str(model), "--to", str(target))
    assert run(*arguments).exit_code == 0
    (target / "README.md").write_text("the card of the model")
    assert run(*arguments, "--force").exit_code == 0
    (target / "thesis.txt").write_text("thesis")
    message = failed(run(*arguments, "--force"))
    assert "holds more than a model, for example 'thesis.txt'" in message
    assert (target / "thesis.txt").read_text() == "thesis"


def write_model_like(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "another").mkdir()


@pytest.mark.parametrize("to", ["", ".", "/"])
def test_convert_needs_a_name_to_write_to(
    model: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    failed(run("convert", str(model), "--to", to, "--force"))
    assert list((tmp_path / "empty").iterdir()) == []


def test_convert_writes_nothing_that_cannot_be_loaded(tmp_path: Path, tiny_model: GPT2) -> None:
    state = hub_state(tiny_model)
    heads = {**state, "lm_head.weight": torch.zeros(512, 16)}
    assert "tie_word_embeddings" in failed(
        run(
            "convert",
            str(write_hub(tmp_path / "a", tiny_model, state=heads)),
            "--to",
            str(tmp_path / "out"),
        )
    )
    state["transformer.ln_f.bias"][0] = 1e6
    large = str(write_hub(tmp_path / "b", tiny_model, state=state))
    message = failed(run("convert", large, "--to", str(tmp_path / "out"), "--dtype", "float16"))
    assert (
        "ln_f.bias holds 1 numbers that are NaN or infinite as float16; take a wider --dtype"
        in message
    )
    state["transformer.ln_f.bias"][0] = float("nan")
    failed(
        run(
            "convert",
            str(write_hub(tmp_path / "c", tiny_model, state=state)),
            "--to",
            str(tmp_path / "out"),
        )
    )
    assert not (tmp_path / "out").exists()


def test_convert_keeps_the_widest_dtype_of_a_mixed_file(tmp_path: Path, tiny_model: GPT2) -> None:
    state = hub_state(tiny_model)
    state["transformer.wte.weight"] = state["transformer.wte.weight"].bfloat16()
    folder = write_hub(tmp_path / "a", tiny_model, state=state)
    assert run("convert", str(folder), "--to", str(tmp_path / "out")).exit_code == 0
    before, after = open_checkpoint(folder), open_checkpoint(tmp_path / "out")
    assert all(
        torch.equal(after.tensors[name].read(), stored.read().float())
        for name, stored in before.tensors.items()
    )


def test_a_damaged_source_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "tf" / "micro-a", source)
    data = bytearray((source / "model.ckpt.data-00000-of-00001").read_bytes())
    data[-1] ^= 1  # the last tensor: all others have been written by then
    (source / "model.ckpt.data-00000-of-00001").write_bytes(data)
    failed(run("convert", str(source), "--to", str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- inspect and verify ---------------------------------------------------------------------------


def test_inspect_shows_configuration_tensors_parts_and_memory(model: Path) -> None:
    shown = run("inspect", str(model)).stdout
    assert re.search(r"n_embd +16", shown)
    assert re.search(r"h\.1\.attn\.c_attn\.weight +48 x 16 +float32 +\d", shown)
    assert re.search(r"parameters +[\d,]{5,}", shown)
    assert re.search(r"attention +[\d,]+ +\d+\.\d%", shown)
    assert re.search(r"bfloat16 +[\d.]+ kB", shown)


def test_inspect_as_json_is_a_line_for_each_tensor(model: Path, tiny_model: GPT2) -> None:
    rows = [json.loads(line) for line in run("inspect", str(model), "--json").stdout.splitlines()]
    assert rows[0]["config"]["n_embd"] == 16
    assert rows[1]["parameters"] == tiny_model.config.n_params
    assert [row["name"] for row in rows[2:]] == list(tiny_model.config.shapes())


def test_inspect_names_the_tensors_that_are_not_part_of_the_model() -> None:
    assert (
        "not part of the model: beta1_power"
        in run("inspect", str(GOLDEN / "tf" / "micro-adam")).stdout
    )


def test_verify_is_a_line_for_each_check(model: Path) -> None:
    result = run("verify", str(model), "--device", "cpu")
    assert result.exit_code == 0
    assert re.search(
        r"^ok +reference +logits of up to .* differ by at most", result.stdout, re.MULTILINE
    )
    assert re.search(r"^skip +files ", result.stdout, re.MULTILINE)
    rows = [
        json.loads(line)
        for line in run("verify", str(model), "--device", "cpu", "--json").stdout.splitlines()
    ]
    assert {"name", "passed", "detail"} == rows[0].keys()


def test_verify_fails_on_damage(tmp_path: Path, tiny_model: GPT2) -> None:
    state = hub_state(tiny_model)
    state["transformer.ln_f.weight"][0] = float("inf")
    result = run("verify", str(write_hub(tmp_path, tiny_model, state=state)), "--device", "cpu")
    assert result.exit_code == 1
    assert re.search(r"^FAIL +tensors +.*ln_f\.weight holds 1 numbers", result.stdout, re.MULTILINE)
    assert result.stderr == "1 check failed\n"


@pytest.mark.parametrize("command", ["inspect", "verify", "tokenize x --model", "convert --to out"])
@pytest.mark.parametrize("name", ["nothing-like-it", "./nowhere", "someone/never", "774M"])
def test_a_model_that_is_not_here_is_one_line(
    command: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run(*command.split(), name)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")


# --- the boundary ---------------------------------------------------------------------------------


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(store, "installed", bug)
    assert isinstance(run("models").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")],
)
def test_too_little_memory_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise error

    monkeypatch.setattr(store, "installed", full)
    assert "not enough memory" in failed(run("models"))


def test_a_file_that_may_not_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setattr(store, "installed", refused)
    assert failed(run("models")) == "error: /secret: Permission denied\n"


def test_without_a_command_there_is_help_and_exit_code_two() -> None:
    result = run()
    assert result.exit_code == 2
    assert "generate" in result.output


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (548_105_171, "548.1 MB"),
        (6_431_830_000, "6.4 GB"),
        (36_864, "36.9 kB"),
    ],
)
def test_sizes_are_written_as_people_write_them(n: int, shown: str) -> None:
    assert human_size(n) == shown


# --- weights alone --------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ToyGPT of five characters, whose two heads no published shape tells."""
    monkeypatch.chdir(tmp_path)
    config = GPT2Config(
        n_vocab=5,
        n_ctx=16,
        n_embd=8,
        n_head=2,
        n_layer=1,
        activation_function="relu",
        qkv_bias=False,
        tie_word_embeddings=False,
        head_bias=True,
    )
    return write_layout(tmp_path / "toy.pth", TOY, config)


def test_weights_alone_need_their_heads_and_the_text_that_they_were_trained_on(toy: Path) -> None:
    Path("text.txt").write_text("a bad cab", encoding="utf-8")
    command = ["generate", "cab", "--max_tokens", "3", "--seed", "1", "--model"]
    assert "add --n_head N, or run: gpt2kit convert toy.pth" in failed(run(*command, "toy.pth"))
    assert "--n_head N" in failed(run("inspect", "toy.pth"))
    given = ("--n_head", "2", "--vocabulary", "text.txt")
    found = run(*command, "toy.pth", *given).stdout
    assert found.startswith("cab")
    assert run("convert", "toy.pth", "--to", "folder", *given).exit_code == 0
    assert run(*command, "folder").stdout == found
    assert re.search(r"n_head +2\n", run("inspect", "toy.pth", *given[:2]).stdout)
    assert run("verify", "toy.pth", *given[:2]).exit_code == 0


def test_without_a_vocabulary_weights_alone_say_where_to_look(toy: Path) -> None:
    result = run("convert", "toy.pth", "--to", "folder", "--n_head", "2")
    assert "so none was written; the vocabulary of 5 tokens is not in the file" in result.stderr


def test_another_activation_is_kept_by_the_conversion(toy: Path) -> None:
    run("convert", "toy.pth", "--to", "folder", "--n_head", "2", "--activation_function", "silu")
    assert open_checkpoint(Path("folder")).config.activation_function == "silu"


def test_what_a_models_own_files_say_cannot_be_given(tmp_path: Path, tiny_model: GPT2) -> None:
    folder = str(write_hub(tmp_path / "hub", tiny_model))
    for command in ("inspect", "generate x --model"):
        result = run(*command.split(), folder, "--n_head", "4")
        assert "n_head cannot be given" in failed(result)


def test_nanogpts_characters_are_found_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = GPT2Config(
        n_vocab=2, n_ctx=8, n_embd=4, n_head=2, n_layer=1, activation_function="gelu"
    )
    write_nanogpt(Path("out/ckpt.pt"), GPT2(config), config={"dataset": "ab"})
    stdin = run("tokenize", "ab", "--model", "out")
    assert "no vocabulary beside the weights" in failed(stdin)
    Path("data/ab").mkdir(parents=True)
    meta = {"vocab_size": 2, "itos": {0: "a", 1: "b"}, "stoi": {"a": 0, "b": 1}}
    Path("data/ab/meta.pkl").write_bytes(pickle.dumps(meta))
    for model in ("out", "out/ckpt.pt"):
        assert run("tokenize", "ba", "--model", model).stdout.split() == ["1", "'b'", "0", "'a'"]
        assert run("generate", "ab", "--model", model, "--max_tokens", "2").stdout[:2] == "ab"
