"""Minimal pairs, compared with transformers sentence by sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN

from gpt2kit.checkpoints.load import load
from gpt2kit.errors import ContextLengthError, CorpusError, Gpt2KitError, TokenizerError
from gpt2kit.evaluation.pairs import Protocol, read_blimp, read_pairs, score_pairs
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

FOLDER = GOLDEN / "hf/safetensors"
# lm_eval 0.4.13, its blimp task with the trained small model in float32: good and bad sentence
LM_EVAL = [(-53.01579, -51.42713), (-76.58266, -73.81471), (-66.24643, -66.03363)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def blimp_line(good: str, bad: str, paradigm: str, phenomenon: str, item: str) -> str:
    value = {"sentence_good": good, "sentence_bad": bad, "UID": paradigm}
    return json.dumps({**value, "linguistics_term": phenomenon, "pairID": item}) + "\n"


def transformers_logprob(peer: Any, ids: list[int]) -> float:
    """Return the log probability of all ids but the first."""
    with torch.no_grad():
        logits = peer(torch.tensor([ids[:-1]])).logits[0].double()
    return float(logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum())


@pytest.mark.parametrize(("protocol", "space"), [("paper", ""), ("harness", " ")])
def test_blimp_with_a_trained_model_is_scored_as_transformers_scores_it(
    protocol: Protocol, space: str, test_data: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = test_data / "models/shakespeare"
    pairs = [
        pair
        for paradigm in (
            "principle_A_case_1",
            "npi_present_1",
            "irregular_plural_subject_verb_agreement_2",
        )
        for pair in read_blimp(test_data / f"blimp/{paradigm}.jsonl")[:4]
    ]
    model, tokenizer = load(folder, dtype="float64")
    assert tokenizer is not None
    found = score_pairs(model, tokenizer, pairs, protocol=protocol)
    peer = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()
    for scored, pair in zip(found, pairs, strict=True):
        ids = [[50256, *tokenizer.encode(space + text)] for text in (pair.good, pair.bad)]
        good, bad = (transformers_logprob(peer, each) for each in ids)
        assert scored.logprob_good == pytest.approx(good, abs=1e-6)
        assert scored.logprob_bad == pytest.approx(bad, abs=1e-6)
        assert (scored.tokens_good, scored.tokens_bad) == tuple(len(each) - 1 for each in ids)
        assert scored.correct == (good > bad)


def test_what_lm_evaluation_harness_found_is_found(test_data: Path) -> None:
    model, tokenizer = load(test_data / "models/shakespeare")
    pairs = read_blimp(test_data / "blimp/anaphor_gender_agreement.jsonl")[:3]
    found = score_pairs(model, tokenizer, pairs, protocol="harness")
    values = [(each.logprob_good, each.logprob_bad) for each in found]
    assert values == [pytest.approx(each, abs=1e-3) for each in LM_EVAL]


@pytest.mark.slow
def test_all_of_blimp_is_read(test_data: Path) -> None:
    pairs = read_blimp(test_data / "blimp")
    assert len(pairs) == 67_000
    assert len({pair.paradigm for pair in pairs}) == 67
    assert len({pair.phenomenon for pair in pairs}) == 13  # the s-selection file has its own
    assert (pairs[0].item, pairs[0].good) == ("0", "Who should Derek hug after shocking Richard?")


def test_a_table_of_pairs_has_quotes_line_ends_and_other_columns(tmp_path: Path) -> None:
    text = (
        'note,bad,paradigm,good\r\nx,"Cats, ""oddly"", sits",a,Cats sit\r\n'
        'y,"two\nlines",,Tw\u00f6\r\n'
    )
    pairs = read_pairs(write(tmp_path / "p.csv", "\ufeff" + text))
    assert [(pair.good, pair.bad) for pair in pairs] == [
        ("Cats sit", 'Cats, "oddly", sits'),
        ("Tw\u00f6", "two\nlines"),
    ]
    assert [(pair.phenomenon, pair.paradigm, pair.item) for pair in pairs] == [
        ("a", "a", "1"),
        ("p", "p", "2"),  # without a paradigm or item, the file and the row
    ]
    (pair,) = read_pairs(write(tmp_path / "p.tsv", "bad\tgood\titem\na,b\tc\t7\n"))
    assert (pair.bad, pair.good, pair.item) == ("a,b", "c", "7")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "", "p.csv: empty, expected a table"),
        ("p.csv", "good,bad\n", "p.csv: empty; expected a pair"),
        ("p.csv", "Good,bad\na,b\n", "no column 'good'; its columns are 'Good', 'bad'"),
        ("p.csv", "good,bad\nc\n", "line 2 has 1 cells, expected 2"),
        ("p.csv", "good,bad\n ,b\n", "row 1: expected a sentence under 'good', found ' '"),
        ("p.csv", 'good,bad\n"a"b,c\n', "line 2: .*a quotation mark inside"),
        ("p.jsonl", '{"good": 3, "bad": "b"}', "row 1: expected a sentence under 'good', found 3"),
        ("p.jsonl", "[1]", "line 1 is no JSON object"),
        ("p.xlsx", "x", "expected a .csv, .tsv, .jsonl or .parquet file"),
    ],
)
def test_a_file_that_is_no_table_of_pairs_is_one_clear_error(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=message):
        read_pairs(write(tmp_path / name, text))


def test_a_folder_of_blimp_may_hold_its_summary_but_must_hold_pairs(tmp_path: Path) -> None:
    write(tmp_path / "models_summary.jsonl", '{"UID": "a", "gpt2": 0.9}\n')
    with pytest.raises(CorpusError, match=r"no \.jsonl file in this folder; expected BLiMP's"):
        read_blimp(tmp_path)
    write(tmp_path / "b.jsonl", blimp_line("b1", "b2", "b", "B", "0"))
    write(tmp_path / "a.jsonl", blimp_line("a1", "a2", "a", "A", "5"))
    assert [(pair.paradigm, pair.item) for pair in read_blimp(tmp_path)] == [("a", "5"), ("b", "0")]


def test_equally_likely_sentences_are_right_for_the_harness_alone(
    small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    """BLiMP has such pairs: the same sentence twice. A first version refused them as a mistake."""
    model: GPT2 = load(FOLDER)[0]
    pairs = read_pairs(write(tmp_path / "p.csv", "good,bad\nthe cat,the cat\n"))
    for protocol, right in (("paper", False), ("harness", True)):
        (found,) = score_pairs(model, small_bpe, pairs, protocol=protocol)  # type: ignore[arg-type]
        assert (found.logprob_good == found.logprob_bad, found.correct) == (True, right)


@pytest.mark.parametrize(
    ("sentence", "kind", "message"),
    [
        ("a" * 26, ContextLengthError, "p.csv: row 1: 25 tokens, but the model reads at most 24"),
        ("\u00f1", TokenizerError, "p.csv: row 1: the character"),
        ("a", CorpusError, "p.csv: row 1: the model has no token to score in 'a'"),
    ],
)
def test_a_sentence_that_cannot_be_scored_is_named(
    sentence: str, kind: type[Gpt2KitError], message: str, tmp_path: Path
) -> None:
    model = load(FOLDER)[0]
    tokenizer = CharTokenizer([chr(code) for code in range(32, 127)])  # has no start of a text
    pairs = read_pairs(write(tmp_path / "p.csv", f"good,bad\nab,{sentence}\n"))
    with pytest.raises(kind, match=message):
        score_pairs(model, tokenizer, pairs)
    # Beside a pair that can be scored it stopped that one, too.
    pairs += read_pairs(write(tmp_path / "q.csv", "good,bad\nab,abc\n"))
    one, other = score_pairs(model, tokenizer, pairs)
    assert one.error is not None
    assert re.search(message, one.error)
    assert (one.logprob_good, one.tokens_bad, one.correct) == (None, None, None)
    assert other == score_pairs(model, tokenizer, pairs[1:])[0]


def test_a_row_that_is_no_pair_is_named_and_stops_no_other(
    small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    # The first empty cell was an error of the whole file.
    text = 'good,bad\n,the dog\nthe cat,the\n"a"b,c\nso,it,is\n'
    pairs = read_pairs(write(tmp_path / "p.csv", text))
    scored = score_pairs(load(FOLDER)[0], small_bpe, pairs)
    assert [each.correct is None for each in scored] == [True, False, True, True]
    assert scored[1].tokens_bad == len(small_bpe.encode("the"))
    for each, message in zip(
        (scored[0], scored[2], scored[3]),
        ("row 1: expected a sentence under 'good', found ''", "row 3: line 4", "row 4: line 5 has"),
        strict=True,
    ):
        assert f"p.csv: {message}" in (each.error or "")


def test_a_vocabulary_without_a_start_leaves_the_first_token_unscored(tmp_path: Path) -> None:
    model = load(FOLDER)[0]
    tokenizer = CharTokenizer([chr(code) for code in range(32, 127)])
    pairs = read_pairs(write(tmp_path / "p.csv", "good,bad\nabc,abcd\n"))
    (scored,) = score_pairs(model, tokenizer, pairs)
    assert (scored.tokens_good, scored.tokens_bad) == (2, 3)
