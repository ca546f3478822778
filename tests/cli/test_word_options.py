"""train --tokenizer word with --replace and --markers, and what the model does with them later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from typer.testing import CliRunner

import gpt2kit
from gpt2kit.checkpoints.load import write_model
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.data.corpus import Corpus
from gpt2kit.errors import TokenizerError, TrainingError
from gpt2kit.evaluation.perplexity import text_ids
from gpt2kit.tokenizers import WordTokenizer, load_tokenizer
from gpt2kit.training.settings import Settings
from gpt2kit.training.setup import set_up

TEXT = "<|endoftext|>".join(f"nel {1300 + year} mezzo\ndel cammin {year}\n" for year in range(30))
OPTIONS = ["--tokenizer", "word", "--replace", "[0-9]+=<NUM>", "--markers", "pad,bos,eos,unk"]
SMALL = [
    *("--n_layer", 1, "--n_head", 1, "--n_embd", 16, "--block_size", 12, "--batch_size", 4),
    *("--max_steps", 40, "--eval_every", 20, "--sample_tokens", 12, "--lr", 0.02, "--seed", 1),
]


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("years.txt").write_text(TEXT, encoding="utf-8")
    return "years.txt"


def test_a_model_of_words_with_markers_is_trained_saved_and_used(text: str) -> None:
    said = run("train", text, *OPTIONS, *SMALL, "--out", "run").stderr
    assert "--- after" in said
    tokenizer = load_tokenizer(Path("run"))
    assert isinstance(tokenizer, WordTokenizer)
    assert tokenizer.tokens[:4] == ["<PAD>", "<BOS>", "<EOS>", "<UNK>"]
    assert sorted(tokenizer.tokens[4:]) == ["\n", " <NUM>", " cammin", " mezzo", "del", "nel"]
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert all(not sample["text"].startswith("<BOS>") for sample in samples)

    # prompts are treated as the text was, and unknown words are no error
    greedy = ("--model", "run", "--temperature", 0, "--no_prompt", "--max_tokens", 30)
    first = run("generate", "nel 1305 mezzo\n", *greedy).stdout
    assert first == run("generate", "nel 99 mezzo\n", *greedy).stdout
    assert run("generate", "nel fondo", *greedy).stdout
    # the model has learned where documents end, and stops there
    assert first == "del cammin <NUM>\n\n"
    assert run("generate", "", *greedy).stdout.startswith("nel <NUM>")
    # and measures a text in which the markers are no characters
    result = json.loads(run("evaluate", "run", "--corpus", text, "--json").stdout.splitlines()[0])
    assert result["tokens"] == 30 * 10 - 1
    assert 0 < result["perplexity"] < 10


GIVEN = {"tokenizer": "word", "replace": ("[0-9]+=<NUM>",), "markers": "pad,bos,eos,unk"}


def test_a_run_is_resumed_with_the_same_options_and_refused_with_others(text: str) -> None:
    # run.json has a list of replacements, and the command line a tuple: they were not equal.
    def settings(**changes: Any) -> Settings:
        return set_up(
            "train", text, {**GIVEN, "n_embd": 12, **changes}, with_weights=False
        ).settings

    settings().write(Path())
    before = Settings.read(Path())
    before.check_resumed_by(settings(), Path("run"))
    other = settings(replace=("[0-9]+=<NUM>", "del=<D>"))
    with pytest.raises(
        TrainingError, match=r"options.replace was \['\[0-9\]\+=<NUM>'\] and is now"
    ):
        before.check_resumed_by(other, Path("run"))


def test_the_windows_of_corpus_are_those_of_such_a_training(text: str) -> None:
    shown = run("corpus", text, *OPTIONS, "--block_size", 12, "--windows", 2, "--json").stdout
    windows = [row["input"] for row in map(json.loads, shown.splitlines()) if "input" in row]
    setup = set_up("train", text, {**GIVEN, "n_embd": 12, "block_size": 12}, with_weights=False)
    batch = setup.corpus.batch("train", 0, block_size=12, batch_size=2, seed=setup.config.seed)
    assert windows == batch[:, :-1].tolist()
    words = json.loads(shown.splitlines()[-1])["words"]
    assert words == ["nel", " <NUM>", " mezzo"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replace", "a=<X>"], "--replace has no effect here: it is for --tokenizer word"),
        (["--markers", "unk"], "--markers has no effect here: it is for --tokenizer word"),
        (["--tokenizer", "word", "--markers", "end"], "there is no marker <END>"),
        (["--tokenizer", "word", "--replace", "a"], "expected REGEX=<NAME>"),
        (["--tokenizer", "word", "--replace", "(=<X>"], "is no regular expression"),
        (["--tokenizer", "word", "--replace", "nel=<UNK>", "--markers", "unk"], "is a word of the"),
    ],
)
@pytest.mark.parametrize("command", ["train", "corpus"])
def test_wrong_options_are_one_line(
    command: str, options: list[str], message: str, text: str
) -> None:
    said = run(command, text, *options, code=1).stderr
    assert message in said
    assert said.count("\n") == 1
    assert not Path("weights").exists()


def test_a_model_that_knows_a_marker_for_unknown_words_is_fine_tuned_on_any_text(
    text: str,
) -> None:
    def write(markers: list[str]) -> None:
        tokenizer = WordTokenizer.from_text("nel mezzo\ndel", markers=markers)
        config = GPT2Config(n_vocab=len(tokenizer.tokens), n_ctx=12, n_embd=8, n_head=1, n_layer=1)
        Path("base").mkdir(exist_ok=True)
        write_model(Path("base"), make_model(config), tokenizer)

    write([])
    with pytest.raises(TokenizerError, match="and not 61 of the text's"):
        set_up("finetune", text, {"model": "./base"}, with_weights=False)
    write(["<UNK>"])
    setup = set_up("finetune", text, {"model": "./base"}, with_weights=False)
    assert isinstance(setup.corpus, Corpus)
    assert setup.corpus.train_ids.tolist().count(0) > 60


def test_a_replacement_is_made_before_a_text_is_divided(text: str) -> None:
    # what a replacement finds in the whole text may not be there in one of its two parts
    Path("pairs.txt").write_text("due tre\n" * 40, encoding="utf-8")
    options = ["--tokenizer", "word", "--replace", r"tre\ndue=<PAIR>", "--val_fraction", "0.3"]
    run("corpus", "pairs.txt", *options, "--block_size", 4)


@pytest.mark.parametrize("text", ["rosa\tbianca\tlodola\t" * 9, "tre\tdonne"])
def test_a_text_that_is_divided_inside_a_word_is_learned(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words were learned from the undivided text, and half a word was not among them."""
    monkeypatch.chdir(tmp_path)
    Path("tabs.txt").write_text(text, encoding="utf-8")
    setup = set_up("train", "tabs.txt", {"tokenizer": "word", "n_embd": 12}, with_weights=False)
    assert isinstance(setup.corpus, Corpus)
    ids = [*setup.corpus.train_ids, *setup.corpus.val_ids]
    assert setup.tokenizer.decode(ids) == text


def test_the_last_word_before_a_text_to_validate_with_is_a_word(text: str) -> None:
    """The last word of the one text and the first one of the other were learned as one word."""
    Path("one.txt").write_text("la rosa del prato e la rosa finale", encoding="utf-8")
    Path("other.txt").write_text("prima rosa del prato", encoding="utf-8")
    given = {"tokenizer": "word", "n_embd": 12, "val": "other.txt"}
    tokenizer = set_up("train", "one.txt", given, with_weights=False).tokenizer
    assert isinstance(tokenizer, WordTokenizer)
    assert {" finale", "prima"} <= {*tokenizer.tokens}


def test_an_empty_text_begins_with_the_marker_of_beginnings(text: str) -> None:
    tokenizer = WordTokenizer.from_text("nel mezzo", markers=["<BOS>", "<EOS>"])
    ids = text_ids("nel mezzo<|endoftext|>nel", tokenizer)
    assert [tokenizer.tokens[token] for token in ids] == [
        *("<BOS>", "nel", " mezzo", "<EOS>", "<BOS>", "nel", "<EOS>")
    ]
    config = GPT2Config(n_vocab=4, n_ctx=12, n_embd=8, n_head=1, n_layer=1)
    model = make_model(config)
    with torch.no_grad():
        logits = model(torch.tensor([[0]]))[0, 0]  # after <BOS>, (V,)
    written = gpt2kit.generate(model, tokenizer, "", max_tokens=1, temperature=0, ignore_eos=True)
    assert written == tokenizer.decode([int(logits.argmax())])
