"""What kind of head each head is: against NumPy in float64 and TransformerLens's head detector."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import Steering, head_scores, ov_copying, random_tokens, steered, trace
from gpt2kit.lora import add_adapters, merge_adapters
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

Array = np.ndarray[Any, np.dtype[Any]]


def small(**changes: Any) -> GPT2:
    """A model whose biases and gains are random, too."""
    shape = {"n_vocab": 40, "n_ctx": 24, "n_embd": 16, "n_head": 4, "n_layer": 2}
    model = make_model(GPT2Config(**{**shape, **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "ln" in name else 0.0, 0.4, generator=generator)
    return model


def patterns(model: GPT2, ids: torch.Tensor) -> Array:
    """Attention weights in float64 NumPy, from queries and keys: (layers, B, H, T, T)."""
    found = []
    for layer in trace(model, ids).layers:
        scores = np.einsum("bhqd,bhkd->bhqk", layer.queries.double(), layer.keys.double())
        scores = np.where(np.tril(np.ones(scores.shape[-2:])), scores * layer.scale, -np.inf)
        raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found.append(raised / raised.sum(axis=-1, keepdims=True))
    return np.stack(found)


def transformer_lens_patterns(row: list[int]) -> dict[str, Array]:
    """Where heads should look, as `transformer_lens.head_detector` 4.3.0 defines it, in loops."""
    T = len(row)
    found = {name: np.zeros((T, T)) for name in ("previous", "duplicate", "induction")}
    for q in range(T):
        for k in range(q + 1):
            found["previous"][q, k] = k == q - 1
            found["duplicate"][q, k] = k < q and row[k] == row[q]
            found["induction"][q, k] = k > 0 and row[k - 1] == row[q] and k - 1 < q
    return found


def test_weights_are_means_over_diagonals() -> None:
    model = small()
    tokens = random_tokens(model, length=9, sequences=3, seed=5)
    weights = patterns(model, tokens.ids)
    for each in head_scores(model, tokens):
        mine = weights[each.layer, :, each.head]
        for name, offset in (("previous", -1), ("duplicate", -9), ("induction", -8)):
            wanted = np.mean([np.diagonal(row, offset).mean() for row in mine])
            assert getattr(each, name) == pytest.approx(wanted, abs=1e-6), (each.name, name)


def test_shares_are_those_of_the_head_detector_of_transformer_lens() -> None:
    model = small()
    tokens = random_tokens(model, length=9, sequences=3, seed=5)
    weights = patterns(model, tokens.ids)
    for each in head_scores(model, tokens):
        for name in ("previous", "duplicate", "induction"):
            shares = []
            for number, row in enumerate(tokens.ids.tolist()):
                mine = weights[each.layer, number, each.head]
                shares.append((mine * transformer_lens_patterns(row)[name]).sum() / mine.sum())
            assert getattr(each, f"{name}_share") == pytest.approx(np.mean(shares), abs=1e-6)


def test_the_shares_of_a_text_are_measured_on_the_text() -> None:
    model, text = small(), [3, 7, 3, 7, 9, 3]
    weights = patterns(model, torch.tensor([text]))
    on_text = head_scores(model, text=text)
    for each, on_random in zip(on_text, head_scores(model), strict=True):
        mine = weights[each.layer, 0, each.head]
        wanted = (mine * transformer_lens_patterns(text)["induction"]).sum() / len(text)
        assert each.induction_share == pytest.approx(wanted, abs=1e-6)
        assert each.induction == on_random.induction


def ov_eigenvalues(model: GPT2, layer: int, head: int) -> Array:
    """Eigenvalues of the whole V x V circuit, made token by token in float64 NumPy."""
    tensors = {name: each.double().numpy() for name, each in model.state_dict().items()}
    size, centered = model.config.head_size, np.eye(16) - 1 / 16
    part = slice(head * size, (head + 1) * size)
    read = tensors["wte.weight"] @ centered * tensors[f"h.{layer}.ln_1.weight"]
    values = read @ tensors[f"h.{layer}.attn.c_attn.weight"][32:][part].T
    stream = values @ tensors[f"h.{layer}.attn.c_proj.weight"][:, part].T
    logits = stream @ centered * tensors["ln_f.weight"] @ tensors["wte.weight"].T
    return np.linalg.eigvals(logits - logits.mean(axis=1, keepdims=True))


def test_copying_is_that_of_the_whole_ov_circuit() -> None:
    model = small()
    for layer in range(2):
        for head in range(4):
            found = ov_eigenvalues(model, layer, head)
            wanted = found.sum().real / np.abs(found).sum()
            assert float(ov_copying(model)[layer, head]) == pytest.approx(wanted, abs=1e-6)


def test_a_head_that_writes_what_it_reads_copies() -> None:
    model = small(n_head=1, n_layer=1, norm="none", mlp="none", n_embd=40)
    with torch.no_grad():
        model.wte.weight.copy_(torch.eye(40))
        model.get_parameter("h.0.attn.c_attn.weight")[80:] = torch.eye(40)
        model.get_parameter("h.0.attn.c_proj.weight").copy_(torch.eye(40))
    assert float(ov_copying(model)) == pytest.approx(1.0)
    with torch.no_grad():
        model.get_parameter("h.0.attn.c_proj.weight").mul_(-1)
    assert float(ov_copying(model)) == pytest.approx(-1.0)


def test_adapters_count_as_they_do_when_they_are_merged() -> None:
    # Copying, and steering at the neurons of an MLP, were computed with the weights below them.
    config = GPT2Config(n_vocab=64, n_ctx=16, n_embd=16, n_head=2, n_layer=2)
    model = make_model(config)
    add_adapters(model, 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    torch.testing.assert_close(ov_copying(model), ov_copying(merged), atol=1e-4, rtol=1e-4)
    given = Steering("up", "blocks.0.mlp.hook_post", torch.linspace(-1, 1, 64)[None], True)
    found = []
    for each in (model, merged):
        with torch.no_grad(), steered(each, [given]):
            found.append(each(torch.arange(8)[None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_a_model_that_normalizes_after_adding_has_no_copying_score() -> None:
    model = small(norm_first=False)
    assert {each.copying for each in head_scores(model)} == {None}
    with pytest.raises(ConfigError, match="normalizes before each part"):
        ov_copying(model)


def test_random_tokens_come_twice_and_a_seed_always_gives_the_same() -> None:
    tokens = random_tokens(small(), length=5, sequences=2)
    assert tokens.ids.tolist() == [
        [31, 17, 24, 13, 11, 31, 17, 24, 13, 11],
        [14, 7, 37, 23, 21, 14, 7, 37, 23, 21],
    ]
    assert random_tokens(small(), length=5, sequences=2, seed=1).ids.tolist() != tokens.ids.tolist()


def test_the_end_marker_stands_first_and_nowhere_else(small_bpe: BPETokenizer) -> None:
    model = small(n_vocab=512)
    tokens = random_tokens(model, small_bpe, sequences=200, first="bos")
    assert set(tokens.ids[:, 0].tolist()) == {small_bpe.stop_id}
    assert small_bpe.stop_id not in tokens.ids[:, 1:]
    assert tokens.length == 11  # of 24 positions, one is the marker's
    assert tokens.ids.max() < small_bpe.n_vocab


def test_what_the_model_cannot_read_is_refused(small_bpe: BPETokenizer) -> None:
    model = small()
    with pytest.raises(ConfigError, match="length is 13, but this model reads 24 tokens at once"):
        random_tokens(model, length=13)
    with pytest.raises(ConfigError, match="sequences is 0, expected 1 or more"):
        random_tokens(model, sequences=0)
    with pytest.raises(ConfigError, match="no <|endoftext|>"):
        random_tokens(model, first="bos")
    with pytest.raises(ConfigError, match="25 tokens, expected from 2 to 24"):
        head_scores(model, text=[1] * 25)
    with pytest.raises(ConfigError, match="no layers"):
        head_scores(small(n_layer=0))
