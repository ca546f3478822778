"""GPT-2's real weights, where they are in weights/: what other programs say they answer.

gpt2kit download 124M && pytest -m weights
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit.checkpoints.load import load
from gpt2kit.evaluation.verify import verify
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.evaluation.words import words
from gpt2kit.inspection import (
    Pair,
    PatchOptions,
    attribute,
    load_sae,
    patch,
    quality,
    run,
    trace,
)
from gpt2kit.inspection.heads import head_scores, random_tokens

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.mark.weights
@pytest.mark.parametrize("name", ["124M", "124M-openai"])
def test_published_weights_give_their_published_answers(name: str) -> None:
    if not (WEIGHTS / name).is_dir():
        pytest.skip(f"weights/{name} is not here; run: gpt2kit download 124M")
    outcomes = {check.name: check for check in verify(WEIGHTS / name)}
    assert not [check for check in outcomes.values() if check.passed is False]
    assert outcomes["fingerprint"].passed


@pytest.mark.weights
def test_the_tokens_of_gltr_have_its_probabilities_and_ranks(test_data: Path) -> None:
    # GLTR's own server: 2,136 tokens of six texts, probabilities to five decimals, ranks from 0.
    if not (WEIGHTS / "124M").is_dir():
        pytest.skip("weights/124M is not here; run: gpt2kit download 124M")
    model, tokenizer = load(WEIGHTS / "124M", device="cpu", dtype="float32")
    for path in sorted((test_data / "known/gltr").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        (found,) = words(model, tokenizer, content["request"]["text"])
        tokens = [token for word in found for token in word.tokens]
        for token, (rank, probability) in zip(tokens, content["result"]["real_topk"], strict=True):
            assert 2 ** -(token.surprisal or math.inf) == pytest.approx(probability, abs=6e-6)
            assert abs((token.rank or 0) - 1 - rank) <= 1 + 0.001 * rank  # but for ties


def loaded(name: str) -> tuple[Any, Any]:
    if not (WEIGHTS / name).is_dir():
        pytest.skip(f"weights/{name} is not here; run: gpt2kit download {name}")
    return load(WEIGHTS / name, device="cpu", dtype="float32")


# The README of the package surprisal, in nats after <|endoftext|>, which it leaves out of the sum.
AFTER_MARK = {
    "The cat is on the mat": [3.276, 9.222, 2.463, 4.145, 0.961, 7.237],
    "The cat is on the hat": [3.276, 9.222, 2.463, 4.145, 0.961, 9.955],
    "The cat is on the pizza": [3.276, 9.222, 2.463, 4.145, 0.961, 8.212],
    "The pizza is on the mat": [3.276, 10.860, 3.212, 4.910, 0.985, 8.379],
    "I told you that the cat is on the mat": [
        *(3.998, 6.856, 0.619, 2.443, 2.711, 7.955, 2.596, 4.804, 1.139, 6.946)
    ],
    "I told you the cat is on the mat": [
        *(3.998, 6.856, 0.619, 4.115, 7.612, 3.031, 4.817, 1.233, 7.033)
    ],
}


@pytest.mark.weights
@pytest.mark.parametrize("text", AFTER_MARK)
def test_words_have_their_published_surprisals(text: str) -> None:
    (found,) = words(*loaded("124M"), text, options=WordOptions(base="e"))
    assert [word.surprisal for word in found] == pytest.approx(AFTER_MARK[text], abs=3e-3)


# Without a mark before the text, from the second token on: the README of llm_surprisal in bits, the
# vignettes of pangoling and the tutorial of minicons in nats.
ALONE = [
    ("The key to the cabinets", "2", [10.35491943, 2.01909447, 3.75830460, 21.04239845]),
    (
        "John saw the man who the card catalog had",
        "2",
        [12.686095, 2.551022, 6.696472, 4.437478, 9.218789, 12.914160, 13.132524, 5.045917],
    ),
    (
        "The apple doesn't fall far from the tree.",
        "e",
        [10.9, 5.50, 0.000828, 3.60, 2.91, 0.745, 0.207, 0.2808024, 1.300929],
    ),
    (
        "The sketch of those trucks hasn't",
        "e",
        [10.879678726, 2.510551453, 6.663192749, 8.962379456, 8.681724548, 0.000534058],
    ),
    (
        "The sketch of those trucks haven't",
        "e",
        [10.879678726, 2.510551453, 6.663192749, 8.962379456, 10.669326782, 0.001327515],
    ),
]


@pytest.mark.weights
@pytest.mark.parametrize(("text", "base", "expected"), ALONE)
def test_tokens_without_a_mark_have_their_published_surprisals(
    text: str, base: Any, expected: list[float]
) -> None:
    (found,) = words(*loaded("124M"), text, options=WordOptions(base=base, first="none"))
    tokens = [token for word in found for token in word.tokens]
    assert tokens[0].surprisal is None
    for token, value in zip(tokens[1:], expected, strict=True):
        digits = len(str(value).partition(".")[2])
        assert token.surprisal == pytest.approx(value, abs=max(2e-3, 10**-digits))


# The README of llm_surprisal, in bits; the vignettes of pangoling, in nats.
NEXT = [
    (
        "The key to the cabinets x",
        "2",
        {
            " is": 1.530847191810608,
            " are": 4.100262641906738,
            ",": 4.1611528396606445,
            " was": 4.206236839294434,
            " and": 4.458767890930176,
            " in": 4.966185569763184,
            " of": 5.340408802032471,
            "'": 5.369940280914307,
            " being": 5.823633193969727,
        },
    ),
    (
        "The apple doesn't fall far from the x",
        "e",
        {" tree": 0.281, " trees": 3.60, " apple": 4.29, " table": 4.50},
    ),
]


@pytest.mark.weights
@pytest.mark.parametrize(("text", "base", "expected"), NEXT)
def test_the_likeliest_next_tokens_are_those_of_other_programs(
    text: str, base: str, expected: dict[str, float]
) -> None:
    options = WordOptions(first="none", top=len(expected))
    (found,) = words(*loaded("124M"), text, options=options)
    top = found[-1].tokens[0].top
    assert [token for token, _ in top] == list(expected)
    unit = math.log(2) if base == "2" else 1.0
    for (_, probability), value in zip(top, expected.values(), strict=True):
        assert -math.log(probability) / unit == pytest.approx(value, abs=6e-3)


# GLTR's demonstration files.
FIRST = {"\n": 0.0623, "The": 0.0377, '"': 0.02411, "A": 0.0194, "I": 0.01832, "In": 0.01158}


@pytest.mark.weights
def test_the_likeliest_first_tokens_of_a_text_are_those_of_gltr() -> None:
    (found,) = words(*loaded("124M"), "How", options=WordOptions(top=50))
    top = dict(found[0].tokens[0].top)
    expected = FIRST | {"M": 0.00493, "How": 0.0021}
    for token, probability in expected.items():
        if token in top:
            assert top[token] == pytest.approx(probability, abs=6e-5)
    assert {*FIRST} <= {*top}


# minicons, examples/bow-correction.py, of 1558M in bits after <|endoftext|>: plain, then corrected.
CORRECTED = {
    "I was a matron in France.": [
        (5.8535, 6.3007),
        (4.2842, 3.8402),
        (4.6738, 4.6762),
        (16.3446 + 1.7366, 16.3390 + 2.1100),
        (2.1215, 1.7501),
        (11.4253 + 3.4501, 11.4233 + 3.6691),
    ],
    "I was a mat in France.": [
        (5.8535, 6.3007),
        (4.2842, 3.8402),
        (4.6738, 4.6762),
        (16.3446, 21.3354),
        (10.7826, 5.8012),
        (10.7127 + 3.0245, 10.6979 + 3.3335),
    ],
}


@pytest.mark.weights
@pytest.mark.parametrize("text", CORRECTED)
def test_corrected_surprisals_are_those_of_minicons(text: str) -> None:
    (found,) = words(*loaded("1558M"), text, options=WordOptions(boundary="space"))
    for word, (plain, corrected) in zip(found, CORRECTED[text], strict=True):
        assert word.surprisal == pytest.approx(plain, abs=5e-3)
        assert word.surprisal_corrected == pytest.approx(corrected, abs=5e-3)


@pytest.mark.weights
def test_suites_of_syntaxgym_have_about_their_published_accuracy(test_data: Path) -> None:
    # cpllab/syntactic-generalization, GPT-2 117M: accuracy of items.
    from gpt2kit.evaluation.suites import read_suites, score_suites

    published = {"number_orc": 0.632, "fgd_subject": 0.5, "cleft": 1.0, "mvrr": 0.786}
    model, tokenizer = loaded("124M")
    for name, accuracy in published.items():
        path = test_data / f"syntaxgym/{name}.json"
        scored = score_suites(model, tokenizer, read_suites(path))
        items: dict[str, bool] = {}
        for each in scored:
            items[each.item] = items.get(each.item, True) and each.correct
        assert sum(items.values()) / len(items) == pytest.approx(accuracy, abs=0.06)


# The eight prompts of TransformerLens's demo of activation patching: the first name is the answer.
IOI = [
    ("When John and Mary went to the shops, {} gave the bag to", "Mary", "John"),
    ("When Tom and James went to the park, {} gave the ball to", "James", "Tom"),
    ("When Dan and Sid went to the shops, {} gave an apple to", "Sid", "Dan"),
    ("After Martin and Amy went to the park, {} gave a drink to", "Amy", "Martin"),
]


@pytest.mark.weights
def test_the_indirect_object_is_preferred_by_what_transformerlens_found() -> None:
    # "Average logit difference: 3.5519", in the saved output of its demo.
    model, tokenizer = loaded("124M")
    differences, by_head = [], torch.zeros(12, 12)
    for text, first, second in IOI:
        for answer, wrong in ((first, second), (second, first)):
            tokens = [tokenizer.encode(f" {name}")[0] for name in (answer, wrong)]
            clean, corrupted = (
                [50256, *tokenizer.encode(text.format(name))] for name in (wrong, answer)
            )
            found = patch(model, Pair(clean, corrupted, *tokens), PatchOptions(at="z"))
            differences.append(found.clean)
            by_head += torch.tensor([cell.recovered or 0.0 for cell in found.cells]).view(12, 12)
    assert sum(differences) / len(differences) == pytest.approx(3.5519, abs=1e-3)
    # Name movers and S-inhibition heads (Wang et al. 2022) are among the heads that matter most.
    best = {divmod(int(index), 12) for index in by_head.flatten().topk(8).indices}
    assert len(best & {(9, 9), (9, 6), (10, 0), (8, 6), (8, 10), (7, 9), (7, 3)}) >= 5


@pytest.mark.weights
def test_name_movers_raise_the_name_most_and_negative_heads_lower_it_most() -> None:
    """Wang et al. 2022, section 3: what heads add to the logits themselves, over the 8 prompts."""
    model, tokenizer = loaded("124M")
    by_head = torch.zeros(12, 12)
    for text, first, second in IOI:
        for answer, wrong in ((first, second), (second, first)):
            tokens = [tokenizer.encode(f" {name}")[0] for name in (answer, wrong)]
            ids = torch.tensor([[50256, *tokenizer.encode(text.format(wrong))]])
            for part in attribute(trace(model, ids), *tokens).contributions:
                if part.layer is not None and part.head is not None:
                    by_head[part.layer, part.head] += part.value
    order = [divmod(index, 12) for index in by_head.flatten().argsort(descending=True).tolist()]
    assert {*order[:3]} == {(9, 9), (10, 0), (9, 6)}
    assert {*order[-2:]} == {(10, 7), (11, 10)}


@pytest.mark.weights
def test_the_loss_of_a_greeting_is_transformerlens_one() -> None:
    # HookedTransformer's own test of gpt2-small: 5.331855773925781, after <|endoftext|>.
    model, tokenizer = loaded("124M")
    ids = torch.tensor([[50256, *tokenizer.encode("Hello world!")]])
    logits = run(model, ids).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    assert float(loss) == pytest.approx(5.331855773925781, abs=1e-4)


# Published scores of induction heads, on random tokens that come twice, 50 of them (README of
# designer-coderajay/induction-head-detector). Other random tokens give other third decimals.
INDUCTION = {"5.5": 0.932, "6.9": 0.913, "7.10": 0.910, "5.1": 0.908, "7.2": 0.833}


@pytest.mark.weights
def test_induction_heads_and_the_previous_token_head_are_the_known_ones() -> None:
    model, tokenizer = loaded("124M")
    found = {
        scores.name: scores
        for scores in head_scores(model, random_tokens(model, tokenizer, first="bos"))
    }
    for name, expected in INDUCTION.items():
        assert found[name].induction == pytest.approx(expected, abs=0.05)
    assert max(found.values(), key=lambda scores: scores.previous).name == "4.11"


# SAELens's list of gpt2-small-res-jb: features at a position and explained variance, by layer. They
# are of OpenWebText; other texts differ a little.
RES_JB = {0: (10, 0.999), 4: (31, 0.9), 8: (60, 0.9), 11: (56, 0.77)}


@pytest.mark.weights
@pytest.mark.parametrize("layer", RES_JB)
def test_res_jb_explains_what_its_authors_say(layer: int, test_data: Path) -> None:
    """Reading the stream with its mean, which they were not trained on, explains far less."""
    model, tokenizer = loaded("124M")
    folder = WEIGHTS / f"jbloom--GPT2-Small-SAEs-Reformatted--blocks.{layer}.hook_resid_pre"
    if not folder.is_dir():
        name = f"jbloom/GPT2-Small-SAEs-Reformatted/blocks.{layer}.hook_resid_pre"
        pytest.skip(f"{folder} is not here; run: gpt2kit download {name}")
    rows = []
    for path in sorted((test_data / "known/gltr").glob("*.json")):
        text = json.loads(path.read_text(encoding="utf-8"))["request"]["text"]
        ids = tokenizer.encode(text)
        rows += [
            torch.tensor([[50256, *ids[start : start + 127]]]) for start in range(0, len(ids), 127)
        ]
    found = quality(model, load_sae(folder).for_model(model), rows)
    l0, explained = RES_JB[layer]
    assert found.explained_variance == pytest.approx(explained, abs=0.08)
    assert found.l0 == pytest.approx(l0, rel=0.3)
