"""The training loop: what it computes, what each setting changes, and what it leaves alone."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from training_builders import VERSES, same, small_config, small_corpus, small_model, weights

from gpt2kit.errors import ConfigError, Gpt2KitWarning, TrainingError
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.loop import evaluate_loss, train
from gpt2kit.training.loss import NextTokenLoss
from gpt2kit.training.optim import freeze
from gpt2kit.training.records import StepReport


def trained(
    model: GPT2 | None = None, text: str = VERSES, **settings: Any
) -> tuple[GPT2, list[StepReport]]:
    """Train a small model to the end."""
    model = model or small_model()
    return model, list(train(model, small_corpus(text), small_config(**settings)))


def test_training_learns_a_text() -> None:
    _, reports = trained(max_steps=60, lr=1e-2, eval_every=60)
    assert reports[0].val_loss is not None
    assert reports[-1].val_loss is not None
    assert reports[-1].val_loss < reports[0].val_loss - 0.5


def test_the_first_report_measures_and_the_others_count_steps() -> None:
    _, reports = trained()
    assert [report.step for report in reports] == list(range(13))
    assert reports[0].train_loss is None
    assert [report.step for report in reports if report.val_loss is not None] == [0, 4, 8, 12]
    assert [report.finish_reason for report in reports if report.finish_reason] == ["steps"]
    assert reports[-1].tokens_seen == 12 * 4 * 8
    assert reports[-1].epoch == pytest.approx(12 * 4 * 8 / len(small_corpus().train_ids))


def test_the_same_settings_give_the_same_weights() -> None:
    assert same(weights(trained()[0]), weights(trained()[0]))


DIFFERENT: list[dict[str, Any]] = [
    {"lr": 1e-3}, {"schedule": "cosine"}, {"warmup": 5}, {"optimizer": "adamw"},
    {"weight_decay": 0.5}, {"beta1": 0.5}, {"beta2": 0.5}, {"clip": 0.01}, {"batch_size": 8},
    {"block_size": 6}, {"shuffle": False}, {"stride": 3}, {"seed": 1},
    {"dtype": "bfloat16"}, {"max_steps": 11},
]  # fmt: skip


@pytest.mark.parametrize("setting", DIFFERENT, ids=lambda setting: next(iter(setting)))
def test_each_setting_changes_what_is_learned(setting: dict[str, Any]) -> None:
    assert not same(weights(trained()[0]), weights(trained(**setting)[0]))


def test_measuring_more_often_changes_nothing() -> None:
    assert same(weights(trained(eval_every=1)[0]), weights(trained(eval_every=12)[0]))


def test_random_numbers_drawn_between_steps_change_nothing() -> None:
    model = small_model()
    for _ in train(model, small_corpus(), small_config()):
        torch.rand(100)
    assert same(weights(model), weights(trained()[0]))


def test_dropout_is_applied_in_training_and_not_in_validation() -> None:
    free, dropping = (
        dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), value) for value in (0.0, 0.5)
    )
    one, first = trained(small_model(**free))
    other, second = trained(small_model(**dropping))
    assert first[0].val_loss == second[0].val_loss
    assert not same(weights(one), weights(other))


def test_a_batch_in_parts_gives_the_same_steps() -> None:
    dropping = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    whole, parts = (
        trained(small_model(**dropping))[0],
        trained(small_model(**dropping), accumulate=4)[0],
    )
    for name, parameter in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], parameter, atol=2e-3, rtol=1e-2)


def test_recomputing_blocks_changes_nothing() -> None:
    model, _ = trained(checkpointing=True)
    assert same(weights(model), weights(trained()[0]))
    assert "forward" not in vars(model.h[0])


def test_frozen_parameters_stay_and_the_others_change() -> None:
    model = small_model()
    freeze(model, "embeddings,blocks:0")
    before = weights(model)
    trained(model)
    for name, parameter in weights(model).items():
        assert torch.equal(parameter, before[name]) is name.startswith(("wte", "wpe", "h.0.")), name


def test_training_stops_when_patience_ends() -> None:
    _, reports = trained(
        lr=1.0, max_steps=100, eval_every=1, patience=3, clip=0.0, optimizer="adamw"
    )
    assert reports[-1].finish_reason == "patience"
    assert not any(report.is_best for report in reports[-3:])
    assert reports[-4].is_best


def test_training_stops_when_asked() -> None:
    calls = iter([False, False, True])
    reports = list(train(small_model(), small_corpus(), small_config(), stop=lambda: next(calls)))
    assert reports[-1].step == 3
    assert reports[-1].finish_reason == "stopped"


def test_validation_uses_no_more_tokens_than_it_may() -> None:
    model, corpus = small_model(), small_corpus(val_fraction=0.5)
    whole, part = (
        evaluate_loss(NextTokenLoss(model), corpus, small_config(eval_tokens=n))
        for n in (10**6, 40)
    )
    assert whole is not None
    assert part is not None
    assert whole != part
    assert whole == pytest.approx(part, abs=0.3)


@pytest.mark.parametrize("eval_tokens", [10**6, 40])
def test_the_training_text_is_measured_like_the_validation_text(eval_tokens: int) -> None:
    model = small_model(embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5)
    corpus = small_corpus(val_fraction=0.3)
    config = small_config(eval_train=True, eval_tokens=eval_tokens)
    for report in train(model, corpus, config):
        if report.val_loss is None:
            assert report.eval_train_loss is None
            continue
        # By hand: every window alone, its tokens' surprisals from the logits in float64.
        model.eval()
        for split, found in (("train", report.eval_train_loss), ("val", report.val_loss)):
            windows = corpus.eval_windows(split, 8, batch_size=4, most_tokens=eval_tokens)  # type: ignore[arg-type]
            nats = [
                -torch.log_softmax(model(row[None, :-1])[0].double(), dim=-1)[position, token]
                for batch in windows
                for row in batch
                for position, token in enumerate(row[1:])
            ]
            assert found == pytest.approx(torch.stack(nats).mean().item(), rel=1e-5)


def test_measuring_the_training_text_changes_nothing() -> None:
    assert same(weights(trained(eval_train=True)[0]), weights(trained()[0]))


@pytest.mark.parametrize("how", [{}, {"accumulate": 2}, {"clip": 0.01}])
def test_gradient_norms_by_part_are_those_of_a_plain_backward_pass(how: dict[str, Any]) -> None:
    model = small_model(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    add_adapters(model, 2)
    model.wte.requires_grad_(True)
    model.ln_f.requires_grad_(True)
    plain = copy.deepcopy(model)
    report = list(train(model, small_corpus(), small_config(max_steps=3, **how)))[1]
    ids = small_corpus().batch("train", 0, block_size=8, batch_size=4, seed=0)
    logits = plain(ids[:, :-1])  # (B, T, V)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    parts = {"wte": plain.wte, "h.0": plain.h[0], "h.1": plain.h[1], "ln_f": plain.ln_f}
    expected = {
        name: float(torch.nn.utils.clip_grad_norm_(part.parameters(), math.inf))
        for name, part in parts.items()
    }
    assert report.gradient_norms == pytest.approx(expected, rel=1e-4)
    assert report.gradient_norm == pytest.approx(math.hypot(*expected.values()), rel=1e-4)


def test_without_validation_text_nothing_is_measured() -> None:
    config = small_config(eval_train=True)
    reports = list(train(small_model(), small_corpus(val_fraction=0.0), config))
    assert all(report.val_loss is None for report in reports)
    assert all(report.eval_train_loss is None for report in reports)


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights() -> None:
    model = small_model()
    steps = train(model, small_corpus(), small_config())
    next(steps)
    with torch.no_grad():
        model.get_parameter("wpe.weight")[3, 3] = math.nan
    others = weights(model)
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan.*--lr") as caught:
        next(steps)
    assert caught.value.step == 1
    assert all(
        torch.equal(parameter, others[name])
        for name, parameter in weights(model).items()
        if name != "wpe.weight"
    )


def test_if_torch_cannot_compile_training_continues_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    with pytest.warns(Gpt2KitWarning, match="cannot compile here .*no C\\+\\+ compiler"):
        model, _ = trained(compile=True)
    assert same(weights(model), weights(trained()[0]))


@pytest.mark.slow
def test_a_compiled_model_learns_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Gpt2KitWarning)
        _, compiled = trained(
            small_model(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0), compile=True
        )
    _, eager = trained(small_model(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0))
    assert compiled[-1].val_loss == pytest.approx(eager[-1].val_loss, abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0}, {"max_steps": True}, {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf},
        {"lr": -1.0}, {"warmup": 12}, {"schedule": "square"}, {"optimizer": "sgd"},
        {"dtype": "float16"}, {"beta2": 1.0}, {"accumulate": 3}, {"clip": math.inf}, {"seed": -1},
        {"compile": 1}, {"batch_size": 0}, {"block_size": 2.5}, {"patience": -1},
        {"stride": 9}, {"stride": 0}, {"shuffle": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_breaks_its_rule_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is "):
        small_config(**wrong)


def test_weights_must_be_float32() -> None:
    with pytest.raises(ConfigError, match="the weights are bfloat16, expected float32"):
        trained(small_model().to(torch.bfloat16))


def test_the_model_can_be_used_between_steps_and_after() -> None:
    model = small_model()
    for report in train(model, small_corpus(), small_config()):
        assert report.step == 0 or not model.training
    assert not model.training


def test_the_configuration_is_a_value() -> None:
    assert replace(small_config(), seed=3) == small_config(seed=3)
    assert TrainConfig(max_steps=200).lr == 3e-3
