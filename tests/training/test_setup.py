"""Fine-tuning from Python: what the command chooses, as a stream of reports."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_builders import VERSES

import gpt2kit
from gpt2kit.checkpoints.classifiers import add_class_head, class_head
from gpt2kit.checkpoints.load import write_model
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorpusError,
    Gpt2KitWarning,
    TokenizerError,
    TrainingError,
)
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import identity
from gpt2kit.tokenizers.learn import learn_bpe
from gpt2kit.training.options import RunOptions
from gpt2kit.training.settings import Command, Settings
from gpt2kit.training.setup import finetune, set_up

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _a_folder_with_a_text_and_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2KIT_WEIGHTS", "weights")
    Path("divina.txt").write_text(VERSES * 3, encoding="utf-8")
    tokenizer = learn_bpe([VERSES], 300)
    model = GPT2(GPT2Config(n_vocab=tokenizer.n_vocab, n_ctx=32, n_embd=16, n_head=2, n_layer=2))
    model.init_weights(torch.Generator().manual_seed(0))
    folder = tmp_path / "weights" / "124M"
    folder.mkdir(parents=True)
    write_model(folder, model, tokenizer)


def test_the_readmes_example_leaves_a_model_that_knows_the_text_better(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = re.findall(
        r"```python\n(for report in gpt2kit\.finetune.*?)```",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    found: dict[str, object] = {"gpt2kit": gpt2kit}
    exec(example.replace("max_steps=300", "max_steps=30, lr=1e-2"), found)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 31
    assert float(lines[-1].split()[2]) < float(lines[0].split()[2]) - 0.5
    assert isinstance(found["model"], GPT2)
    assert not torch.equal(
        found["model"].wte.weight, gpt2kit.load("124M", device="cpu")[0].wte.weight
    )


def test_it_chooses_what_the_command_chooses() -> None:
    for _ in finetune("divina.txt", epochs=0.5):
        pass
    made = Settings.read(Path("weights/divina-124M")).training
    assert made == set_up("finetune", "divina.txt", {"epochs": 0.5}).config
    assert (made.optimizer, made.lr, made.patience) == ("adamw", 1e-4, 5)


def test_a_run_is_continued_replaced_or_refused() -> None:
    stream = finetune("divina.txt", out="run", max_steps=6)
    assert [next(stream).step, next(stream).step] == [0, 1]
    stream.close()  # type: ignore[attr-defined]
    assert [report.step for report in finetune("divina.txt", out="run", resume=True)] == [
        2,
        3,
        4,
        5,
        6,
    ]
    with pytest.raises(TrainingError, match="already exists"):
        finetune("divina.txt", out="run")
    assert len(list(finetune("divina.txt", out="run", max_steps=2, force=True))) == 3


def test_the_model_and_the_texts_may_be_paths() -> None:
    reports = list(
        finetune(
            Path("divina.txt"), model=Path("weights/124M"), val=Path("divina.txt"), max_steps=1
        )
    )
    assert reports[-1].val_loss is not None
    assert Settings.read(Path("weights/divina-124M")).options["val"] == "divina.txt"


def test_it_stops_when_told() -> None:
    reports = list(finetune("divina.txt", max_steps=6, stop=lambda: True))
    assert [report.finish_reason for report in reports] == [None, "stopped"]


def test_what_is_wrong_is_refused_before_the_first_report() -> None:
    with pytest.raises(ConfigError, match=r"no option 'max_step'; did you mean max_steps\?"):
        finetune("divina.txt", max_step=3)  # type: ignore[call-arg]
    with pytest.raises(CheckpointNotFoundError, match="gpt2kit download 355M"):
        finetune("divina.txt", model="355M")
    with pytest.raises(ConfigError, match="this one is alone"):
        finetune("divina.txt", shard=True)
    assert not Path("weights/divina-355M").exists()


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("train", {"n_vocab": 300}, "n_vocab"),
        ("train", {"vocabulary": "124M"}, "vocabulary"),
        ("train", {"tokenizer": "bpe", "vocabulary": "124M", "n_vocab": 300}, "n_vocab"),
        ("train", {"val": "divina.txt", "val_fraction": 0.2}, "val_fraction"),
        ("finetune", {"lora_alpha": 3.0}, "lora_alpha"),
    ],
)
def test_an_option_without_effect_is_refused(
    kind: Command, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"--{name} has no effect here"):
        set_up(kind, "divina.txt", options)


def test_an_option_of_a_recipe_may_have_no_effect() -> None:
    assert (
        set_up(
            "train", "divina.txt", {"recipe": "dante-bpe", "tokenizer": "char", "block_size": 8}
        ).tokenizer.n_vocab
        < 100
    )


def test_the_text_is_read_before_a_model_is_looked_for() -> None:
    # A model was downloaded first, and then the name of the text was wrong.
    def locate(_: str) -> Path:
        raise AssertionError("looked for a model")

    with pytest.raises(CorpusError, match=r"nowhere.txt: no such file"):
        set_up("finetune", "nowhere.txt", {}, locate=locate)


def test_a_text_that_a_model_of_characters_cannot_learn_is_refused_with_a_way_out() -> None:
    # The advice was an option that finetune does not have.
    Path("fox.txt").write_text("🦊 and ~ " * 100, encoding="utf-8")
    with pytest.raises(
        TokenizerError,
        match=r"dante knows 68 characters, and not 1 of the text's, such as '🦊'; .*gpt2kit train$",
    ):
        set_up("finetune", "fox.txt", {"model": "dante"})


def test_with_another_text_to_validate_with_a_vocabulary_is_learned_from_the_whole_corpus() -> None:
    setup = set_up("train", "divina.txt", {"tokenizer": "bpe", "n_vocab": 300, "val": "divina.txt"})
    whole = learn_bpe([Path("divina.txt").read_text(encoding="utf-8")], 300)
    assert identity(setup.tokenizer) == identity(whole)


@pytest.mark.parametrize("name", ["corpus.bin", "corpus.npy"])
def test_a_folder_of_texts_may_be_called_as_a_file_of_ids(name: str) -> None:
    """It was taken for a corpus of ids, by its name alone."""
    Path(name).mkdir()
    shutil.copy("divina.txt", name)
    setup = set_up("train", name, {"tokenizer": "char"}, with_weights=False)
    assert setup.corpus.report.files == [f"{name}/divina.txt"]


def test_a_table_that_is_read_as_a_text_is_warned_of() -> None:
    # Without --label_field, a table of labels was trained on as a text, without a word.
    Path("texts.csv").write_text("text,label\n" + "selva oscura,yes\n" * 30)
    with pytest.warns(Gpt2KitWarning, match="texts.csv is read as a text, its commas included"):
        set_up("finetune", "texts.csv", {})


def test_a_head_is_trained_further_whatever_the_order_of_its_labels(tmp_path: Path) -> None:
    # A head whose labels were not in alphabetical order was silently replaced by a new one.
    model, tokenizer = gpt2kit.load("124M", device="cpu")
    assert tokenizer is not None
    add_class_head(model, ("yes", "no"), weight=torch.arange(32.0).view(2, 16))
    (tmp_path / "headed").mkdir()
    write_model(tmp_path / "headed", model, tokenizer)
    options = {"model": str(tmp_path / "headed"), "label_field": "label", "label_head": True}

    def head(*labels: str) -> torch.Tensor:
        rows = [f"selva {n},{label}\n" for label in labels for n in range(4)]
        Path("texts.csv").write_text("text,label\n" + "".join(rows))
        found = class_head(set_up("finetune", "texts.csv", options).model)
        assert found is not None
        assert found.labels == tuple(sorted(labels))
        return found.weight

    assert torch.equal(head("yes", "no"), torch.arange(32.0).view(2, 16).flip(0))
    with pytest.warns(Gpt2KitWarning, match="replaced by a new one.*'perhaps' is only in"):
        assert head("yes", "no", "perhaps").abs().max() < 1


def test_a_resumed_run_is_of_the_model_that_it_was_started_with(tmp_path: Path) -> None:
    # Without --model again, its plan said "model 124M".
    shutil.copytree("weights/124M", "weights/other")
    for _ in finetune("divina.txt", model="other", out="run", max_steps=1):
        pass
    assert (
        set_up("finetune", "divina.txt", {}, RunOptions(out=Path("run"), resume=True)).name
        == "other"
    )


def test_a_run_killed_before_its_first_state_is_resumed_with_the_averages_it_starts_with() -> None:
    """It was resumed with averages of zero, and no word of it."""
    given = {"model": "./first", "max_steps": 3}
    killed = RunOptions(out=Path("killed"))
    for _ in finetune("divina.txt", out="first", max_steps=3):
        pass
    for _ in finetune("divina.txt", out="whole", model="./first", max_steps=3):
        pass
    set_up("finetune", "divina.txt", given, killed).open_run(killed).close()
    for _ in finetune("divina.txt", out="killed", resume=True):
        pass
    for name in ("weights", "optimizer"):
        file = f"states/step-00000003/{name}.safetensors"
        assert Path("killed", file).read_bytes() == Path("whole", file).read_bytes()


def test_a_run_is_resumed_with_its_recipe_named_again_and_its_own_options() -> None:
    """The recipe won over the options that the run was started with, so it was refused."""
    given = {"recipe": "demo", "n_layer": 1, "n_embd": 8, "n_head": 1, "max_steps": 2}
    first, again = RunOptions(out=Path("run")), RunOptions(out=Path("run"), resume=True)
    begun = set_up("train", "divina.txt", given, first)
    begun.open_run(first).close()
    resumed = set_up("train", "divina.txt", {"recipe": "demo"}, again)
    assert resumed.settings == begun.settings
    resumed.open_run(again).close()
    with pytest.raises(TrainingError, match="options.recipe was 'demo' and is now 'toy'"):
        set_up("train", "divina.txt", {"recipe": "toy"}, again).open_run(again)
