"""Two models of one shape: their difference, what it does to a text, and what lies between them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, write_hub
from conftest import GOLDEN, make_model

from gpt2kit.checkpoints.load import build_model, open_checkpoint, write_checkpoint
from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError, CheckpointFormatError, ConfigError
from gpt2kit.evaluation.compare import blend, check_alike, text_difference, weight_differences
from gpt2kit.evaluation.perplexity import text_ids, token_surprisals
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

SHAPE = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2)


def checkpoint(folder: Path, seed: int, config: GPT2Config = SHAPE, **fields: Any) -> Checkpoint:
    return open_checkpoint(
        add_vocabulary(write_hub(folder, make_model(config, seed=seed), **fields))
    )


@pytest.fixture
def a(tmp_path: Path) -> Checkpoint:
    return checkpoint(tmp_path / "a", 1)


@pytest.fixture
def b(tmp_path: Path) -> Checkpoint:
    return checkpoint(tmp_path / "b", 2)


def test_differences_are_norms_over_all_tensors_of_a_part(a: Checkpoint, b: Checkpoint) -> None:
    found = {(part.part, part.layer): part for part in weight_differences(a, b)}
    ours, theirs = (make_model(SHAPE, seed=seed).state_dict() for seed in (1, 2))

    def expected(piece: str) -> tuple[float, float]:
        first = torch.cat(
            [tensor.double().flatten() for name, tensor in ours.items() if piece in name]
        )
        second = torch.cat(
            [tensor.double().flatten() for name, tensor in theirs.items() if piece in name]
        )
        return float(first.norm()), float((second - first).norm())

    for key, piece in {
        ("attention", 1): "h.1.attn.",
        ("MLP", 0): "h.0.mlp.",
        ("token embedding", None): "wte",
        ("all", None): "",
    }.items():
        norm, difference = expected(piece)
        assert found[key].norm == pytest.approx(norm)
        assert found[key].difference == pytest.approx(difference)
        assert found[key].relative == pytest.approx(difference / norm)
    assert list(found)[-1] == ("all", None)
    assert found["all", None].parameters == SHAPE.n_params


def test_a_model_differs_from_itself_by_nothing(a: Checkpoint) -> None:
    assert {part.relative for part in weight_differences(a, a)} == {0.0}


def test_damaged_weights_are_named(a: Checkpoint, tmp_path: Path) -> None:
    model = make_model(SHAPE)
    with torch.no_grad():
        next(tensor for name, tensor in model.named_parameters() if name == "wpe.weight")[3, 3] = (
            float("inf")
        )
    damaged = open_checkpoint(add_vocabulary(write_hub(tmp_path / "damaged", model)))
    for one, other in ((a, damaged), (damaged, a)):
        with pytest.raises(
            CheckpointFormatError,
            match=r"/damaged/model.safetensors: wpe.weight holds 1 numbers that are",
        ):
            weight_differences(one, other)
        with pytest.raises(
            CheckpointFormatError, match=r"/damaged/model.safetensors: wpe.weight"
        ):  # a blend named the first, whichever it was
            build_model(blend(one, other, 0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": 1}, "n_layer 2 and 1"),
        ({"n_ctx": 16}, "n_ctx 32 and 16"),
        ({"n_embd": 8}, "n_embd 16 and 8"),
    ],
)
def test_models_of_other_shapes_are_refused(
    fields: dict[str, int], message: str, a: Checkpoint, tmp_path: Path
) -> None:
    shape = {"n_vocab": 512, "n_ctx": 32, "n_embd": 16, "n_head": 2, "n_layer": 2, **fields}
    with pytest.raises(CheckpointError, match=f"have different shapes: {message}"):
        other = GPT2Config(**shape)  # type: ignore[arg-type]
        check_alike(a, checkpoint(tmp_path / "other", 2, other))


def test_models_of_another_function_are_refused(a: Checkpoint, tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "other", 2, activation_function="relu")
    with pytest.raises(CheckpointError, match="activation_function gelu_new and relu"):
        blend(a, other, 0.5)


def test_other_vocabularies_are_refused_and_a_missing_one_is_not(
    a: Checkpoint, b: Checkpoint, tmp_path: Path
) -> None:
    assert isinstance(check_alike(a, b), BPETokenizer)
    for name in ("vocab.json", "merges.txt"):
        (b.folder / name).unlink()
    assert isinstance(check_alike(a, b), BPETokenizer)
    assert isinstance(check_alike(b, a), BPETokenizer)
    assert check_alike(b, b) is None
    CharTokenizer([chr(code) for code in range(33, 33 + 512)]).save(b.folder)
    with pytest.raises(CheckpointError, match="different vocabularies, of 512 and 512 tokens"):
        check_alike(a, b)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.6, 1.0])
def test_a_blend_has_that_share_of_the_second(alpha: float, a: Checkpoint, b: Checkpoint) -> None:
    blended = build_model(blend(a, b, alpha)).state_dict()
    ours, theirs = (make_model(SHAPE, seed=seed).state_dict() for seed in (1, 2))
    for name, tensor in blended.items():
        assert torch.allclose(
            tensor.double(),
            (1 - alpha) * ours[name].double() + alpha * theirs[name].double(),
            atol=1e-6,
        )
        if alpha in (0.0, 1.0):
            assert torch.equal(tensor, (ours, theirs)[int(alpha)][name])


def test_what_is_measured_of_a_blend_is_what_is_written(tmp_path: Path) -> None:
    half = open_checkpoint(GOLDEN / "hf/safetensors-bf16")
    blended = blend(half, half, 0.3)
    assert {tensor.dtype for tensor in blended.tensors.values()} == {torch.bfloat16}
    write_checkpoint(tmp_path, blended, torch.bfloat16)
    written, measured = (
        build_model(open_checkpoint(tmp_path)).state_dict(),
        build_model(blended).state_dict(),
    )
    assert all(torch.equal(written[name], measured[name]) for name in measured)
    wide = blend(half, open_checkpoint(GOLDEN / "hf/safetensors"), 0.3)
    assert {tensor.dtype for tensor in wide.tensors.values()} == {torch.float32}


def test_a_head_that_is_not_the_embedding_it_should_be_is_found(
    a: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(GOLDEN / "hf/bin-prefix-head", tmp_path / "sound")
    sound = open_checkpoint(tmp_path / "sound")
    assert sound.tied_copy is not None
    build_model(blend(sound, sound, 0.5))
    shape = sound.tied_copy.shape
    broken = replace(sound, tied_copy=replace(sound.tied_copy, source=lambda _: torch.zeros(shape)))
    for one, other in ((sound, broken), (broken, sound)):
        with pytest.raises(CheckpointFormatError, match=r"lm_head.weight differs from wte.weight"):
            build_model(blend(one, other, 0.5))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(alpha: float, a: Checkpoint, b: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="expected from 0"):
        blend(a, b, alpha)


def test_the_tokens_that_changed_most_are_listed_in_context(
    a: Checkpoint, b: Checkpoint, small_bpe: BPETokenizer
) -> None:
    ids = text_ids(
        "Nel mezzo del cammin di nostra vita mi ritrovai per una selva oscura", small_bpe
    )
    first, second = (
        token_surprisals(build_model(checkpoint), ids, stride=16) for checkpoint in (a, b)
    )
    found = text_difference(first, second, ids, small_bpe, top=3)
    change = (second - first).tolist()
    assert (found.tokens, found.better, found.worse) == (
        len(ids) - 1,
        sum(c < 0 for c in change),
        sum(c > 0 for c in change),
    )
    assert found.change == pytest.approx(found.loss_b - found.loss_a)
    assert [token.change for token in found.changes] == sorted(change)[:3] + sorted(change)[:-4:-1]
    for token in found.changes:
        assert token.change == token.surprisal_b - token.surprisal_a == change[token.position - 1]
        assert token.token == small_bpe.decode([int(ids[token.position])])
        assert small_bpe.decode(ids[: token.position].tolist()).endswith(token.before)
        assert token.before


def test_a_token_that_did_not_change_is_not_listed(a: Checkpoint, small_bpe: BPETokenizer) -> None:
    ids = text_ids("Nel mezzo", small_bpe)
    nats = token_surprisals(build_model(a), ids, stride=16)
    found = text_difference(nats, nats, ids, small_bpe)
    assert (found.changes, found.better, found.worse, found.change) == ([], 0, 0, 0.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_a_blend_keep_the_sign_of_zero(
    alpha: float, a: Checkpoint, b: Checkpoint
) -> None:
    name = "h.0.attn.c_attn.bias"
    negative = StoredTensor(
        a.tensors[name].shape, torch.float32, lambda _: -torch.zeros(a.tensors[name].shape)
    )
    both = [replace(each, tensors={**each.tensors, name: negative}) for each in (a, b)]
    assert blend(both[0], both[1], alpha).tensors[name].read().signbit().all()
