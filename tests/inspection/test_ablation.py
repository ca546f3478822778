"""Ablation: against models whose weights were changed to leave a part out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import make_model
from torch.nn import functional as F

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import (
    Ablation,
    Part,
    Texts,
    every_head,
    every_mlp,
    of_repetition,
    of_windows,
    random_tokens,
    trace,
)
from gpt2kit.model import GPT2

IDS = torch.randint(40, (30,), generator=torch.Generator().manual_seed(0)).tolist()
HEAD = Part("head", 1, 2)
D = 4


@pytest.fixture
def model() -> GPT2:
    """A model whose biases and gains are random, too."""
    shape: dict[str, Any] = {"n_vocab": 40, "n_ctx": 24, "n_embd": 16, "n_head": 4, "n_layer": 3}
    made = make_model(GPT2Config(**shape)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(1.0 if "ln" in name else 0.0, 0.4, generator=generator)
    return made


@pytest.fixture
def texts() -> Texts:
    return of_windows(IDS, 12)  # the last one has 6 tokens


def loss(model: GPT2) -> float:
    """The mean loss of the tokens of three windows."""
    nats: list[torch.Tensor] = []
    for at in (0, 12, 24):
        ids = torch.tensor([IDS[at : at + 12]])
        nats.append(F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none").detach())
    return float(torch.cat(nats).mean())


def without_head(model: GPT2, value: torch.Tensor) -> GPT2:
    """The model whose head 1.2 gives the same value, (D,), at every position."""
    changed = copy.deepcopy(model)
    columns = slice(2 * D, 3 * D)
    with torch.no_grad():
        matrix = changed.get_parameter("h.1.attn.c_proj.weight")
        changed.get_parameter("h.1.attn.c_proj.bias").add_(matrix[:, columns] @ value)
        matrix[:, columns] = 0
    return changed


def test_zero_leaves_the_head_out_of_the_projection(model: GPT2, texts: Texts) -> None:
    found = Ablation(model, [HEAD], "zero").effect(texts)
    assert found.before == pytest.approx(loss(model), abs=1e-9)
    assert found.after == pytest.approx(loss(without_head(model, torch.zeros(D).double())))
    assert abs(found.change) > 0.01


def test_zero_of_transformer_lens_leaves_what_the_biases_give(model: GPT2, texts: Texts) -> None:
    rows = slice(32 + 2 * D, 32 + 3 * D)  # of the head's values
    with torch.no_grad():
        bias = model.get_parameter("h.1.attn.c_attn.bias")[rows]
        beta = model.get_parameter("h.1.ln_1.bias")
        left = bias + model.get_parameter("h.1.attn.c_attn.weight")[rows] @ beta
    found = Ablation(model, [HEAD], "zero-tl").effect(texts)
    assert found.after == pytest.approx(loss(without_head(model, left)))
    assert found.after != pytest.approx(Ablation(model, [HEAD], "zero").effect(texts).after)


def test_a_mean_is_that_of_all_positions_of_the_reference(model: GPT2, texts: Texts) -> None:
    outputs = [
        trace(model, torch.tensor([IDS[at : at + 12]])).layers[1].head_outputs[0, 2]
        for at in (0, 12, 24)
    ]
    found = Ablation(model, [HEAD], "mean", texts).effect(texts)
    assert found.after == pytest.approx(loss(without_head(model, torch.cat(outputs).mean(dim=0))))


def test_resampling_from_one_position_is_its_mean(model: GPT2, texts: Texts) -> None:
    single = Texts(((7,),))
    ablated = {
        how: Ablation(model, every_head(model), how, single).effect(texts).after
        for how in ("mean", "resample")
    }
    assert ablated["resample"] == pytest.approx(ablated["mean"])


def test_resampling_is_decided_by_the_seed(model: GPT2, texts: Texts) -> None:
    def after(seed: int) -> float:
        return Ablation(model, [HEAD], "resample", texts, seed=seed).effect(texts).after

    assert after(1) == after(1)
    assert after(1) != after(2)


def test_a_seed_draws_the_same_in_every_version_of_python() -> None:
    """The seed of a part's draws was Python's hash of it, which no version promises to keep."""
    drawn = {
        part.name: torch.randint(1000, (4,), generator=part.generator(5)).tolist()
        for part in (HEAD, Part("mlp", 1), Part("neuron", 1, 2))
    }
    assert drawn == {
        "1.2": [68, 259, 790, 356],
        "MLP 1": [388, 664, 750, 852],
        "neuron 1.2": [389, 465, 874, 973],
    }


def test_an_mlp_and_a_neuron_are_replaced(model: GPT2, texts: Texts) -> None:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_parameter("h.2.mlp.c_proj.weight")[:, 17] = 0
    neuron = Ablation(model, [Part("neuron", 2, 17)], "zero").effect(texts)
    assert neuron.after == pytest.approx(loss(changed))
    with torch.no_grad():
        changed.get_parameter("h.2.mlp.c_proj.weight").zero_()
        changed.get_parameter("h.2.mlp.c_proj.bias").zero_()
    mlp = Ablation(model, [Part("mlp", 2)], "zero").effect(texts)
    assert mlp.after == pytest.approx(loss(changed))


@pytest.mark.parametrize("how", ["mean", "zero", "zero-tl", "resample"])
@pytest.mark.parametrize("at_once", [16, 2048])
def test_each_part_by_itself_is_what_it_is_alone(
    model: GPT2, texts: Texts, how: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2kit.inspection.ablation._TOKENS_AT_ONCE", at_once)
    parts = [*every_head(model), *every_mlp(model), Part("neuron", 1, 3)]
    together = Ablation(model, parts, how, texts)
    for part, effect in zip(parts, together.effects(texts), strict=True):
        alone = Ablation(model, [part], how, texts).effect(texts)
        assert effect.parts == (part,)
        assert effect.after == pytest.approx(alone.after, abs=1e-9), part.name
        assert effect.standard_error == pytest.approx(alone.standard_error)


@torch.no_grad()
def test_a_difference_of_logits_is_measured_at_the_end_of_each_text(model: GPT2) -> None:
    texts = Texts(((1, 2, 3), (4, 5, 6, 7)), compared=((8, 9), (10, 11)))
    found = Ablation(model, [HEAD], "zero").effect(texts)
    wanted = [
        float(logits[answer] - logits[wrong])
        for ids, (answer, wrong) in zip(texts.ids, texts.compared, strict=True)
        for logits in [model(torch.tensor([ids]))[0, -1]]
    ]
    assert found.before == pytest.approx(sum(wanted) / 2)
    assert (found.what, found.texts) == ("logit difference", 2)


def test_the_error_is_that_of_the_paired_change(model: GPT2) -> None:
    texts = of_windows(IDS, 10)
    changes = [Ablation(model, [HEAD], "zero").effect(Texts((ids,))).change for ids in texts.ids]
    wanted = float(torch.tensor(changes).double().std()) / 3**0.5
    found = Ablation(model, [HEAD], "zero").effect(texts)
    assert found.standard_error == pytest.approx(wanted, rel=1e-6)
    assert Ablation(model, [HEAD], "zero").effect(Texts(texts.ids[:1])).standard_error is None


@torch.no_grad()
def test_the_loss_of_a_repetition_is_that_of_its_second_copy(model: GPT2) -> None:
    tokens = random_tokens(model, length=6, sequences=2)
    found = Ablation(model, [HEAD], "zero").effect(of_repetition(tokens))
    logits = model(tokens.ids)[:, 6:11]
    wanted = F.cross_entropy(logits.flatten(0, 1), tokens.ids[:, 7:].flatten())
    assert found.before == pytest.approx(wanted.item())


def test_parts_that_are_not_there_are_refused(model: GPT2) -> None:
    for part, message in (
        (Part("head", 3, 0), "there is no head 3.0"),
        (Part("neuron", 0, 64), "there is no neuron 0.64; expected one from 0.0 to 0.63"),
        (Part("mlp", 3), "layer is 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            Ablation(model, [part], "zero")
    with pytest.raises(ConfigError, match=r"1\.2 is given twice"):
        Ablation(model, [HEAD, HEAD], "zero")
    with pytest.raises(ConfigError, match="mean needs reference texts"):
        Ablation(model, [HEAD], "mean")
    assert every_mlp(make_model(GPT2Config(**{**vars(model.config), "mlp": "none"}))) == []
