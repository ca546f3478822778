"""Other programs measure the same texts: minicons, wordsprobability, lm-evaluation-harness.

Each has a virtual environment of its own, in a folder that GPT2KIT_JUDGES names: minicons with
minicons==0.3.39, wordsprobability with wordsprobability==0.17, lmeval with lm-eval[hf]==0.4.13.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model

from gpt2kit.checkpoints.load import load, write_model
from gpt2kit.config import GPT2Config
from gpt2kit.evaluation.pairs import read_blimp, score_pairs
from gpt2kit.evaluation.surprisal import Window, surprisals
from gpt2kit.evaluation.tasks import lambada
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.evaluation.words import words

pytestmark = pytest.mark.slow

TEXTS = [
    "I was a matron in France.",
    "The cat didn't sit on the mat.",
    'She said: "Wait -- there are 1,024 naïve cafés!"',
    "Colorless green ideas sleep furiously, don't they?",
]

MINICONS = """
import json, sys
from minicons import scorer
model = scorer.IncrementalLMScorer(sys.argv[1], "cpu")
texts = json.loads(sys.argv[2])
how = dict(bos_token=True, surprisal=True)
def figures(**more):
    return [[score for _, score in each] for each in model.token_score(texts, **how, **more)]
print("ANSWER" + json.dumps([figures(), figures(bow_correction=True)]))
"""

# Its masks count <|endoftext|> twice at the beginning of a text, and as the end of a word: without
# it, and but for the first word, its figures are those of a boundary of spaces.
WORDSPROBABILITY = """
import json, sys
from wordsprobability import main
from wordsprobability.models import bow_lm
bow_lm.EnglishGpt2Small.model_name = sys.argv[1]
before = bow_lm.BaseBOWModel._initialise_vocab_masks
def masks(self):
    before(self)
    self.vocab_masks["eos"].zero_()
bow_lm.BaseBOWModel._initialise_vocab_masks = masks
found = [
    main.get_surprisal_per_word(text, "gpt2-small", return_buggy_surprisals=True)
    for text in json.loads(sys.argv[2])
]
print("ANSWER" + json.dumps([
    [each.surprisal_buggy.tolist() for each in found], [each.surprisal.tolist() for each in found]
]))
"""

TASKS = {
    "ours_blimp": """
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{[sentence_good, sentence_bad]}}"
metric_list: [{metric: acc}]
""",
    "ours_lambada": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
target_delimiter: ""
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "ours_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
""",
}


def judge(name: str) -> Path:
    """Return the folder of a judge's programs."""
    folder = Path(os.environ.get("GPT2KIT_JUDGES", "judges")).absolute() / name / "bin"
    if not folder.is_dir():
        pytest.skip(f"{name} is not installed in GPT2KIT_JUDGES")
    return folder


@pytest.fixture(scope="module", params=["random", "trained"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Path:
    """A model with GPT-2's vocabulary: with random biases and gains, or trained."""
    trained = test_data / "models/shakespeare"
    model, tokenizer = load(trained, dtype="float32")  # it is stored in bfloat16
    if request.param == "random":
        config = GPT2Config(n_vocab=50257, n_ctx=256, n_embd=32, n_head=4, n_layer=2)
        model = make_model(config, seed=5)
    made: Path = tmp_path_factory.mktemp("judged") / request.param
    made.mkdir()
    write_model(made, model, tokenizer)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(trained / name, made)
    return made


def asked(name: str, program: str, folder: Path) -> list[list[list[float]]]:
    """Run a judge's program with the model and the texts, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [judge(name) / "python", "-c", program, folder, json.dumps(TEXTS)],
        env=environment | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: list[list[list[float]]] = json.loads(done.stdout.partition("ANSWER")[2])
    return answer


def measured(folder: Path) -> list[Any]:
    model, tokenizer = load(folder, dtype="float32", device="cpu")
    return words(model, tokenizer, TEXTS, options=WordOptions(base="e", boundary="space"))


def test_words_and_their_corrections_are_those_of_minicons(folder: Path) -> None:
    plain, corrected = asked("minicons", MINICONS, folder)
    for found, tokens, fixed in zip(measured(folder), plain, corrected, strict=True):
        ends = len(tokens) - sum(len(word.tokens) for word in found)  # it lists <|endoftext|>
        for word in found:
            start, ends = ends, ends + len(word.tokens)
            assert word.surprisal == pytest.approx(sum(tokens[start:ends]), abs=1e-4)
            assert word.surprisal_corrected == pytest.approx(sum(fixed[start:ends]), abs=1e-4)
        assert ends == len(tokens)


def test_words_and_their_corrections_are_those_of_wordsprobability(folder: Path) -> None:
    plain, corrected = asked("wordsprobability", WORDSPROBABILITY, folder)
    for found, sums, fixed in zip(measured(folder), plain, corrected, strict=True):
        assert [word.surprisal for word in found] == pytest.approx(sums, abs=1e-4)
        rest = [word.surprisal_corrected for word in found[1:]]
        assert rest == pytest.approx(fixed[1:], abs=1e-4)
        assert found[0].surprisal_corrected >= fixed[0]  # it knows that no text begins with a space


def harness(folder: Path, out: Path, data: dict[str, Path]) -> dict[str, Any]:
    """Return, by task, the harness's figures and the log probabilities of each line."""
    for task, path in data.items():
        (out / f"{task}.yaml").write_text(
            f"task: {task}\ndataset_path: json\ndataset_kwargs: {{data_files: {path}}}\n"
            f"test_split: train\n{TASKS[task]}"
        )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [
            *(judge("lmeval") / "lm_eval", "--model", "hf", "--tasks", ",".join(data)),
            *("--model_args", f"pretrained={folder},dtype=float32", "--include_path", out),
            *("--log_samples", "--output_path", out / "found", "--device", "cpu"),
        ],
        env=environment
        | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "hf")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (out / "found").rglob("results_*.json")
    found = {}
    for task in data:
        (samples,) = (out / "found").rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        logprobs = [[_number(each) for each in line["resps"]] for line in lines]
        found[task] = (json.loads(results.read_text())["results"][task], logprobs)
    return found


def _number(response: Any) -> float:
    while isinstance(response, list):
        response = response[0]
    return float(response)


def test_blimp_lambada_and_rolling_are_those_of_the_harness(
    folder: Path, test_data: Path, tmp_path: Path
) -> None:
    blimp = tmp_path / "blimp.jsonl"
    lines = []
    for paradigm in ("anaphor_gender_agreement", "npi_present_1", "wh_island"):
        lines += (test_data / f"blimp/{paradigm}.jsonl").read_text().splitlines()[:5]
    blimp.write_text("\n".join(lines) + "\n")
    passages = tmp_path / "lambada.jsonl"
    passages.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    rolling = tmp_path / "rolling.jsonl"
    long = " ".join(TEXTS * 12)
    rolling.write_text("".join(json.dumps({"text": t}) + "\n" for t in (*TEXTS, long)))
    data = {"ours_blimp": blimp, "ours_lambada": passages, "ours_rolling": rolling}
    found = harness(folder, tmp_path, data)
    model, tokenizer = load(folder, dtype="float32", device="cpu")
    assert tokenizer is not None

    pairs = score_pairs(model, tokenizer, read_blimp(blimp), protocol="harness")
    ours = [[each.logprob_good, each.logprob_bad] for each in pairs]
    figures, theirs = found["ours_blimp"]
    assert ours == [pytest.approx(each, abs=1e-3, rel=1e-5) for each in theirs]
    assert figures["acc,none"] == sum(bool(each.correct) for each in pairs) / len(pairs)

    figures, _ = found["ours_lambada"]
    result = lambada(model, tokenizer, passages)
    assert result.perplexity == pytest.approx(figures["perplexity,none"], rel=1e-4)
    assert result.accuracy == figures["acc,none"]

    for text, (theirs,) in zip((*TEXTS, long), found["ours_rolling"][1], strict=True):
        ids, n_ctx = [50256, *tokenizer.encode(text)], model.config.n_ctx
        # Windows of n_ctx tokens with one token of context; the last one is filled up from behind.
        work = [
            Window(ids[max(0, end - n_ctx - 1) : end], end - done)
            for done in range(1, len(ids), n_ctx)
            for end in [min(done + n_ctx, len(ids))]
        ]
        nats = sum(float(each.nats.double().sum()) for each in surprisals(model, work))
        assert -nats == pytest.approx(theirs, rel=1e-5)
