"""LoRA adapters of PEFT: applied to their model as PEFT applies them, and refused where not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, hub_state, write_hub
from campaigns.damage import mutate
from conftest import make_model
from peft_builders import PREFIX, adapted, attention_pairs, pair, write_peft
from torch import Tensor

from gpt2kit import store
from gpt2kit.checkpoints.load import load, open_checkpoint
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    Gpt2KitError,
    Gpt2KitWarning,
)
from gpt2kit.model import GPT2

SMALL = GPT2Config(n_vocab=24, n_ctx=16, n_embd=8, n_head=2, n_layer=2)
C_ATTN = "transformer.h.{}.attn.c_attn"
IDS = torch.arange(12)[None]


def product(tensors: dict[str, Tensor], module: str, scale: float) -> Tensor:
    """Return scale B A, in float64."""
    a, b = (tensors[f"{PREFIX}{module}.lora_{part}.weight"].double() for part in "AB")
    return scale * b @ a


def read(folder: Path) -> dict[str, Tensor]:
    return {name: each.read() for name, each in open_checkpoint(folder).tensors.items()}


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_matrix_becomes_its_sum_with_the_product_of_two(tmp_path: Path, weights: str) -> None:
    model = make_model(SMALL)
    folder = adapted(tmp_path, model, weights=weights)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "PEFT's LoRA over safetensors"
    assert checkpoint.config == SMALL
    tensors = attention_pairs(model)
    for name, found in read(folder).items():
        expected = model.state_dict()[name].double()
        if name.endswith("c_attn.weight"):
            layer = int(name.split(".")[1])
            expected = expected + product(tensors, C_ATTN.format(layer), 4 / 2)
        assert torch.equal(found, expected.float())


@pytest.mark.parametrize(
    ("fields", "scales"),
    [
        ({}, [2.0, 2.0]),
        ({"use_rslora": True}, [4 / 2**0.5] * 2),
        ({"target_modules": r".*\.h\.\d\.attn\.c_attn"}, [2.0, 2.0]),
        ({"target_modules": ["attn.c_attn"], "layers_to_transform": [1]}, [0, 2.0]),
        ({"layers_to_transform": 0, "layers_pattern": "h"}, [2.0, 0]),
        ({"exclude_modules": "transformer.h.0.*"}, [0, 2.0]),
        ({"exclude_modules": ["h.1.attn.c_attn"]}, [2.0, 0]),
        ({"target_modules": [C_ATTN.format(1)]}, [0, 2.0]),
        ({"alpha_pattern": {"h.1.attn.c_attn": 1}}, [2.0, 0.5]),
        ({"r": 7, "rank_pattern": {"c_attn": 2}}, [2.0, 2.0]),
    ],
)
def test_the_configuration_says_which_matrices_and_how_much(
    tmp_path: Path, fields: dict[str, Any], scales: list[float]
) -> None:
    model = make_model(SMALL)
    tensors = attention_pairs(model)
    for layer, scale in enumerate(scales):
        if not scale:
            tensors = {name: each for name, each in tensors.items() if f"h.{layer}." not in name}
    write_peft(tmp_path / "peft", tensors, write_hub(tmp_path / "base", model), **fields)
    found = read(tmp_path / "peft")
    for layer, scale in enumerate(scales):
        expected = model.state_dict()[f"h.{layer}.attn.c_attn.weight"].double()
        if scale:
            expected = expected + product(tensors, C_ATTN.format(layer), scale)
        torch.testing.assert_close(found[f"h.{layer}.attn.c_attn.weight"], expected.float())


def test_modules_that_were_trained_whole_replace_the_models(tmp_path: Path) -> None:
    model, other = make_model(SMALL), make_model(SMALL, seed=1)
    state = hub_state(other)
    whole = {
        PREFIX + name: tensor
        for name, tensor in state.items()
        if ".mlp." in name or "ln_f" in name or name.endswith(".bias")
    }
    base = write_hub(tmp_path / "base", model)
    tensors = attention_pairs(model) | whole
    folder = write_peft(
        tmp_path / "peft", tensors, base, bias="all", modules_to_save=["mlp", "ln_f"]
    )
    found = read(folder)
    for name, tensor in found.items():
        if ".mlp." in name or "ln_f" in name or name.endswith(".bias"):
            assert torch.equal(tensor, other.state_dict()[name])
    assert torch.equal(found["wte.weight"], model.wte.weight)


@pytest.mark.parametrize("which", ["embedding", "head", "both", "table"])
def test_a_tied_head_becomes_one_of_its_own_if_only_one_end_was_trained(
    tmp_path: Path, which: str
) -> None:
    model = make_model(SMALL)
    generator = torch.Generator().manual_seed(3)
    wte, head = torch.randn(2, 24, 8, generator=generator)
    tensors: dict[str, Tensor] = {}
    modules: dict[str, Any] = {"target_modules": ["c_attn"]}
    if which in ("embedding", "both"):
        tensors[f"{PREFIX}transformer.wte.weight"] = wte
    if which in ("head", "both"):
        tensors[f"{PREFIX}lm_head.weight"] = head
    if which == "table":
        a, b = torch.randn(2, 24, generator=generator), torch.randn(8, 2, generator=generator)
        tensors[f"{PREFIX}transformer.wte.lora_embedding_A"] = a
        tensors[f"{PREFIX}transformer.wte.lora_embedding_B"] = b
        modules = {"target_modules": ["c_attn", "wte"]}
        wte = model.wte.weight + 2 * (b @ a).T
    else:
        modules["modules_to_save"] = {"embedding": ["wte"], "head": ["lm_head"]}.get(
            which, ["wte", "lm_head"]
        )
    base = write_hub(tmp_path / "base", model)
    folder = write_peft(tmp_path / "peft", attention_pairs(model) | tensors, base, **modules)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == replace(SMALL, tie_word_embeddings=False)
    found = read(folder)
    is_old = {"wte.weight": which == "head", "lm_head.weight": which in ("embedding", "table")}
    for name, new in (("wte.weight", wte), ("lm_head.weight", head)):
        expected = model.wte.weight if is_old[name] else new
        torch.testing.assert_close(found[name], expected.detach())


def test_embeddings_that_were_saved_since_tokens_were_added_stay_tied(tmp_path: Path) -> None:
    model = make_model(SMALL)
    wte = torch.randn(30, 8, generator=torch.Generator().manual_seed(3))
    tensors = attention_pairs(model) | {
        f"{PREFIX}transformer.wte.weight": wte,
        f"{PREFIX}lm_head.weight": wte.clone(),
    }
    folder = write_peft(tmp_path / "peft", tensors, write_hub(tmp_path / "base", model))
    ours, _ = load(folder, device="cpu")
    assert ours.config == replace(SMALL, n_vocab=30)
    assert torch.equal(ours.wte.weight, wte)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "IA3"),
        ("use_dora", True),
        ("lora_bias", True),
        ("trainable_token_indices", [3]),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa"),
        ("task_type", "SEQ_CLS"),
        ("bias", "some"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(
    tmp_path: Path, field: str, value: Any
) -> None:
    folder = adapted(tmp_path, make_model(SMALL), **{field: value})
    with pytest.raises(ConfigError, match=f"{field} is "):
        open_checkpoint(folder)


def test_an_unknown_field_is_named_in_a_warning(tmp_path: Path) -> None:
    folder = adapted(tmp_path, make_model(SMALL), new_thing=3, empty_thing=None)
    with pytest.warns(Gpt2KitWarning, match="unknown fields ignored: 'new_thing'$"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"r": 3}, CheckpointMismatchError, r"lora_A.weight is \[2, 8\], not \[3, 8\]"),
        ({"r": 0}, CheckpointFormatError, "r is 0, expected more than 0"),
        ({"r": True}, CheckpointFormatError, "r is True"),
        ({"r": 10**30}, CheckpointFormatError, "r is 1000"),
        ({"lora_alpha": float("inf")}, CheckpointFormatError, "lora_alpha is inf"),
        ({"lora_alpha": "4"}, CheckpointFormatError, "lora_alpha is '4'"),
        ({"target_modules": ["c_attn", "c_fc"]}, CheckpointMismatchError, "4 missing"),
        ({"target_modules": ["c_fc"]}, CheckpointMismatchError, "4 missing.*4 unexpected"),
        ({"target_modules": {"c_attn": 1}}, CheckpointFormatError, "expected a list of names"),
        ({"target_modules": "("}, CheckpointFormatError, "no regular expression"),
        ({"rank_pattern": [1]}, CheckpointFormatError, "expected an object from patterns"),
        ({"layers_to_transform": ["1"]}, CheckpointFormatError, "expected a list of layers"),
        ({"modules_to_save": ["ln_f"]}, CheckpointMismatchError, "2 missing"),
        ({"ensure_weight_tying": True, "modules_to_save": ["wte"]}, CheckpointError, "1 missing"),
        ({"base_model_name_or_path": None}, CheckpointNotFoundError, "no base_model_name_or_path"),
        ({"base_model_name_or_path": 3}, CheckpointFormatError, "expected a name or path"),
        ({"base_model_name_or_path": "gpt2"}, CheckpointNotFoundError, "gpt2kit download 124M"),
        ({"base_model_name_or_path": "/no/where"}, CheckpointNotFoundError, "merge .* --model"),
    ],
)
def test_what_does_not_fit_is_said(
    weights: Path, fields: dict[str, Any], error: type[Gpt2KitError], message: str
) -> None:
    folder = adapted(weights.parent, make_model(SMALL), **fields)
    with pytest.raises(error, match=message):
        open_checkpoint(folder)


def test_a_slow_regular_expression_ends_in_an_error(tmp_path: Path) -> None:
    folder = adapted(tmp_path, make_model(SMALL), target_modules=r"((?:.|\w)+)+\1")
    with pytest.raises(CheckpointFormatError, match="regular expressions take too long"):
        open_checkpoint(folder)


def test_tensors_of_another_model_are_listed(tmp_path: Path) -> None:
    model = make_model(SMALL)
    base = write_hub(tmp_path / "base", model)
    others = pair("model.layers.0.self_attn.q_proj", 8, 8, 2)
    folder = write_peft(tmp_path / "peft", attention_pairs(model) | others, base)
    with pytest.raises(CheckpointMismatchError, match="2 unexpected .*q_proj"):
        open_checkpoint(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="expected adapter_model"):
        open_checkpoint(folder)


def test_adapters_lie_over_adapters_but_not_over_themselves(tmp_path: Path) -> None:
    model = make_model(SMALL)
    low = adapted(tmp_path, model)
    high = write_peft(tmp_path / "high", attention_pairs(model), low)
    tensors = attention_pairs(model)
    expected = model.state_dict()["h.0.attn.c_attn.weight"].double()
    expected = expected + product(tensors, C_ATTN.format(0), 4.0)
    torch.testing.assert_close(read(high)["h.0.attn.c_attn.weight"], expected.float())
    write_peft(low, attention_pairs(model), high)
    with pytest.raises(CheckpointError, match="lie over themselves"):
        open_checkpoint(high)


def test_another_model_below_can_be_named_and_the_int8_weights_are_its_own(tmp_path: Path) -> None:
    """Kept int8 weights were told apart by the files of the adapters alone, not of their model."""
    folder = adapted(tmp_path, make_model(SMALL))
    other = write_hub(tmp_path / "other", make_model(SMALL, seed=1))
    with torch.no_grad():
        one, two, again = (
            load(folder, device="cpu", quantize="int8", base=base)[0](IDS)
            for base in (None, other, None)
        )
        plain = load(folder, device="cpu", base=other)[0](IDS)
    assert torch.equal(one, again)
    assert not torch.allclose(one, two, atol=0.1)
    torch.testing.assert_close(two, plain, atol=0.2, rtol=0.1)
    with pytest.raises(ConfigError, match="is a model, and not adapters"):
        open_checkpoint(other, base=other)


def test_the_vocabulary_is_the_folders_own_or_else_the_models(
    weights: Path, tiny_model: GPT2
) -> None:
    folder = adapted(weights, tiny_model)
    add_vocabulary(weights / "base")
    _, tokenizer = load("peft", device="cpu")
    assert tokenizer is not None
    assert [model.name for model in store.installed() if not model.is_bundled] == ["base", "peft"]
    assert open_checkpoint(folder).dtype == torch.float32


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    folder = adapted(tmp_path, make_model(SMALL))
    generator = random.Random(1)
    outcomes = {"read": 0, "refused": 0}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content = (folder / name).read_bytes()
        head = min(len(content), 1200)
        for _ in range(150):
            (folder / name).write_bytes(mutate(content[:head], generator) + content[head:])
            try:
                read(folder)
                outcomes["read"] += 1
            except (Gpt2KitError, Gpt2KitWarning):
                outcomes["refused"] += 1
        (folder / name).write_bytes(content)
    assert min(outcomes.values()) > 10


# --- the judge ------------------------------------------------------------------------------------

_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "every matrix": {"target_modules": "all-linear", "r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "target_modules": ["c_attn", "c_fc"],
        "rank_pattern": {"c_fc": 2, "h.1.attn.c_attn": 3},
        "alpha_pattern": {"c_attn": 9},
    },
    "layers": {"target_modules": ["c_proj"], "layers_to_transform": [1], "bias": "lora_only"},
    "tables": {"target_modules": ["wte", "wpe", "lm_head"]},
    "whole": {"modules_to_save": ["wte", "lm_head", "mlp"], "bias": "all"},
    "head": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_computes_the_same_logits(tmp_path: Path, case: str, tied: bool) -> None:
    peft: Any = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = write_hub(
        tmp_path / "base",
        make_model(replace(SMALL, tie_word_embeddings=tied)),
        tie_word_embeddings=tied,
    )
    settings = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **_CASES[case])
    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        transformers.GPT2LMHeadModel.from_pretrained(base), settings
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        theirs.save_pretrained(tmp_path / "peft")
        ours, _ = load(tmp_path / "peft", device="cpu")
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-5, rtol=0)
    content = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == str(base)
