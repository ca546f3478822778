"""Adapters of PEFT on the command line, and ours written for PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, hub_config
from conftest import make_model
from peft_builders import adapted
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gpt2kit.checkpoints.adapters import save_adapters
from gpt2kit.checkpoints.classifiers import LabelWords, add_class_head
from gpt2kit.checkpoints.load import load, open_checkpoint, write_model
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer
from gpt2kit.training.adapted import digest_of, find_stack, merge_all
from gpt2kit.training.setup import set_up

ASKED = ["--max_tokens=8", "--seed=1", "--device=cpu"]


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def write_ours(folder: Path, model: GPT2, base: str, digest: str, seed: int = 1) -> Path:
    """Write a folder of random adapters of ours."""
    add_adapters(model, 2, alpha=3)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_b" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    folder.mkdir()
    save_adapters(folder, model, base=base, base_sha256=digest)
    return folder


@pytest.fixture
def desk(weights: Path, tiny_model: GPT2) -> Path:
    """A model with a vocabulary, adapters of PEFT over it, and adapters of ours."""
    adapted(weights, tiny_model)
    add_vocabulary(weights / "base")
    write_ours(weights / "ours", tiny_model, "base", digest_of(load("base", device="cpu")[0], ()))
    return weights


def test_a_folder_of_peft_is_a_model_and_an_adapter(desk: Path) -> None:
    text = run("generate", "the", "--model", "peft", *ASKED).stdout
    assert text == run("generate", "the", "--adapter", "peft", *ASKED).stdout
    assert text != run("generate", "the", "--model", "base", *ASKED).stdout
    int8 = run("generate", "the", "--adapter", "peft", "--quantize=int8", *ASKED)
    assert int8.stdout.startswith("the")
    run("convert", "peft", "--to", "whole")
    run("merge", "peft", "--out", "merged")
    for folder in ("whole", "merged"):
        assert text == run("generate", "the", "--model", folder, *ASKED).stdout
    said = json.loads(run("inspect", "peft", "--json").stdout.splitlines()[0])
    assert "PEFT's LoRA over safetensors" in said.values()
    assert "FAIL" not in run("verify", "peft").stdout


def test_training_from_adapters_of_peft_says_that_they_are_merged_first(desk: Path) -> None:
    # Nothing said so, and --stack was refused since they had "no adapters".
    Path("book.txt").write_text("the way we go\n" * 40)
    how = ["book.txt", "--model", "peft", "--max_steps=1", "--block_size=8", "--sample_every=0"]
    said = run("plan", *how).stderr
    assert "PEFT's adapters are merged into their model first; all of that is trained" in said
    whole = set_up("finetune", "book.txt", {"model": "peft"}).model
    merged, _ = load("peft", device="cpu")
    name = "h.0.attn.c_attn.weight"
    assert torch.equal(whole.state_dict()[name], merged.state_dict()[name])
    assert all(parameter.requires_grad for parameter in whole.parameters())
    said = run("finetune", *how, "--lora_rank=2", "--out", "over").stderr
    assert "are merged into their model first; new ones are trained over it" in said
    (written,) = [line for line in said.splitlines() if line.startswith("now try: ")]
    assert written.endswith("--adapter over")
    asked = ["the", "--adapter", "./over", *ASKED]
    assert run("generate", *asked).stdout.startswith("the")
    said = run("finetune", *how, "--lora_rank=2", "--stack", "--out", "x", code=1).stderr
    assert "those of PEFT are merged without it; leave it out" in said
    assert "generate --adapter over" in run("generate", "the", "--model", "over", code=1).stderr


def test_the_model_below_can_be_named_and_is_in_the_receipt(desk: Path) -> None:
    """replay --model was without effect if the receipt had an adapter."""
    (desk / "base").rename(desk.parent / "moved")
    said = run("generate", "the", "--adapter", "peft", *ASKED, code=1).stderr
    assert "there is no directory" in said
    asked = ["generate", "the", "--adapter", "peft", "--model", "./moved", *ASKED]
    text = run(*asked, "--receipt", "r.json", "--receipt_text").stdout
    assert json.loads(Path("r.json").read_text())["source"]["model"] == "./moved"
    assert run("replay", "r.json").stdout == text
    changed = hub_config(make_model(GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=1)))
    other = desk.parent / "other"
    (desk.parent / "moved").rename(other)
    (other / "config.json").write_text(json.dumps({**changed, "n_head": 1, "n_layer": 2}))
    assert "different now" in run("replay", "r.json", "--model", "./other", code=1).stderr
    run("merge", "peft", "--model", "./other", "--out", "merged")
    assert run("merge", "ours", "--model", "./other", "--out", "m2").stdout.strip() == "m2"


def test_adapters_are_not_checked_if_nothing_shall_be(desk: Path) -> None:
    """--no_verify was without effect with --adapter."""
    path = desk / "base" / "model.safetensors"
    files = {path.name: {"size": path.stat().st_size, "sha256": "0" * 64}}
    manifest = {"source": "hub", "repository": "a/b", "revision": "0", "files": files}
    (desk / "base" / "gpt2kit.json").write_text(json.dumps(manifest))
    for adapter in ("ours", "peft"):
        said = run("generate", "the", "--adapter", adapter, *ASKED, code=1).stderr
        assert "model.safetensors" in said
        run("generate", "the", "--adapter", adapter, "--no_verify", *ASKED)


def test_our_adapters_are_written_for_peft_and_back_to_the_bit(desk: Path) -> None:
    result = run("convert", "ours", "--format", "peft", "--to", "for peft")
    folder, line = result.stdout.splitlines()
    assert folder == "for peft"
    assert line == "peft.AutoPeftModelForCausalLM.from_pretrained('for peft')"
    assert "to the bit" in result.stderr
    about = json.loads(Path(folder, "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(desk / "base")
    assert (about["r"], about["lora_alpha"]) == (2, 3)
    ours, theirs = (
        load_file(path)
        for path in (
            desk / "ours" / "adapter.safetensors",
            Path(folder, "adapter_model.safetensors"),
        )
    )
    for name, tensor in ours.items():
        module, _, part = name.rpartition(".")
        part = part.replace("_a", "_A").replace("_b", "_B")
        assert torch.equal(theirs[f"base_model.model.transformer.{module}.{part}.weight"], tensor)
    merged, _ = load("base", device="cpu")
    merge_all(merged, find_stack("ours").folders)
    for name, stored in open_checkpoint(Path(folder)).tensors.items():
        assert torch.equal(stored.read(), merged.state_dict()[name])
    text = run("generate", "the", "--adapter", "ours", *ASKED).stdout
    assert text == run("generate", "the", "--adapter", "./for peft", *ASKED).stdout


def test_words_for_labels_go_with_adapters(desk: Path) -> None:
    """They stayed behind in the run, and what was written for PEFT could not classify."""
    words = LabelWords(("the", "a"), "\n")
    words.write(desk / "ours")
    Path("texts.csv").write_text("text\nwho\n")
    before = json.loads(run("classify", "ours", "texts.csv", "--json").stdout)
    run("convert", "ours", "--format", "peft", "--to", "for-peft")
    run("merge", "ours", "--out", "merged")
    run("merge", "./for-peft", "--out", "merged-peft")
    for folder in ("./for-peft", "./merged", "./merged-peft"):
        after = json.loads(run("classify", folder, "texts.csv", "--json").stdout)
        assert after["p_the"] == pytest.approx(before["p_the"], abs=1e-6)


def test_a_head_for_labels_that_a_merge_leaves_out_is_named(
    weights: Path, tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    # It was left out without a word, and `classify` then refused the merged model.
    add_class_head(tiny_model, ("no", "yes"))
    (weights / "base").mkdir()
    write_model(weights / "base", tiny_model, small_bpe)
    write_ours(weights / "ours", tiny_model, "base", digest_of(load("base", device="cpu")[0], ()))
    assert (
        "the head for labels of base is left out" in run("merge", "ours", "--out", "merged").stderr
    )


def test_a_merged_model_replaces_a_model_and_nothing_else(desk: Path) -> None:
    """--force deleted any folder or file, and the very adapters that were merged."""
    Path("docs").mkdir()
    Path("docs", "thesis.txt").write_text("years")
    Path("notes").write_text("months")
    for name in ("docs", "notes", str(desk / "ours")):
        for adapters in ("ours", "peft"):
            said = run("merge", adapters, "--out", name, "--force", code=1).stderr
            assert "holds more than a model" in said
    assert "expected the name" in run("merge", "ours", "--out", "/", "--force", code=1).stderr
    assert Path("docs", "thesis.txt").exists()
    assert Path("notes").is_file()
    run("merge", "ours", "--out", "merged")
    run("merge", "peft", "--out", "merged", "--force")


def test_adapters_with_other_names_are_refused_for_peft(desk: Path) -> None:
    """They ended in a KeyError."""
    path = desk / "ours" / "adapter.safetensors"
    save_file({**load_file(path), "x.y": torch.zeros(2)}, path)
    said = run("convert", "ours", "--format", "peft", "--to", "new", code=1).stderr
    assert "another shape" in said


def test_what_peft_cannot_have_is_said(desk: Path, tiny_model: GPT2) -> None:
    to = ["--format", "peft", "--to", "new"]
    assert "folder of PEFT already" in run("convert", "peft", *to, code=1).stderr
    assert "no adapters" in run("convert", "base", *to, code=1).stderr
    said = run("convert", "ours", *to, "--dtype", "float16", code=2).output
    assert "--dtype has no effect here" in said
    merged, _ = load("base", device="cpu")
    below = find_stack("ours").folders
    write_ours(desk / "over", make_model(tiny_model.config), "ours", digest_of(merged, below))
    assert "one layer of them" in run("convert", "over", *to, code=1).stderr
    assert not Path("new").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_computes_with_our_adapters_what_we_do(desk: Path) -> None:
    peft: Any = pytest.importorskip("peft")
    run("convert", "ours", "--format", "peft", "--to", "new")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained("new").eval()
    run("merge", "ours", "--out", "merged")
    ours, _ = load("merged", device="cpu")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-5, rtol=0)
