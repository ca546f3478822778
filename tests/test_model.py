"""The model: equal to other programs, to the NumPy reference, and to itself with a cache."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, make_model

from gpt2kit import reference
from gpt2kit.checkpoints.load import build_model, open_checkpoint
from gpt2kit.checkpoints.names import is_transposed, openai_names
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ContextLengthError
from gpt2kit.model import GPT2

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "exact gelu": {"activation_function": "gelu"},
    "quick gelu": {"activation_function": "quick_gelu"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "tanh": {"activation_function": "tanh"},
    "narrow mlp": {"n_inner": 10},
    "epsilon": {"layer_norm_epsilon": 0.01},
    "untied": {"tie_word_embeddings": False},
    "unscaled": {"scale_attn_weights": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "no biases": {"bias": False, "qkv_bias": False},
    "no qkv bias": {"qkv_bias": False},
    "rmsnorm": {"norm": "rmsnorm"},
    "post-norm": {"norm_first": False},
    "swiglu": {"mlp": "swiglu"},
    "sinusoidal": {"positions": "sinusoidal"},
    "no blocks": {"n_layer": 0},
    "one head": {"n_head": 1},
    "attention only": {"mlp": "none"},
    "no norm": {"norm": "none"},
    "no residual": {"residual": False},
    "no positions": {"positions": "none"},
    "head bias": {"head_bias": True},
    "own head with bias": {"tie_word_embeddings": False, "head_bias": True},
    "no head": {"head": "none", "n_embd": 512, "n_layer": 1, "n_inner": 16},
}
# Variants together, as the steps from a bigram table to GPT-2 have them, and the first Transformer.
TOGETHER: dict[str, dict[str, Any]] = {
    "bigram table": {
        "n_layer": 0, "norm": "none", "positions": "none", "head": "none", "n_embd": 512,
    },
    "linear head": {"n_layer": 0, "norm": "none", "tie_word_embeddings": False, "head_bias": True},
    "one head of attention": {
        "n_head": 1, "mlp": "none", "norm": "none", "residual": False, "qkv_bias": False,
    },
    "several blocks without norms": {"norm": "none", "residual": False, "bias": False},
    "post-norm without residual": {"norm_first": False, "residual": False},
    "post-norm attention only": {"norm_first": False, "mlp": "none", "norm": "rmsnorm"},
    "post-norm without norm": {"norm_first": False, "norm": "none", "mlp": "swiglu"},
}  # fmt: skip
VARIANTS |= TOGETHER


def weights_of(model: GPT2) -> Mapping[str, Any]:
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_equals_the_numpy_reference(
    tiny_config: GPT2Config, fields: dict[str, Any]
) -> None:
    model = make_model(replace(tiny_config, **fields), dtype=torch.float64)
    ids = torch.randint(0, 512, (32,), generator=torch.Generator().manual_seed(1))
    expected = reference.logits(model.config, weights_of(model), ids.tolist())
    np.testing.assert_allclose(model(ids[None])[0].detach(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name", [name for name in VARIANTS if name not in ("gpt2", "upcast", *TOGETHER)]
)
def test_every_field_changes_the_function(tiny_config: GPT2Config, name: str) -> None:
    # If a field were ignored, the logits would not change. Upcasting changes only half precision.
    ids = torch.arange(32)[None]
    plain, other = make_model(tiny_config), make_model(replace(tiny_config, **VARIANTS[name]))
    own = other.state_dict()
    shared = {
        key: tensor
        for key, tensor in plain.state_dict().items()
        if key in own and own[key].shape == tensor.shape
    }
    other.load_state_dict(shared, strict=False)
    assert not torch.allclose(plain(ids), other(ids), atol=1e-6)


def test_upcast_attention_is_closer_to_float32_than_attention_in_bfloat16(
    tiny_config: GPT2Config,
) -> None:
    ids = torch.arange(32)[None]
    exact = make_model(tiny_config).bfloat16().float()
    distances = {}
    for upcast in (False, True):
        half = GPT2(replace(tiny_config, reorder_and_upcast_attn=upcast)).bfloat16().eval()
        half.load_state_dict(exact.state_dict())
        distances[upcast] = float((half(ids).float() - exact(ids)).abs().mean().detach())
    assert distances[True] != distances[False]
    assert distances[True] < 1.2 * distances[False]


def test_gradients_equal_tensorflows() -> None:
    folder = GOLDEN / "tf" / "micro-a"
    model = build_model(open_checkpoint(folder))
    answers = np.load(folder / "reference.npz")
    ids = torch.from_numpy(answers["tokens_ctx"]).long()
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    np.testing.assert_allclose(float(loss.detach()), float(answers["tf_loss_ctx"]), rtol=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = dict(model.named_parameters())
    gradients = np.load(folder / "gradients.npz")
    names = openai_names(model.config)
    assert set(gradients.files) == names.keys()
    for theirs, ours in names.items():
        expected = gradients[theirs][0].T if is_transposed(ours) else gradients[theirs]
        found = parameters[ours].grad
        assert found is not None
        error = np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected)
        assert error < 1e-5, f"{ours}: {error}"


# --- cache ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "post-norm",
        "sinusoidal",
        "scaled by layer",
        "no blocks",
        "no positions",
        "no head",
        *TOGETHER,
    ],
)
@pytest.mark.parametrize(
    "chunks", [[32], [1] * 32, [20, 12], [1, 30, 1], [7, 1, 1, 16, 7]], ids=str
)
def test_cached_and_uncached_logits_agree(
    tiny_config: GPT2Config, name: str, chunks: list[int]
) -> None:
    model = make_model(replace(tiny_config, **VARIANTS[name]))
    ids = torch.randint(0, 512, (3, 32), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache(3)
    with torch.no_grad():
        found = torch.cat([model(part, cache) for part in torch.split(ids, chunks, dim=1)], dim=1)
        expected = model(ids)
        largest = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * largest)
    assert cache.lengths == [32, 32, 32]


def test_rows_of_different_lengths_are_as_they_would_be_alone(tiny_model: GPT2) -> None:
    ids = torch.randint(0, 512, (3, 32), generator=torch.Generator().manual_seed(3))
    lengths = [9, 2, 20]
    cache = tiny_model.new_cache(3)
    with torch.no_grad():
        alone = tiny_model(ids)
        tiny_model(ids[:, :20], cache)
        cache.truncate(lengths)  # what was padding for the shorter rows is forgotten
        for n in (1, 3, 1):
            new = torch.stack(
                [row[length : length + n] for row, length in zip(ids, lengths, strict=True)]
            )
            found = tiny_model(new, cache)
            expected = torch.stack(
                [row[length : length + n] for row, length in zip(alone, lengths, strict=True)]
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            lengths = [length + n for length in lengths]
            assert cache.lengths == lengths


def test_kept_and_refilled_rows_go_on_where_they_were(tiny_model: GPT2) -> None:
    ids = torch.randint(0, 512, (3, 12), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        alone = tiny_model(ids)
        cache, other = tiny_model.new_cache(3), tiny_model.new_cache(1, capacity=5)
        tiny_model(ids[:, :11], cache)
        cache.keep([2, 0])
        torch.testing.assert_close(
            tiny_model(ids[[2, 0], 11:], cache), alone[[2, 0], 11:], rtol=0, atol=1e-5
        )
        tiny_model(ids[1:2, :5], other)
        cache.fill([0], other, 0)
        assert cache.lengths == [5, 12]
        new = torch.stack([ids[1, 5:6], ids[1, 5:6]])
        torch.testing.assert_close(tiny_model(new, cache)[0], alone[1, 5:6], rtol=0, atol=1e-5)


def test_a_full_cache_refuses_more(tiny_model: GPT2) -> None:
    cache = tiny_model.new_cache(capacity=4)
    tiny_model(torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(ContextLengthError, match="3 tokens are read and 2 more"):
        tiny_model(torch.zeros(1, 2, dtype=torch.long), cache)


def test_more_tokens_than_positions_are_refused(tiny_model: GPT2) -> None:
    with pytest.raises(ContextLengthError) as caught:
        tiny_model(torch.zeros(1, 33, dtype=torch.long))
    assert (caught.value.requested, caught.value.limit) == (33, 32)


def test_a_cache_cannot_be_truncated_to_more_than_it_holds(tiny_model: GPT2) -> None:
    with pytest.raises(ValueError, match="cannot truncate"):
        tiny_model.new_cache(2).truncate([0, 1])


# --- initialization and dropout -------------------------------------------------------------------


def test_weights_start_as_openai_started_them() -> None:
    model = GPT2(GPT2Config(n_vocab=400, n_ctx=400, n_embd=64, n_head=4, n_layer=8))
    model.init_weights(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "ln_" in name:
            assert (parameter == 1).all()
        else:
            expected = {"wpe.weight": 0.01}.get(
                name, 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            )
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.05)


def test_the_same_generator_gives_the_same_weights(tiny_config: GPT2Config) -> None:
    models = [GPT2(tiny_config) for _ in range(2)]
    for model in models:
        model.init_weights(torch.Generator().manual_seed(7))
    assert all(
        torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True)
    )


@pytest.mark.parametrize("field", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_each_dropout_acts_in_training_only(tiny_config: GPT2Config, field: str) -> None:
    off: dict[str, Any] = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    model = make_model(replace(tiny_config, **{**off, field: 0.5}))
    ids = torch.arange(32)[None]
    torch.manual_seed(0)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.allclose(model(ids), model(ids))


def test_a_model_can_be_pickled_for_other_processes(tiny_config: GPT2Config) -> None:
    # Activations were lambdas, which pickle refuses: no spawned process could be given a model.
    ids = torch.arange(32)[None]
    for name in ("gelu_new", "quick_gelu"):
        model = make_model(replace(tiny_config, activation_function=name))
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(ids), model(ids))
