"""Steering: what is typed, where vectors come from, and that a bias does what a hook would do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from features_builders import matrices, write_sae
from torch import Tensor

from gpt2kit import generate
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.generation.text import complete
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.features import activations, load_sae
from gpt2kit.inspection.running import editing, run
from gpt2kit.inspection.splicing import splice
from gpt2kit.inspection.steering import (
    Recipe,
    Steering,
    bias_of,
    check_texts,
    edit_of,
    from_feature,
    from_prompts,
    from_texts,
    parse,
    steer,
    steered,
    steering_of,
    strength_of,
)
from gpt2kit.model import GPT2
from gpt2kit.quantize import Int8GPT2, quantized_state
from gpt2kit.tokenizers import BPETokenizer

HOOKS = [
    *("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid"),
    *("blocks.1.hook_resid_post", "blocks.0.hook_attn_out", "blocks.1.hook_mlp_out"),
    *("blocks.1.attn.hook_z", "blocks.0.mlp.hook_post"),
]
P6 = "blocks.6.hook_resid_pre"
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])


def everywhere(hook: str, width: int = 16, size: float = 1.0) -> Steering:
    generator = torch.Generator().manual_seed(1)
    return Steering("v", hook, size * torch.randn(1, width, generator=generator), True)


# --- what is typed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("Love - Hate @6 *5", ("prompts", ("Love", "Hate"), P6, 5.0)),
        (" Love -  Hate@6*-1.5", ("prompts", (" Love", " Hate"), P6, -1.5)),
        ("Love -  @6", ("prompts", ("Love", ""), P6, 1.0)),
        ("a@b - c*d @blocks.6.hook_resid_pre", ("prompts", ("a@b", "c*d"), P6, 1)),
        ("file:a.txt - file:b c.txt @6 *4", ("texts", ("a.txt", "b c.txt"), P6, 4)),
        ("sae:some/folder#123 *8", ("feature", ("some/folder", "123"), None, 8.0)),
        ("sae:x.pt#7 @6", ("feature", ("x.pt", "7"), P6, 1)),
    ],
)
def test_what_is_typed_is_taken_apart(typed: str, expected: tuple[Any, ...]) -> None:
    assert parse(typed) == Recipe(*expected)


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("Love @6 *5", "expected one ' - ' between two texts"),
        ("a - b - c @6", "expected one ' - ' between two texts"),
        ("Love - Hate", "there is no @LAYER"),
        ("Love - Hate @6 *1.2.3", "1.2.3 is not a number"),
        ("Love - Hate @6 *9999999", "is too large"),
        ("Love - Hate @6 *nan", "nan is not a number"),
        ("sae:folder#7 *strong", "strong is not a number"),
        ("sae:folder", "there is no #FEATURE"),
        ("sae:#12", "there is no #FEATURE"),
        ("sae:folder#x", "there is no #FEATURE"),
        ("file:a - b @2", "expected two files"),
        ("file: - file:b @2", "expected two files"),
        (" -  @2", "both texts are empty"),
        ("", "expected one ' - '"),
        ("a - b @blocks.1.ln1", "'blocks.1.ln1' is not supported here"),
    ],
)
def test_what_is_not_understood_is_one_line_that_says_why(typed: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(typed)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


# --- how it is added ------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_a_bias_does_what_a_hook_does(tiny_model: GPT2, hook: str) -> None:
    """A vector at every position is the same sum in a bias of the model as in an edit."""
    given = everywhere(hook, 64 if "hook_post" in hook and "mlp." in hook else 16)
    assert bias_of(tiny_model, given) is not None
    by_hook = run(tiny_model, IDS, [edit_of(tiny_model, given)]).logits
    before = run(tiny_model, IDS).logits
    with steered(tiny_model, [given]):
        by_bias = run(tiny_model, IDS).logits
    torch.testing.assert_close(by_bias, by_hook, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(by_bias, before, atol=1e-2)
    assert torch.equal(run(tiny_model, IDS).logits, before)  # and afterwards the model is as it was


@pytest.mark.parametrize("changes", [{"bias": False}, {"norm_first": False}, {"mlp": "none"}])
def test_models_of_other_kinds_are_steered_too(changes: dict[str, Any]) -> None:
    config = GPT2Config(n_vocab=64, n_ctx=16, n_embd=16, n_head=2, n_layer=2, **changes)
    model = make_model(config)
    given = everywhere("blocks.1.hook_resid_pre")
    assert (bias_of(model, given) is None) == (changes != {"mlp": "none"})
    by_hook = run(model, IDS, [edit_of(model, given)]).logits
    with steered(model, [given]):
        torch.testing.assert_close(model(IDS), by_hook, atol=1e-5, rtol=1e-5)


def test_the_native_step_keeps_writing_and_writes_what_a_hook_would(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    given = everywhere("blocks.1.hook_resid_pre", size=3.0)
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "seed": 1}
    plain = complete(tiny_model, small_bpe, "The cat", **options)[0]
    with editing(tiny_model, [edit_of(tiny_model, given)]):
        by_hook = complete(tiny_model, small_bpe, "The cat", **options)[0]
    with steered(tiny_model, [given]):
        assert not any(module._forward_hooks for module in tiny_model.modules())
        assert not any(module._forward_pre_hooks for module in tiny_model.modules())
        by_bias = complete(tiny_model, small_bpe, "The cat", **options)[0]
    assert by_bias.tokens == by_hook.tokens
    assert by_bias.tokens != plain.tokens
    assert complete(tiny_model, small_bpe, "The cat", **options)[0] == plain


def test_several_vectors_add_up_and_come_off_again(tiny_model: GPT2) -> None:
    before = tiny_model(IDS)
    one, other = everywhere("blocks.1.hook_resid_pre"), everywhere("blocks.0.hook_resid_post")
    double = Steering("2 v", one.hook, 2 * one.vectors, True)
    with steered(tiny_model, [double]):
        expected = tiny_model(IDS)
    with steered(tiny_model, [one, other]):
        torch.testing.assert_close(tiny_model(IDS), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(tiny_model(IDS), before)


def test_a_vector_that_does_not_fit_is_refused_and_nothing_stays_behind(tiny_model: GPT2) -> None:
    before = tiny_model(IDS)
    wrong = [everywhere("blocks.1.hook_resid_pre", 8), everywhere("blocks.5.hook_resid_pre")]
    for each, why in zip(wrong, ("has 8 numbers", "there is no block 5"), strict=True):
        with (
            pytest.raises(ConfigError, match=why),
            steered(tiny_model, [everywhere("blocks.0.hook_mlp_out"), each]),
        ):
            pass
    assert torch.equal(tiny_model(IDS), before)


@pytest.mark.parametrize("part", ["hook_resid_mid", "hook_mlp_out", "mlp.hook_post"])
def test_a_part_that_the_model_lacks_is_refused(part: str) -> None:
    """Without an MLP its output was taken for attention's, and its neurons were a crash."""
    model = make_model(GPT2Config(n_vocab=64, n_ctx=16, n_embd=16, n_head=2, n_layer=2, mlp="none"))
    given = everywhere(f"blocks.1.{part}", 64 if "post" in part else 16)
    with pytest.raises(ConfigError, match=f"{given.hook}: this model has no MLP"):
        steer(model, given)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_int8_model_is_steered_as_by_a_hook(tiny_model: GPT2, hook: str) -> None:
    model = Int8GPT2(tiny_model.config).eval()
    state = dict(quantized_state(tiny_model.config, tiny_model.get_parameter))
    model.load_state_dict(state, assign=True)
    given = everywhere(hook, 64 if "hook_post" in hook and "mlp." in hook else 16)
    by_hook = run(model, IDS, [edit_of(model, given)]).logits
    before = model(IDS)
    with steered(model, [given]):
        torch.testing.assert_close(model(IDS), by_hook, atol=2e-2, rtol=1e-2)
    assert not torch.allclose(by_hook, before, atol=0.1)
    assert torch.equal(model(IDS), before)


# --- where vectors come from ----------------------------------------------------------------------


def test_two_prompts_give_their_difference_at_each_position(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    """Turner et al. 2023: both after <|endoftext|>, spaces after the shorter one."""
    hook = "blocks.1.hook_resid_pre"
    given = from_prompts(tiny_model, small_bpe, "Love you", "H", at=hook, strength=5.0)
    start, space = small_bpe.stop_id, small_bpe.encode(" ")
    assert start is not None
    long, short = small_bpe.encode("Love you"), small_bpe.encode("H")
    both = torch.tensor([[start, *long], [start, *short, *space * (len(long) - len(short))]])
    found = activations(tiny_model, both, hook)
    torch.testing.assert_close(given.vectors, 5 * (found[0] - found[1]))
    assert len(given.vectors) == 1 + len(long)
    assert float(given.vectors[0].norm()) == 0
    assert not given.everywhere


def test_two_prompts_change_the_first_positions_of_the_text_only_while_it_is_read(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    """With the cache as without: the logits that follow are those of one pass over everything."""
    hook = "blocks.1.hook_resid_pre"
    given = from_prompts(tiny_model, small_bpe, "Love", "Hate", at=hook, strength=5.0)
    P = len(given.vectors)
    ids = torch.tensor([small_bpe.encode("The cat sat on the mat and then")])
    assert ids.shape[1] > P + 2
    stream = activations(tiny_model, ids, hook)
    stream[:, :P] += given.vectors
    expected = run(tiny_model, ids, [Edit(hook, value=stream)]).logits
    with steered(tiny_model, [given]):
        torch.testing.assert_close(tiny_model(ids), expected, atol=1e-5, rtol=1e-5)
        cache = tiny_model.new_cache()
        parts = [
            tiny_model(piece, cache=cache) for piece in (ids[:, :2], ids[:, 2:-1], ids[:, -1:])
        ]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, tiny_model(ids), atol=1e-2)


def test_two_sets_of_texts_give_the_difference_of_their_means(
    tiny_model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("happy day\n\nall is well here\n")
    (tmp_path / "b.txt").write_text("sad\n")
    typed = f"file:{tmp_path / 'a.txt'} - file:{tmp_path / 'b.txt'} @1 *4"
    given = steering_of(typed, tiny_model, small_bpe)
    means = []
    for texts in (["happy day", "all is well here"], ["sad"]):
        own = []
        for text in texts:
            ids = torch.tensor([[small_bpe.stop_id or 0, *small_bpe.encode(text)]])
            own.append(activations(tiny_model, ids, "blocks.1.hook_resid_pre")[0, 1:].mean(0))
        means.append(torch.stack(own).mean(0))
    torch.testing.assert_close(given.vectors, 4 * (means[0] - means[1])[None])
    assert given.everywhere
    assert given.name == typed


def test_a_feature_gives_its_direction(
    tiny_model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    tensors = matrices(16, 24)
    folder = write_sae(tmp_path / "sae", tensors)
    given = steering_of(f"sae:{folder}#7 *8", tiny_model, small_bpe)
    torch.testing.assert_close(given.vectors, 8 * tensors["W_dec"][7][None])
    assert (given.hook, given.everywhere) == ("blocks.1.hook_resid_pre", True)
    with pytest.raises(ConfigError, match="there is no feature 24"):
        steering_of(f"sae:{folder}#24 *8", tiny_model, small_bpe)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.0.attn.hook_z"])
def test_a_feature_of_an_sae_that_normalizes_rises_by_the_strength_at_every_position(
    tiny_model: GPT2, tmp_path: Path, hook: str
) -> None:
    """Such a feature, as OpenAI's TopK has them, was refused: its size depends on the position."""
    plain = load_sae(write_sae(tmp_path / "sae"))
    sae = replace(plain, hook=hook, kind="topk", k=4, normalization="layer_norm")
    given = from_feature(sae, 3, strength=4.0)

    def raised(features: Tensor) -> Tensor:
        features[..., 3] += 4.0
        return features

    expected = splice(tiny_model, IDS, sae, raised)
    added, _ = strength_of(tiny_model, given, IDS)
    scale = activations(tiny_model, IDS, hook)[:, 1:].std(-1).mean()
    assert added == pytest.approx(4 * float(sae.direction(3).norm() * scale), rel=1e-4)
    with steered(tiny_model, [given]):
        torch.testing.assert_close(tiny_model(IDS), expected, atol=2e-5, rtol=1e-5)
        cache = tiny_model.new_cache()
        parts = [tiny_model(piece, cache=cache) for piece in (IDS[:, :3], IDS[:, 3:])]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(expected, tiny_model(IDS), atol=1e-2)


def test_texts_that_give_no_vector_are_refused(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    at = "blocks.1.hook_resid_pre"
    with pytest.raises(ConfigError, match="one text at least on each side"):
        from_texts(tiny_model, small_bpe, ["a"], [], at=at)
    with pytest.raises(ConfigError, match="has no tokens"):
        from_texts(tiny_model, small_bpe, ["a"], [""], at=at)
    with pytest.raises(ConfigError, match="the model reads at most 32"):
        from_prompts(tiny_model, small_bpe, "word " * 40, "b", at=at)
    with pytest.raises(ConfigError, match="there is no block 9"):
        from_prompts(tiny_model, small_bpe, "a", "b", at="blocks.9.hook_resid_pre")


def test_the_strength_is_that_beside_the_stream_without_its_first_position(
    tiny_model: GPT2,
) -> None:
    given = everywhere("blocks.1.hook_resid_pre", size=3.0)
    added, stream = strength_of(tiny_model, given, IDS)
    assert added == pytest.approx(float(given.vectors.norm()))
    found = activations(tiny_model, IDS, given.hook)[:, 1:]
    assert stream == pytest.approx(float(found.norm(dim=-1).mean()), rel=1e-5)


def test_prompts_must_have_the_positions_that_a_vector_is_for() -> None:
    first = Steering("Love - Hate", "blocks.1.hook_resid_pre", torch.ones(4, 16), False)
    how: dict[str, Any] = {"max_tokens": 5, "overflow": "slide", "n_ctx": 32}
    check_texts([first], [4, 9], **how)
    with pytest.raises(ConfigError, match="first 4 positions, and the prompt has only 3 tokens"):
        check_texts([first], [9, 3], **how)
    with pytest.raises(ConfigError, match="when it outgrows the model's 32 tokens"):
        check_texts([first], [28], **how)
    check_texts([first], [28], **{**how, "overflow": "stop"})
    check_texts([everywhere("blocks.1.hook_resid_pre")], [1], **{**how, "max_tokens": 100})


def test_a_text_is_steered_in_python(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    given = steering_of("Love - Hate @1 *20", tiny_model, small_bpe)
    plain = generate(tiny_model, small_bpe, "The cat sat on it", temperature=0, max_tokens=8)
    with steered(tiny_model, [given]):
        other = generate(tiny_model, small_bpe, "The cat sat on it", temperature=0, max_tokens=8)
    assert other != plain


def test_a_model_stays_steered_if_nobody_keeps_what_ends_it(tiny_model: GPT2) -> None:
    """Python collected the edit, and with it the vector for the first positions."""
    before = tiny_model(IDS)
    first = Steering("v", "blocks.1.hook_resid_pre", torch.ones(3, 16).cumsum(1), False)
    steer(tiny_model, first)
    assert not torch.allclose(tiny_model(IDS), before, atol=1e-3)
    once = tiny_model(IDS)
    steer(tiny_model, first)()  # a second time, ended at once
    assert torch.equal(tiny_model(IDS), once)
