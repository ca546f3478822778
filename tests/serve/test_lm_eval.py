"""lm-evaluation-harness scores through the server as it scores with transformers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from serve_builders import running

from gpt2kit.config import GPT2Config
from gpt2kit.serve.asgi import application

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval[api]"),
]

CHOICES = """
task: choices
dataset_path: json
dataset_kwargs:
  data_files: {test: FOLDER/choices.jsonl}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: "{{endings}}"
metric_list:
  - metric: acc
"""
WORDS = """
task: words
dataset_path: json
dataset_kwargs:
  data_files: {test: FOLDER/words.jsonl}
output_type: loglikelihood
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{word}}"
metric_list:
  - metric: perplexity
  - metric: acc
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs:
  data_files: {test: FOLDER/words.jsonl}
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{word}}"
generation_kwargs:
  until: [" the"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Write three small tasks, with characters of several bytes."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    endings = ["barks.", "sings é an aria 😀.", "is a cat.", "flies"]
    questions = [f"The dog {'and the cat ' * n}".strip() for n in range(6)]
    lines = [{"question": question, "endings": endings, "label": 0} for question in questions]
    (folder / "choices.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    words = [{"text": question, "word": " perché sì"} for question in questions]
    (folder / "words.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in words))
    for name, text in (("choices", CHOICES), ("words", WORDS), ("writing", WRITING)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


def evaluate(model: str, arguments: str, tasks: Path) -> dict[str, Any]:
    """Return the answers to every question of the tasks."""
    import lm_eval  # type: ignore[import-not-found,unused-ignore]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found,unused-ignore]

    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["choices", "words", "writing"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=4,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    return {
        task: [sample["resps"] for sample in samples] for task, samples in found["samples"].items()
    }


@pytest.mark.parametrize("tokenizer", ["huggingface", "remote"])
def test_scores_and_texts_are_those_of_transformers(
    weights: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tasks / "hf"),
        "OPENAI_API_KEY": "any",
    }.items():
        monkeypatch.setenv(name, value)
    config = GPT2Config(n_vocab=512, n_ctx=128, n_embd=16, n_head=2, n_layer=2)
    folder = add_vocabulary(write_hub(weights / "tiny", make_model(config), n_positions=128))
    with running(app=application(folder)) as url:
        ours = evaluate(
            "local-completions",
            f"model={folder},"
            f"base_url={url}/v1/completions,max_length=128,tokenizer_backend={tokenizer},"
            "num_concurrent=2,max_retries=1",
            tasks,
        )
    theirs = evaluate("hf", f"pretrained={folder},dtype=float32,max_length=128", tasks)
    assert ours["writing"] == theirs["writing"]
    for task in ("choices", "words"):
        for own, other in zip(ours[task], theirs[task], strict=True):
            for ((value, greedy),), ((expected, is_greedy),) in zip(own, other, strict=True):
                assert float(value) == pytest.approx(float(expected), abs=1e-4)
                assert str(greedy) == str(is_greedy)
