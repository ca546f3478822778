"""Training on examples: the loss beside transformers', whatever the parts, processes and stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, hub_config, hub_state
from conftest import make_model
from torch import Tensor
from training_builders import same, weights

from gpt2kit.checkpoints.classifiers import add_class_head, class_head
from gpt2kit.checkpoints.load import load, write_model
from gpt2kit.config import GPT2Config
from gpt2kit.data.example_rows import NOTHING, ExampleCorpus
from gpt2kit.data.examples import SEPARATOR
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.classification import Classifier
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.loop import train
from gpt2kit.training.loss import NextTokenLoss
from gpt2kit.training.setup import finetune, set_up
from gpt2kit.training.trainer import Trainer

CONFIG = GPT2Config(
    n_vocab=512, n_ctx=64, n_embd=16, n_head=2, n_layer=2, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0
)
QUESTIONS = ["who", "what is it", "where", "when did they go", "why", "how many are there", "which"]


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bpe: BPETokenizer) -> Path:
    """Make pairs.jsonl, texts.csv and the model 124M, and work in their folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2KIT_WEIGHTS", "weights")
    pairs = [{"prompt": each, "completion": each[::-1]} for each in QUESTIONS]
    Path("pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs))
    texts = [
        (f"{each}{end}", label) for each in QUESTIONS for end, label in ((" ok", 0), (" x", 1))
    ]
    lines = [f"{text},{'good' if label else 'bad'}\n" for text, label in texts]
    Path("texts.csv").write_text("text,label\n" + "".join(lines))
    folder = Path("weights/124M")
    folder.mkdir(parents=True)
    write_model(folder, make_model(CONFIG), small_bpe)
    return tmp_path


def head_of(model: GPT2) -> Tensor:
    head = class_head(model)
    assert head is not None
    return head.weight


def corpus_of(source: str, **given: Any) -> ExampleCorpus:
    corpus = set_up("finetune", source, {"val_fraction": 0.0, **given}).corpus
    assert isinstance(corpus, ExampleCorpus)
    return corpus


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the gradient of each parameter that has one, by its name in our model."""
    return {
        name.removeprefix("transformer."): each.grad
        for name, each in model.named_parameters()
        if each.grad is not None
    }


def theirs(kind: str, model: GPT2, **config: Any) -> Any:
    """Return a model as one of transformers' classes, in float64."""
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, kind)(transformers.GPT2Config(**hub_config(model, **config)))
    state = {name: tensor.double() for name, tensor in hub_state(model).items()}
    if "transformer.score.weight" in state:
        state["score.weight"] = state.pop("transformer.score.weight")
    found = made.double().load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert {*found.missing_keys} <= {"lm_head.weight"}  # which is wte
    return made.eval()


def padded(corpus: ExampleCorpus) -> tuple[Tensor, Tensor, Tensor]:
    """Return every example in a row of its own as transformers reads it: ids, labels, mask."""
    ids, labels, mask = [], [], []
    for each in corpus.train:
        last = [int(each.targets[-1])]
        own = each.ids.tolist() + last
        wanted = [NOTHING, *each.targets.tolist()]
        fill = 80 - len(own)
        ids.append(own + [0] * fill)
        labels.append(wanted + [NOTHING] * fill)
        mask.append([1] * len(own) + [0] * fill)
    longest = max(map(sum, mask))
    return tuple(torch.tensor(each)[:, :longest] for each in (ids, labels, mask))  # type: ignore[return-value]


def test_packed_rows_have_the_loss_and_gradient_of_transformers_with_labels_of_minus_100(
    tables: Path,
) -> None:
    model = make_model(CONFIG, dtype=torch.float64)
    reference = theirs("GPT2LMHeadModel", model)
    corpus = corpus_of("pairs.jsonl")
    ids, labels, mask = padded(corpus)
    expected = reference(input_ids=ids, labels=labels, attention_mask=mask).loss
    expected.backward()
    rows = torch.cat(_pass(corpus, 64))
    assert len(rows) < len(corpus.train)  # several examples in a row
    loss = NextTokenLoss(model)(rows)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(
        float(expected.detach()), rel=1e-6
    )  # theirs is float32
    wanted = gradients(reference)
    for name, found in gradients(model).items():
        other = wanted[name].T if found.shape != wanted[name].shape else wanted[name]
        if name.endswith("attn.c_proj.weight"):  # square, and (in, out) there
            other = wanted[name].T
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-7)


def test_a_head_for_labels_has_the_loss_and_gradient_of_transformers(tables: Path) -> None:
    model = make_model(CONFIG, dtype=torch.float64)
    add_class_head(model, ["bad", "good"], seed=1)
    reference = theirs("GPT2ForSequenceClassification", model, pad_token_id=0, num_labels=2)
    corpus = corpus_of("texts.csv", label_field="label", label_head=True)
    longest = max(len(each.ids) for each in corpus.train)
    ids = torch.tensor([[*each.ids, *[0] * (longest - len(each.ids))] for each in corpus.train])
    mask = torch.tensor([[n < len(each.ids) for n in range(longest)] for each in corpus.train])
    labels = torch.tensor([int(each.targets[-1]) for each in corpus.train])
    expected = reference(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected.backward()
    loss = NextTokenLoss(model)(torch.cat(_pass(corpus, 64)))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(
        float(expected.detach()), rel=1e-6
    )  # theirs is float32
    for found, other in (
        (head_of(model).grad, reference.score.weight.grad),
        (model.wte.weight.grad, reference.transformer.wte.weight.grad),
    ):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-7)


def _pass(corpus: ExampleCorpus, block_size: int) -> list[Tensor]:
    n_rows = corpus.epoch_tokens(block_size) // block_size
    return [
        corpus.batch("train", step, block_size=block_size, batch_size=1, seed=0)
        for step in range(n_rows)
    ]


def test_a_batch_in_parts_or_in_processes_has_the_mean_over_all_its_predicted_tokens(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of("pairs.jsonl")

    def loss_and_gradient(accumulate: int, world_size: int) -> tuple[float, Tensor]:
        model, total = make_model(CONFIG), 0.0
        config = TrainConfig(
            max_steps=100, block_size=24, batch_size=4, accumulate=accumulate, warmup=1
        )
        how = {name: getattr(config, name) for name in ("block_size", "batch_size", "seed")}
        predicted = int((corpus.batch("train", 0, **how)[:, 1] != NOTHING).sum())
        monkeypatch.setattr(Ranks, "mean", lambda self, value: predicted / world_size)
        monkeypatch.setattr(Ranks, "wrap", lambda self, module: module)
        monkeypatch.setattr(Ranks, "sync_gradients", lambda self, module, sync: torch.enable_grad())
        for rank in range(world_size):
            for loss in Trainer(model, corpus, config, Ranks(rank, world_size)).losses(0):
                # As processes average their gradients:
                torch.autograd.backward(loss / world_size)
                total += float(loss.detach()) / world_size
        assert model.wte.weight.grad is not None
        return total, model.wte.weight.grad

    whole, gradient = loss_and_gradient(1, 1)
    for accumulate, world_size in ((4, 1), (1, 2), (2, 2)):
        found, other = loss_and_gradient(accumulate, world_size)
        assert found == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6)


def test_windows_of_a_text_have_the_loss_that_they_had_before_there_were_examples() -> None:
    ids = torch.randint(512, (2, 9), generator=torch.Generator().manual_seed(0))
    model = make_model(CONFIG)
    logits = model(ids[:, :-1]).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    assert torch.equal(NextTokenLoss(model)(ids), expected)


@pytest.mark.parametrize(
    "given", [{}, {"label_field": "label"}, {"label_field": "label", "label_head": True}]
)
def test_a_run_on_examples_resumes_to_the_same_weights_bit_for_bit(
    tables: Path, given: dict[str, Any]
) -> None:
    source = "texts.csv" if given else "pairs.jsonl"
    how: dict[str, Any] = {**given, "max_steps": 6, "save_every": 2, "dropout": 0.1, "lr": 1e-2}
    for _ in finetune(source, out="whole", **how):
        pass
    stream = finetune(source, out="stopped", **how)
    while next(stream).step < 3:
        pass
    stream.close()  # type: ignore[attr-defined]
    for _ in finetune(source, out="stopped", resume=True, **how):
        pass
    assert same(weights(load("./whole")[0]), weights(load("./stopped")[0]))
    for name in ("model.safetensors", "config.json"):
        assert Path("whole", name).read_bytes() == Path("stopped", name).read_bytes()
    assert Path("whole/labels.json").exists() == (given == {"label_field": "label"})


def test_a_small_set_of_pairs_is_learned_by_heart(tables: Path, small_bpe: BPETokenizer) -> None:
    corpus, model = corpus_of("pairs.jsonl"), make_model(CONFIG)
    config = TrainConfig(max_steps=150, block_size=64, batch_size=2, lr=1e-2, warmup=4)
    losses = [report.train_loss or 9.0 for report in train(model, corpus, config)]
    assert losses[-1] < 0.1 < 2 < losses[1]
    prompt = small_bpe.encode(f"who{SEPARATOR}")
    ids = torch.tensor([prompt])
    while ids[0, -1] != small_bpe.stop_id and ids.shape[1] < 40:
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    assert small_bpe.decode(ids[0, len(prompt) : -1].tolist()) == "ohw"


@pytest.mark.parametrize("given", [{}, {"label_head": True}, {"lora_rank": 4}])
def test_a_small_classification_set_is_learned(tables: Path, given: dict[str, Any]) -> None:
    how: dict[str, Any] = {"label_field": "label", "max_steps": 100, "lr": 1e-2, "eval_every": 25}
    for _ in finetune("texts.csv", out="run", **how, **given):
        pass
    classifier = Classifier.load("./run")
    assert classifier.labels == ("bad", "good")
    texts = [f"{question}{end}" for question in QUESTIONS for end in (" ok", " x")]
    found = [*classifier.probabilities(texts)]
    right = [(p > 0.5) == (index % 2 == 1) for index, (_, p) in enumerate(found)]
    assert sum(right) >= 13  # of 14


def test_a_head_continues_from_a_run_with_the_same_labels(tables: Path) -> None:
    how: dict[str, Any] = {"label_field": "label", "label_head": True, "max_steps": 2, "lr": 1e-2}
    for _ in finetune("texts.csv", out="run", **how):
        pass
    begun = set_up("finetune", "texts.csv", {**how, "model": "./run"}).model
    saved = Classifier.load("./run").model
    assert torch.equal(head_of(begun), head_of(saved))
    new = set_up("finetune", "texts.csv", how).model
    assert not torch.equal(head_of(new), head_of(saved))


@pytest.mark.parametrize(
    ("source", "given", "problem"),
    [
        (
            "texts.csv",
            {"label_field": "label", "label_head": True, "lora_rank": 2},
            "without a head",
        ),
        ("texts.csv", {"label_head": True}, "it is for --label_field"),
        ("texts.csv", {"separator": " "}, "is a text, and --separator is for tables"),
        ("pairs.jsonl", {"stride": 4}, "examples are not cut"),
        ("pairs.jsonl", {"val": "texts.csv"}, "expected a table of examples"),
        ("texts.csv", {"label_field": "label", "prompt_field": "text"}, "for texts and labels"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tables: Path, source: str, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        set_up("finetune", source, given)


def test_every_example_fits_by_default_and_what_does_not_fit_is_counted(tables: Path) -> None:
    add_vocabulary(Path("weights/124M"))
    row = {"prompt": "word " * 50, "completion": "yes"}
    Path("long.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps({**row, "prompt": "a"}) + "\n"
    )
    setup = set_up("finetune", "long.jsonl", {"val_fraction": 0.0})
    assert setup.config.block_size == 64  # the model's positions
    assert isinstance(setup.corpus, ExampleCorpus)
    assert setup.corpus.shortened(64) == 1
    given = {"val_fraction": 0.0, "block_size": 16}
    assert set_up("finetune", "long.jsonl", given).config.block_size == 16
