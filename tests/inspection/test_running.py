"""Edits and records: equal to the NumPy reference, order-free, the same with a cache."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from test_model import VARIANTS, weights_of

import gpt2kit
from gpt2kit import reference
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import Edit, Pair, PatchOptions, editing, patch, run, trace
from gpt2kit.inspection.places import PLACES, find_place, present_in
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2
from gpt2kit.quantize import Int8GPT2, quantized_state
from gpt2kit.tokenizers import BPETokenizer

IDS = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(1))
CLEAN = torch.tensor([[1, 2, 3]])
OTHERS = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(2))


def names_in(model: GPT2) -> list[str]:
    """Return every place of every layer of a model."""
    return [
        f"layers.{layer}.{place.name}" if place.in_layer else place.name
        for place in present_in(model.config)
        for layer in (range(model.config.n_layer) if place.in_layer else [0])
    ]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_writing_an_activation_back_changes_no_bit(
    tiny_config: GPT2Config, variant: dict[str, Any]
) -> None:
    model = make_model(replace(tiny_config, **variant))
    names = names_in(model)
    plain = run(model, IDS, record=names)
    assert torch.equal(plain.logits, model(IDS))
    every = [Edit(name, value=plain[name]) for name in names]
    assert torch.equal(run(model, IDS, every).logits, plain.logits)
    same = [Edit(name, value=lambda x: x) for name in names]
    assert torch.equal(run(model, IDS, same).logits, plain.logits)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_stream_of_another_run_gives_its_logits(
    tiny_config: GPT2Config, variant: dict[str, Any]
) -> None:
    model = make_model(replace(tiny_config, **variant))
    wanted = [
        name for name in ("before", "after", "final", "normalized") if name in places_of(model)
    ]
    other = run(model, OTHERS, record=wanted)
    for name in wanted:
        layers = range(model.config.n_layer) if find_place(name).place.in_layer else [None]
        for layer in layers:
            full = name if layer is None else f"layers.{layer}.{name}"
            found = run(model, IDS, [Edit(full, value=other[full])])
            assert torch.equal(found.logits, other.logits), full


def places_of(model: GPT2) -> set[str]:
    return {place.name for place in present_in(model.config)}


def test_heads_and_positions_are_edited_as_numpy_would_compute_it() -> None:
    """The reference, in float64, with one head of one layer zeroed at one position."""
    config = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
    model = make_model(config, dtype=torch.float64)
    notes: reference.Notes = {}
    weights = weights_of(model)
    reference.logits(config, weights, IDS[0].tolist(), notes)
    z = notes["0.head_outputs"].copy()  # (H, T, D)
    z[1, 4] = 0
    joined = np.concatenate(list(z), axis=-1)  # (T, C)
    c_proj = np.asarray(weights["h.0.attn.c_proj.weight"])
    update = joined @ c_proj.T + np.asarray(weights["h.0.attn.c_proj.bias"])
    found = run(
        model,
        IDS[:1],
        [Edit("blocks.0.attn.hook_z", head=1, position=-5, value=0)],
        ["attn_out", "resid_mid"],
    )
    np.testing.assert_allclose(found["attn_out", 0][0], update, rtol=0, atol=1e-12)
    middle = notes["0.before"] + update
    np.testing.assert_allclose(found["resid_mid"][0], middle, rtol=0, atol=1e-12)


def test_edits_may_be_given_in_any_order(tiny_model: GPT2) -> None:
    edits = [
        Edit("blocks.1.attn.hook_z", head=1, value=0.5),
        Edit("blocks.0.hook_resid_pre", position=[1, 3], value=lambda x: x * 2),
        Edit("blocks.0.attn.hook_pattern", head=0, value=0.1),
        Edit("blocks.1.attn.hook_z", head=1, position=2, value=1.0, add=True),
    ]
    expected = run(tiny_model, IDS, edits).logits
    for order in itertools.permutations(edits):
        assert torch.equal(run(tiny_model, IDS, order).logits, expected)


def test_an_edit_of_one_row_is_what_that_row_gets_alone(tiny_model: GPT2) -> None:
    edits = [
        Edit("z", head=0, position=3, row=0, value=2.0),
        Edit("blocks.1.hook_mlp_out", row=1, value=0),
    ]
    together = run(tiny_model, IDS, edits).logits
    for row, edit in enumerate(edits):
        alone = run(tiny_model, IDS[row : row + 1], [replace(edit, row=None)]).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


EDITS: dict[str, list[Edit]] = {
    "head": [Edit("z", head=1, position=[2, 5, 7], value=0)],
    "stream": [Edit("resid_mid", position=6, value=torch.arange(16.0) / 10, add=True)],
    "keys": [Edit("blocks.0.attn.hook_k", position=1, value=lambda x: -x)],
    "pattern": [Edit("pattern", head=0, key=0, value=0)],
    "scores": [Edit("attn_scores", position=slice(4, None), key=3, value=-torch.inf)],
    "norm": [Edit("ln1.hook_scale", position=slice(2, 6), value=3.0)],
    "first positions": [
        Edit("resid_pre", position=slice(0, 3), value=torch.eye(3, 16) * 3, add=True)
    ],
    "whole": [Edit("blocks.1.hook_attn_out", value=torch.ones(2, 9, 16))],
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_a_text_read_in_pieces_is_edited_as_if_it_were_read_at_once(
    tiny_model: GPT2, edits: list[Edit]
) -> None:
    expected = run(tiny_model, IDS, edits).logits
    assert not torch.allclose(expected, run(tiny_model, IDS).logits, atol=1e-3)
    cache = tiny_model.new_cache(2)
    pieces = [
        run(tiny_model, piece, edits, cache=cache).logits
        for piece in torch.split(IDS, [4, 1, 4], dim=1)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=0, atol=2e-5)


def test_generating_with_edits_gives_the_tokens_of_repeated_runs(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    """The native step, which knows no edits, must not read meanwhile, nor a stale cache after."""
    edits = [
        Edit("z", head=0, value=0),
        Edit("resid_pre", position=slice(14, 15), value=1.0, add=True),
    ]
    prompt = [72, 256, 10, 1, 300]
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(run(tiny_model, torch.tensor([ids]), edits).logits[0, -1].argmax()))
    text = small_bpe.decode(prompt)
    assert small_bpe.encode(text) == prompt
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    plain = gpt2kit.generate(tiny_model, small_bpe, text, **options)
    with editing(tiny_model, edits):
        edited = gpt2kit.generate(tiny_model, small_bpe, text, **options)
    assert edited == small_bpe.decode(ids[5:])
    assert edited != plain == gpt2kit.generate(tiny_model, small_bpe, text, **options)


def test_gradients_of_what_is_recorded_are_those_of_small_changes(tiny_config: GPT2Config) -> None:
    model = make_model(tiny_config, dtype=torch.float64)
    names = names_in(model)
    found = run(model, IDS[:1], record=names, gradients=True)
    metric = found.logits[0, -1, 7]
    gradients = found.gradients(metric)
    for name in names:
        gradient = gradients[name]
        towards = torch.randn(
            gradient.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        if "scores" in name:
            towards = towards.masked_fill(found[name].isinf(), 0)
        changed = [
            run(model, IDS[:1], [Edit(name, value=sign * 1e-5 * towards, add=True)]).logits[
                0, -1, 7
            ]
            for sign in (1, -1)
        ]
        slope = float(changed[0] - changed[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * towards).nansum()), abs=1e-6, rel=1e-5), (
            name
        )


def test_only_what_is_asked_for_is_recorded_and_takes_memory(tiny_model: GPT2) -> None:
    found = run(tiny_model, IDS, record=["blocks.1.attn.hook_q", "resid_post"])
    assert found.names == [
        "blocks.1.attn.hook_q", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post",
    ]  # fmt: skip
    for x in found.activations.values():
        assert x.untyped_storage().nbytes() == x.numel() * x.itemsize
    assert not any(module._forward_hooks for module in tiny_model.modules())
    assert not any(module._forward_pre_hooks for module in tiny_model.modules())
    assert not any("attend" in vars(module) for module in tiny_model.modules())


def test_both_names_give_one_activation_each_in_its_own_shape(tiny_model: GPT2) -> None:
    found = run(tiny_model, IDS, record=["q", "attn.hook_result", "hook_resid_pre"])
    assert found["blocks.1.attn.hook_q"].shape == (2, 9, 2, 8)
    assert found["layers.1.queries"].shape == (2, 2, 9, 8)
    assert torch.equal(found["q", 1].transpose(1, 2), found["queries", 1])
    assert found["head_updates", 0].shape == (2, 2, 9, 16)
    seen = trace(tiny_model, IDS)
    assert torch.equal(found["before", 1], seen.layers[1].before)
    z = torch.randn(2, 9, 2, 8)
    by_theirs = run(tiny_model, IDS, [Edit("blocks.0.attn.hook_z", value=z)])
    by_ours = run(tiny_model, IDS, [Edit("layers.0.head_outputs", value=z.transpose(1, 2))])
    assert torch.equal(by_theirs.logits, by_ours.logits)


def test_the_mean_is_over_the_rows_at_each_position(tiny_model: GPT2) -> None:
    plain = run(tiny_model, IDS, record=["z"])
    found = run(tiny_model, IDS, [Edit("blocks.0.attn.hook_z", head=1, value="mean")], ["z"])
    mean = plain["z", 0][:, :, 1].mean(dim=0, keepdim=True).expand(2, 9, 8)
    torch.testing.assert_close(found["z", 0][:, :, 1], mean)
    assert torch.equal(found["z", 0][:, :, 0], plain["z", 0][:, :, 0])
    with pytest.raises(ConfigError, match="a mean over the rows of the batch needs several rows"):
        run(tiny_model, IDS[:1], [Edit("z", value="mean")])


def test_transformerlens_zero_of_z_is_the_value_of_the_norms_bias(tiny_model: GPT2) -> None:
    weights = tiny_model.state_dict()
    values = weights["h.1.attn.c_attn.weight"][32:] @ weights["h.1.ln_1.bias"]
    values += weights["h.1.attn.c_attn.bias"][32:]
    found = run(tiny_model, IDS, [Edit("blocks.1.attn.hook_z", head=1, value="zero-tl")], ["z"])
    torch.testing.assert_close(found["z", 1][0, 3, 1], values.view(2, 8)[1])


def test_a_trace_shows_the_activations_after_edits(tiny_model: GPT2) -> None:
    edits = [Edit("blocks.0.attn.hook_pattern", head=1, value=0), Edit("z", head=0, value=1.0)]
    seen = trace(tiny_model, IDS, edits=edits)
    assert not seen.layers[0].weights[:, 1].any()
    assert (seen.layers[1].head_outputs[:, 0] == 1).all()
    assert torch.equal(seen.logits, run(tiny_model, IDS, edits).logits)


def test_edits_that_contradict_each_other_are_refused(tiny_model: GPT2) -> None:
    edits = [Edit("blocks.0.attn.hook_z", head=1, value=0), Edit("z", position=3, value=1)]
    with pytest.raises(ConfigError, match="two edits set the same numbers"):
        run(tiny_model, IDS, edits)
    run(tiny_model, IDS, [edits[0], Edit("layers.0.head_outputs", head=0, value=1)])


WORD: Any = "nil"
BAD: dict[str, tuple[Any, str]] = {
    "unknown": (lambda: Edit("blocks.0.hook_residpre", value=0), "did you mean .*hook_resid_pre"),
    "no such layer": (lambda: Edit("blocks.2.hook_resid_pre", value=0), "no layer 2, expected 0"),
    "no such head": (lambda: Edit("z", head=2, value=0), "no head 2, expected 0 to 1"),
    "no such position": (lambda: Edit("z", position=9, value=0), "no position 9, expected 0 to 8"),
    "no heads there": (lambda: Edit("resid_pre", head=0, value=0), "has no head; its shape is"),
    "shape": (
        lambda: Edit("z", head=0, value=torch.ones(3)),
        r"expected \(B, T, D\) = \(2, 9, 8\)",
    ),
    "word": (lambda: Edit("z", value=WORD), "expected a number, a tensor, a function"),
}


@pytest.mark.parametrize(("edit", "message"), BAD.values(), ids=BAD)
def test_an_edit_that_cannot_be_made_is_refused_in_one_line(
    tiny_model: GPT2, edit: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(tiny_model, IDS, [edit()])
    assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks for module in tiny_model.modules())


def test_places_that_a_variant_lacks_are_refused_by_name(tiny_config: GPT2Config) -> None:
    model = make_model(replace(tiny_config, mlp="none", positions="none", norm="none"))
    for name, lack in {
        "mlp_out": "this model has no MLP",
        "hook_pos_embed": "this model has no position embeddings",
        "ln1.hook_scale": "this model does not normalize",
    }.items():
        with pytest.raises(ConfigError, match=lack):
            run(model, IDS, record=[name])


def test_rows_and_positions_from_the_end_are_refused_while_generating(tiny_model: GPT2) -> None:
    for edit in (
        Edit("z", row=0, value=0),
        Edit("z", value="mean"),
        Edit("z", position=-1, value=0),
        Edit("z", position=slice(-2, None), value=0),
    ):
        with pytest.raises(ConfigError, match="while texts are generated|from the beginning"):
            editing(tiny_model, [edit]).__enter__()


def test_every_name_of_a_place_is_its_own() -> None:
    names = [name for place in PLACES for name in (place.name, place.lens_name) if name]
    assert len(set(names)) == len(names)
    for place in PLACES:
        assert find_place(place.name).place is place
        theirs = f"blocks.3.{place.lens_name}" if place.in_layer else place.lens_name
        if place.lens_name:
            assert find_place(theirs).place is place


def test_texts_of_unequal_length_are_edited_at_their_own_positions(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    edits = [Edit("resid_pre", position=slice(7, 9), value=torch.eye(16)[3] * 3, add=True)]
    prompts = ["the the", "and of", "in the end of"]
    assert len({len(small_bpe.encode(prompt)) for prompt in prompts}) == 3
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with editing(tiny_model, edits):
        alone = [gpt2kit.generate(tiny_model, small_bpe, prompt, **options) for prompt in prompts]
        together = gpt2kit.complete(tiny_model, small_bpe, prompts, **options)
    assert [each.text for each in together] == alone
    plain = [gpt2kit.generate(tiny_model, small_bpe, prompt, **options) for prompt in prompts]
    assert alone != plain


def test_int8_and_adapted_models_are_edited_too(tiny_model: GPT2) -> None:
    int8 = Int8GPT2(tiny_model.config).eval()
    int8.load_state_dict(
        dict(quantized_state(tiny_model.config, tiny_model.state_dict().__getitem__)), assign=True
    )
    adapted = make_model(tiny_model.config)
    add_adapters(adapted, 2)
    for model in (int8, adapted):
        names = names_in(model)
        plain = run(model, IDS, record=names)
        same = [Edit(name, value=plain[name]) for name in names]
        assert torch.equal(run(model, IDS, same).logits, plain.logits)
        zeroed = run(model, IDS, [Edit("z", head=1, value=0)]).logits
        expected = run(tiny_model, IDS, [Edit("z", head=1, value=0)]).logits
        torch.testing.assert_close(zeroed, expected, rtol=0, atol=0.3)
        sweep = patch(model, Pair([1, 2, 3], [1, 5, 3], 7, 8), PatchOptions(at="z"))
        edit = Edit("blocks.1.attn.hook_z", head=1, value=run(model, CLEAN, record=["z"])["z", 1])
        logits = run(model, torch.tensor([[1, 5, 3]]), [edit]).logits[0, -1]
        difference = float(logits[7] - logits[8])
        assert sweep.cells[-1].logit_diff == pytest.approx(difference, abs=1e-4)
