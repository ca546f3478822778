"""LAMBADA and HellaSwag on small made-up files, compared with transformers text by text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN

from gpt2kit.checkpoints.load import load
from gpt2kit.errors import ContextLengthError, CorpusError, Gpt2KitError, TokenizerError
from gpt2kit.evaluation.tasks import hellaswag, lambada
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

FOLDER = GOLDEN / "hf/safetensors"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "it",
    "ran",
    "home",
    "to",
    "see",
    "its",
    "old",
    "friend",
]


def write(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture
def model() -> GPT2:
    return load(FOLDER)[0]


@pytest.fixture
def peer() -> Any:
    return (
        pytest.importorskip("transformers")
        .GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float32)
        .eval()
    )


def plain_nats(peer: Any, context: list[int], answer: list[int]) -> tuple[list[float], bool]:
    """Return the surprisals of an answer's tokens, and whether greedy decoding generates it."""
    nats, greedy = [], True
    for position, token in enumerate(answer):
        ids = (context + answer)[: len(context) + position][-24:]
        with torch.inference_mode():
            logits = peer(torch.tensor([ids])).logits[0, -1].double()
        nats.append(-float(logits.log_softmax(-1)[token]))
        greedy = greedy and int(logits.argmax()) == token
    return nats, greedy


def passages(peer: Any, tokenizer: BPETokenizer) -> list[str]:
    """Return passages, of which in some the last word is what the model says itself."""
    texts = [" ".join(WORDS[:n]) for n in (2, 3, 5, 8, 11)]
    for text in ("on a mat and", "it ran", "the old"):
        words = [
            token
            for token in range(512)
            if tokenizer.token_bytes(token).startswith(b" ")
            and tokenizer.token_bytes(token)[1:].isalpha()
        ]
        with torch.inference_mode():
            logits = peer(torch.tensor([tokenizer.encode(text)])).logits[0, -1]
        best = int(logits.argmax())
        texts.append(
            text + tokenizer.decode([best if best in words else words[int(logits[words].argmax())]])
        )
    return texts


@pytest.mark.parametrize("batch_size", [1, 8])
def test_lambada_is_what_a_plain_loop_over_transformers_says(
    batch_size: int, model: GPT2, peer: Any, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    texts = passages(peer, small_bpe)
    found = lambada(
        model,
        small_bpe,
        write(tmp_path / "lambada.jsonl", [{"text": text} for text in texts]),
        batch_size=batch_size,
    )
    answers = []
    for text in texts:
        context, word = text.rsplit(" ", 1)
        answers.append(plain_nats(peer, small_bpe.encode(context), small_bpe.encode(f" {word}")))
    nats = torch.tensor([sum(answer) for answer, _ in answers], dtype=torch.float64)
    right = torch.tensor([float(greedy) for _, greedy in answers], dtype=torch.float64)
    assert found.passages == len(texts)
    assert 0 < found.accuracy < 1  # else greedy could mean anything here
    assert found.accuracy == pytest.approx(float(right.mean()))
    assert found.perplexity == pytest.approx(math.exp(float(nats.mean())), rel=1e-5)
    assert found.accuracy_standard_error == pytest.approx(float(right.std()) / len(texts) ** 0.5)
    assert found.perplexity_standard_error == pytest.approx(
        found.perplexity * float(nats.std()) / len(texts) ** 0.5, rel=1e-5
    )


def test_a_word_counts_when_all_of_its_tokens_are_the_likeliest(
    model: GPT2, small_bpe: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model that always expects the same token: only a word of that one token is right.
    token = next(token for token in range(512) if small_bpe.token_bytes(token) == b" the")
    monkeypatch.setattr(
        model, "head", lambda hidden: torch.eye(512)[token].expand(*hidden.shape[:-1], 512)
    )
    path = write(
        tmp_path / "lambada.jsonl",
        [{"text": "on the"}, {"text": "on them"}, {"text": "on a"}, {"text": "of all the\n"}],
    )
    assert lambada(model, small_bpe, path).accuracy == 0.5


@pytest.mark.parametrize("batch_size", [1, 8])
def test_hellaswag_is_what_a_plain_loop_over_transformers_says(
    batch_size: int, model: GPT2, peer: Any, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    questions: list[dict[str, Any]] = []
    for number in range(12):
        endings = [
            " ".join(WORDS[(number + 3 * choice) % 11 :][: 1 + (number + choice) % 4])
            for choice in range(4)
        ]
        questions.append(
            {
                "ctx": " ".join(WORDS[number : number + 3]),
                "endings": endings,
                "label": number % 4,
                "ind": number,
            }
        )
    found = hellaswag(
        model, small_bpe, write(tmp_path / "hellaswag.jsonl", questions), batch_size=batch_size
    )
    right, normalized = [], []
    for question in questions:
        nats = [
            plain_nats(peer, small_bpe.encode(question["ctx"]), small_bpe.encode(f" {ending}"))[0]
            for ending in question["endings"]
        ]
        right.append(min(range(4), key=lambda choice: sum(nats[choice])) == question["label"])
        normalized.append(
            min(range(4), key=lambda choice: sum(nats[choice]) / len(nats[choice]))
            == question["label"]
        )
    assert right != normalized  # else this test could not tell them apart
    assert found.questions == 12
    assert found.accuracy == pytest.approx(sum(right) / 12)
    assert found.accuracy_normalized == pytest.approx(sum(normalized) / 12)
    assert found.accuracy_standard_error == pytest.approx(
        (found.accuracy * (1 - found.accuracy) / 11) ** 0.5
    )


def test_labels_may_be_text(model: GPT2, small_bpe: BPETokenizer, tmp_path: Path) -> None:
    question = {"ctx": "the cat", "endings": ["sat", "ran home"]}
    plain = hellaswag(model, small_bpe, write(tmp_path / "a.jsonl", [{**question, "label": 1}]))
    assert (
        hellaswag(model, small_bpe, write(tmp_path / "b.jsonl", [{**question, "label": "1"}]))
        == plain
    )
    assert (
        hellaswag(
            model, small_bpe, write(tmp_path / "c.jsonl", [{**question, "label": 0}])
        ).accuracy
        == 1 - plain.accuracy
    )
    assert plain.accuracy_standard_error is None


def test_of_a_long_passage_the_end_is_read(
    model: GPT2, peer: Any, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    text = " ".join(WORDS * 3)
    context, word = text.rsplit(" ", 1)
    ids = small_bpe.encode(f" {word}")
    whole = (small_bpe.encode(context) + ids)[-25:]
    nats, _ = plain_nats(peer, whole[: -len(ids)], ids)
    found = lambada(model, small_bpe, write(tmp_path / "long.jsonl", [{"text": text}]))
    assert found.perplexity == pytest.approx(math.exp(sum(nats)), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        (
            lambada,
            '{"text": "one"}',
            "line 2: expected .*a passage of two words or more.*, found {'text': 'one'}",
        ),
        (lambada, '{"passage": "one two"}', "line 2: expected"),
        (lambada, '{"text": 7}', "line 2: expected"),
        (lambada, '{"text": "a b"', "line 2 is not valid JSON"),
        (lambada, '["a b"]', "line 2 is no JSON object"),
        (lambada, '{"text": "a \\ud800"}', "line 2 has half a surrogate pair"),
        (
            hellaswag,
            '{"ctx": "a", "endings": ["b", "c"]}',
            "line 2: expected .*the index of the right one",
        ),
        (hellaswag, '{"ctx": "a", "endings": ["b", "c"], "label": 2}', "line 2: expected"),
        (hellaswag, '{"ctx": "a", "endings": ["b", "c"], "label": true}', "line 2: expected"),
        (hellaswag, '{"ctx": "a", "endings": ["b", 3], "label": 0}', "line 2: expected"),
        (hellaswag, '{"ctx": "", "endings": ["b", "c"], "label": 0}', "line 2: expected"),
    ],
)
def test_a_bad_line_is_named(
    task: Any, line: str, message: str, model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    good = {"text": "a b", "ctx": "a", "endings": ["b", "c"], "label": 0}
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(good)}\n{line}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=f"bad.jsonl: {message}"):
        task(model, small_bpe, path)


def test_what_cannot_be_asked_is_refused(
    model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match="empty; expected a JSON object on each line"):
        lambada(model, small_bpe, write(tmp_path / "empty.jsonl", []))
    with pytest.raises(
        ContextLengthError, match="line 1: the answer has .* tokens, but the model reads at most 24"
    ):
        lambada(model, small_bpe, write(tmp_path / "long.jsonl", [{"text": "a " + "x" * 60}]))
    with pytest.raises(TokenizerError, match="no vocabulary beside the weights"):
        lambada(model, None, write(tmp_path / "a.jsonl", [{"text": "a b"}]))
    characters = CharTokenizer.from_text("a b")
    with pytest.raises(TokenizerError, match="line 2: the character 'x'"):
        lambada(model, characters, write(tmp_path / "x.jsonl", [{"text": "a b"}, {"text": "a x"}]))
    characters.unknown = "skip"
    with pytest.raises(Gpt2KitError, match="line 1: it is empty in the model's vocabulary"):
        lambada(model, characters, write(tmp_path / "y.jsonl", [{"text": "x b"}]))
