"""SyntaxGym's suites, compared with transformers region by region."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN

from gpt2kit.checkpoints.load import load
from gpt2kit.errors import CorpusError, TokenizerError
from gpt2kit.evaluation.suites import Sentence, read_suites, region_surprisals, score_suites
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

FOLDER = GOLDEN / "hf/safetensors"


def condition(name: str, *regions: str) -> dict[str, Any]:
    parts = [{"region_number": n, "content": text} for n, text in enumerate(regions, 1)]
    return {"condition_name": name, "regions": parts}


SUITE: dict[str, Any] = {
    "meta": {"name": "cats", "metric": "sum"},
    "region_meta": {"1": "Subject"},
    "predictions": [
        {"type": "formula", "formula": "(3;%good%) < (3;%bad%)"},
        {"type": "formula", "formula": "(3;%good%) > (3;%bad%)"},
        {"type": "formula", "formula": "(2;%good%) = 0"},
    ],
    "items": [
        {
            "item_number": 1,
            "conditions": [
                condition("good", "The cat", "", "sits "),
                condition("bad", "The cat", " that ran", "sit", "."),
            ],
        },
        {
            "item_number": 2,
            "conditions": [
                condition("good", "Dogs", "", "bark"),
                condition("bad", "Dogs", "", "barks", "?!"),
            ],
        },
    ],
}


def write(path: Path, suite: Any) -> Path:
    path.write_text(json.dumps(suite), encoding="utf-8")
    return path


def transformers_regions(peer: Any, tokenizer: Any, regions: list[str], bos: int) -> list[float]:
    """Return the bits of each region, found by encoding the beginnings of the sentence."""
    texts = [region.strip() for region in regions]
    total, before, values = "", 0.0, []
    for text in texts:
        if text:
            total = f"{total} {text}" if total else text
            ids = [bos, *tokenizer.encode(total)]
            with torch.no_grad():
                logits = peer(torch.tensor([ids])).logits[0].double()
            bits = -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]] / math.log(2)
            values.append(float(bits.sum()) - before)
            before = float(bits.sum())
        else:
            values.append(0.0)
    return values


def test_regions_have_the_surprisals_of_their_tokens(
    small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float64).eval()
    model = load(FOLDER, dtype="float64")[0]
    found = score_suites(model, small_bpe, read_suites(write(tmp_path / "s.json", SUITE)))
    assert [(each.prediction, each.item) for each in found] == [
        (prediction, item) for prediction in (1, 2, 3) for item in ("1", "2")
    ]
    assert small_bpe.stop_id is not None
    for each in found:
        item = SUITE["items"][int(each.item) - 1]
        for given in item["conditions"]:
            regions = [region["content"] for region in given["regions"]]
            expected = transformers_regions(peer, small_bpe, regions, small_bpe.stop_id)
            got = list(each.surprisals[given["condition_name"]].values())
            assert got == pytest.approx(expected, abs=1e-6)
    assert [each.correct for each in found[:2]] == [not each.correct for each in found[2:4]]
    assert all(each.correct for each in found[4:])  # an empty region has no surprisal


def test_published_suites_with_a_trained_model_are_scored_as_transformers_scores_them(
    test_data: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = test_data / "models/shakespeare"
    peer = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()
    model, tokenizer = load(folder, dtype="float64")
    for name in ("mvrr", "npz_obj"):
        value = json.loads((test_data / f"syntaxgym/{name}.json").read_text(encoding="utf-8"))
        value["items"] = value["items"][:2]
        (suite,) = read_suites(write(tmp_path / f"{name}.json", value))
        found = score_suites(model, tokenizer, [suite])
        for each, item in list(zip(found, value["items"], strict=True)):
            bits = {
                given["condition_name"]: transformers_regions(
                    peer, tokenizer, [region["content"] for region in given["regions"]], 50256
                )
                for given in item["conditions"]
            }
            for where, expected in bits.items():
                got = list(each.surprisals[where].values())
                assert got == pytest.approx(expected, abs=1e-6)
            assert each.correct == BY_HAND[name](bits)


# The published formulas, written as Python.
BY_HAND: dict[str, Any] = {
    "mvrr": lambda bits: (
        bits["reduced_ambig"][4] > bits["unreduced_ambig"][4]
        and bits["reduced_ambig"][4] > bits["reduced_unambig"][4]
        and bits["reduced_ambig"][4] - bits["unreduced_ambig"][4]
        > bits["reduced_unambig"][4] - bits["unreduced_unambig"][4]
    ),
    "npz_obj": lambda bits: (
        bits["no-obj_no-comma"][4] > bits["no-obj_comma"][4]
        and bits["no-obj_no-comma"][4] > bits["obj_no-comma"][4]
        and bits["no-obj_no-comma"][4] - bits["no-obj_comma"][4]
        > bits["obj_no-comma"][4] - bits["obj_comma"][4]
    ),
}


def test_all_published_suites_are_read(test_data: Path) -> None:
    suites = read_suites(test_data / "syntaxgym")
    assert len(suites) == 34
    items = {(suite.name, item) for suite in suites for item in suite.items}
    lines = (test_data / "syntaxgym/results/gpt2-117M.csv").read_text().splitlines()[1:]
    assert len(items) == len(lines) == 842
    assert {suite.name for suite in suites} == {line.split(",")[1] for line in lines}


def test_a_token_belongs_to_the_region_in_which_it_ends(small_bpe: BPETokenizer) -> None:
    sentence = Sentence("a", {1: "\u00e8", 2: "", 3: "b c", 9: "d"}, "file: item 1")
    tokenizer = CharTokenizer(list("\u00e8 bcd"))
    ids = tokenizer.encode(sentence.text)
    found, shared = region_surprisals(sentence, ids, [1, 2, 4, 8, 16, 32, 64], tokenizer)
    assert not shared
    assert found == {1: 1, 2: 0, 3: 2 + 4 + 8 + 16, 9: 32 + 64}  # a space is the next region's
    with pytest.raises(
        TokenizerError, match="file: item 1: the tokens of the text do not spell it"
    ):
        region_surprisals(sentence, ids[1:], [1] * 6, tokenizer)


def test_a_token_of_two_regions_is_counted_where_it_ends_and_both_are_named() -> None:
    # Its surprisal was added to the second region, and nothing said so.
    class Pieces(CharTokenizer):
        def token_bytes(self, token: int) -> bytes:
            return [b"a", b"b c", b"d"][token]

    sentence = Sentence("x", {1: "ab", 2: "cd", 3: ""}, "file")
    found, shared = region_surprisals(sentence, [0, 1, 2], [1, 2, 4], Pieces(list("abcd ")))
    assert (found, shared) == ({1: 1, 2: 6, 3: 0}, [1, 2])


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return the suite with one value replaced, or left out for None."""
    suite = copy.deepcopy(SUITE)
    where: Any = suite
    for key in path[:-1]:
        where = where[key]
    if value is None:
        del where[path[-1]]
    else:
        where[path[-1]] = value
    return suite


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ([], "s.json: expected a JSON object"),
        (changed(("items",), None), "the suite: expected a list under 'items'"),
        (changed(("items",), []), "the suite: the list 'items' is empty"),
        (changed(("meta", "metric"), "mean"), "metric is 'mean', expected 'sum'"),
        (
            changed(("predictions", 0, "formula"), "1 ? 2"),
            r"s.json: cannot .* found '\? 2' .*: 1 \? 2",
        ),
        (
            changed(("predictions", 0, "formula"), "(3;%so%) > 1"),
            "item 1 has no condition 'so'; it has good, bad, but a formula names it: .3;%so%",
        ),
        (
            changed(("predictions", 0, "formula"), "(4;%good%) > 1"),
            "item 1 has no region 4 in condition 'good'",
        ),
        (changed(("items", 1, "item_number"), 1), "there are two with the number of item 1"),
        # Of two regions with one number the first was left out of the sentence; of two conditions
        # with one name the first was measured for nothing.
        (
            changed(("items", 1, "conditions", 0, "regions", 1, "region_number"), 1),
            "item 2, condition 'good': two regions have the number 1",
        ),
        (
            changed(("items", 1, "conditions", 0, "condition_name"), "bad"),
            "item 2: two conditions are called 'bad'",
        ),
        (
            changed(("items", 1, "conditions", 0, "condition_name"), None),
            "expected a text under 'condition_name'",
        ),
        (
            changed(("items", 1, "conditions", 0, "regions", 0, "region_number"), "1"),
            "expected a whole number under 'region_number'",
        ),
        (
            changed(
                ("items", 1, "conditions", 0, "regions"), [{"region_number": 3, "content": " "}]
            ),
            "all regions are empty",
        ),
    ],
)
def test_a_file_that_is_no_suite_is_one_clear_error(
    suite: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=message):
        read_suites(write(tmp_path / "s.json", suite))


def test_a_folder_without_suites_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no \.json file in this folder; expected SyntaxGym's"):
        read_suites(tmp_path)
