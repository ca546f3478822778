"""Figures of a trace: surprisal, ranks, lens, attention, attribution, computed in another way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import make_model
from test_model import VARIANTS

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError, ContextLengthError, Gpt2KitWarning, TokenizerError
from gpt2kit.inspection import ExplainOptions, attribute, explain, lens, lens_logits, trace
from gpt2kit.model import GPT2

SEED = torch.Generator().manual_seed(5)
TEXT = torch.randint(
    0, 512, (75,), generator=SEED
).tolist()  # more than two windows of the tiny model


def test_surprisal_is_in_bits_and_ranks_count_from_one(tiny_model: GPT2) -> None:
    ids = TEXT[:20]
    found = explain(tiny_model, ids, ExplainOptions(top=3))
    probabilities = tiny_model(torch.tensor([ids]))[0].detach().double().softmax(dim=-1)  # (T, V)
    assert [each.token for each in found.expectations] == [*ids, None]
    assert found.expectations[0].surprisal is found.expectations[0].rank is None
    for position in range(1, 20):
        expected, row = found.expectations[position], probabilities[position - 1]
        assert expected.surprisal == pytest.approx(-math.log2(row[ids[position]]), abs=1e-4)
        assert expected.probability == pytest.approx(float(row[ids[position]]), rel=1e-4)
        order = row.argsort(descending=True).tolist()
        assert expected.rank == order.index(ids[position]) + 1
        assert [each.token for each in expected.alternatives] == order[:3]
        assert [each.probability for each in expected.alternatives] == pytest.approx(
            row[order[:3]].tolist(), rel=1e-4
        )
    assert found.expectations[20].alternatives[0].token == int(probabilities[19].argmax())
    bits = [each.surprisal for each in found.expectations[1:20]]
    assert found.surprisal == pytest.approx(sum(map(float, bits)) / 19)  # type: ignore[arg-type]


def test_ids_that_are_only_padding_are_never_expected(tiny_model: GPT2) -> None:
    found = explain(tiny_model, [1, 2, 3], ExplainOptions(top=100, lens=True), n_vocab=10)
    for expected in found.expectations[1:]:
        assert len(expected.alternatives) == 10
        assert sum(each.probability for each in expected.alternatives) == pytest.approx(1, rel=1e-5)
    assert found.lens is not None
    assert found.lens.tokens.max() < 10


def test_a_long_text_is_judged_whole_with_half_a_window_of_context(tiny_model: GPT2) -> None:
    done: list[tuple[int, int]] = []
    found = explain(
        tiny_model,
        TEXT,
        ExplainOptions(lens=True, head=(1, 0), strongest=4),
        progress=lambda *seen: done.append(seen),
    )
    assert done == [(32, 75), (48, 75), (64, 75), (75, 75)]
    assert len(found.expectations) == 76
    assert found.starts == (0,) * 32 + (16,) * 16 + (32,) * 16 + (48,) * 11
    assert found.attention is not None
    assert found.lens is not None
    assert found.strongest is not None
    for position in (5, 31, 32, 47, 48, 74):
        start = found.starts[position]
        seen = trace(
            tiny_model, torch.tensor([TEXT[start : position + 1]])
        )  # nothing after the position matters
        logits = seen.logits[0, -1].double()
        bits = -logits.log_softmax(dim=-1) / math.log(2)
        expected = found.expectations[position + 1]
        assert (
            expected.alternatives[0].token
            == int(logits.argmax())
            == int(found.lens.tokens[-1, position])
        )
        if expected.token is not None:
            assert expected.surprisal == pytest.approx(float(bits[expected.token]), abs=1e-4)
        weights = seen.layers[1].weights[0, 0, -1]
        assert found.attention[position] == pytest.approx(weights.tolist(), abs=1e-5)
        largest = weights.topk(4)
        assert found.strongest.weights[position, 1, 0].tolist() == pytest.approx(
            (largest.values.sqrt() * 255).tolist(), abs=0.6
        )
        assert found.strongest.distances[position, 1, 0, 0] == len(weights) - 1 - largest.indices[0]


@pytest.mark.parametrize(
    "n_ctx", [1, 2, 3, 6]
)  # of 6: the last window has 4 tokens, fewer than the entries to keep
def test_the_smallest_windows_judge_every_token_too(tiny_config: GPT2Config, n_ctx: int) -> None:
    found = explain(
        make_model(replace(tiny_config, n_ctx=n_ctx)),
        TEXT[:10],
        ExplainOptions(strongest=6, head=(0, 0), lens=True),
    )
    assert found.strongest is not None
    assert found.strongest.weights.shape == (10, 2, 2, 6)
    assert [each.token for each in found.expectations] == [*TEXT[:10], None]
    assert len(found.starts) == len(found.attention or ()) == 10


def test_a_long_text_can_be_cut_or_refused(tiny_model: GPT2) -> None:
    with pytest.warns(
        Gpt2KitWarning, match="75 tokens, but the model reads at most 32: the last 43 are left out"
    ):
        assert explain(tiny_model, TEXT, overflow="stop") == explain(tiny_model, TEXT[:32])
    with pytest.raises(ContextLengthError, match="75 tokens"):
        explain(tiny_model, TEXT, overflow="error")
    assert explain(tiny_model, TEXT[:32], overflow="error").surprisal


def test_what_cannot_be_explained_is_refused(tiny_model: GPT2, tiny_config: GPT2Config) -> None:
    with pytest.raises(ConfigError, match="no tokens"):
        explain(tiny_model, [])
    with pytest.raises(TokenizerError, match="id 512 is not"):
        explain(tiny_model, [1, 512])
    with pytest.raises(
        ConfigError, match="no head 2.0; expected a layer from 0 to 1 and a head from 0 to 1"
    ):
        explain(tiny_model, [1], ExplainOptions(head=(2, 0)))
    with pytest.raises(ConfigError, match="no layers"):
        explain(make_model(replace(tiny_config, n_layer=0)), [1], ExplainOptions(head=(0, 0)))


# --- logit lens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "untied", "rmsnorm", "post-norm", "no blocks"])
def test_the_lens_ends_in_the_logits_themselves(tiny_config: GPT2Config, name: str) -> None:
    model = make_model(replace(tiny_config, **VARIANTS[name]))
    seen = trace(model, torch.tensor([TEXT[:20]]))
    assert torch.equal(lens_logits(seen, model.config.n_layer), seen.logits)
    found = lens(seen)
    assert found.tokens.shape == found.probabilities.shape == (model.config.n_layer + 1, 20)
    assert torch.equal(found.tokens[-1], seen.logits[0].argmax(dim=-1))
    torch.testing.assert_close(found.probabilities[-1], seen.logits[0].softmax(dim=-1).amax(dim=-1))


def test_the_lens_at_a_layer_is_a_model_that_ends_there(tiny_model: GPT2) -> None:
    seen = trace(tiny_model, torch.tensor([TEXT[:20]]))
    shorter = make_model(replace(tiny_model.config, n_layer=1))
    shorter.load_state_dict(
        {
            name: tensor
            for name, tensor in tiny_model.state_dict().items()
            if not name.startswith("h.1.")
        }
    )
    torch.testing.assert_close(lens_logits(seen, 1), shorter(torch.tensor([TEXT[:20]])).detach())


# --- attribution ----------------------------------------------------------------------------------


# Models whose residual stream is not a sum, and what the message says of each.
NOT_SUMS = {
    "post-norm": "normalizes after adding",
    "post-norm attention only": "normalizes after adding",
    "no residual": "residual connections",
    "one head of attention": "residual connections",
    "several blocks without norms": "residual connections",
    "post-norm without residual": "residual connections",
}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in NOT_SUMS])
@pytest.mark.parametrize("against", [None, 9])
def test_contributions_add_up_to_what_they_explain(
    tiny_config: GPT2Config, variant: str, against: int | None
) -> None:
    model = make_model(replace(tiny_config, **VARIANTS[variant]))
    seen = trace(model, torch.tensor([TEXT[:20]]))
    for position in (0, 7, -1):
        found = attribute(seen, 3, against, position=position)
        logits = seen.logits[0, position]
        assert found.total == pytest.approx(
            float(logits[3] - (0 if against is None else logits[9])), abs=1e-5
        )
        assert sum(each.value for each in found.contributions) == pytest.approx(
            found.total, abs=1e-4
        )
        n = model.config.n_layer * (model.config.n_head + (model.config.mlp != "none"))
        assert sum(each.part in ("head", "mlp") for each in found.contributions) == n
        assert len({each.name for each in found.contributions}) == len(found.contributions)


@pytest.mark.parametrize("variant", NOT_SUMS)
def test_a_model_whose_residual_stream_is_not_a_sum_is_refused(
    tiny_config: GPT2Config, variant: str
) -> None:
    seen = trace(make_model(replace(tiny_config, **VARIANTS[variant])), torch.tensor([TEXT[:20]]))
    with pytest.raises(ConfigError, match=NOT_SUMS[variant]):
        attribute(seen, 3)


def test_a_contribution_is_what_the_part_would_take_along_if_it_were_cut_out(
    tiny_model: GPT2,
) -> None:
    seen = trace(tiny_model, torch.tensor([TEXT[:20]]))
    values = {each.name: each.value for each in attribute(seen, 3).contributions}
    final = seen.final[0, -1]
    scale = (final.var(correction=0) + 1e-5).sqrt()
    towards = (tiny_model.ln_f.get_parameter("weight") * tiny_model.head_weight[3]).detach()
    updates = {
        "MLP 1": seen.layers[1].mlp_update[0, -1],
        "token embedding": seen.token_embeddings[0, -1],
    }
    c_proj = tiny_model.get_submodule("h.0.attn.c_proj")
    updates["head 0.1"] = (
        seen.layers[0].head_outputs[0, 1, -1] @ c_proj.get_parameter("weight").detach()[:, 8:].T
    )
    for name, update in updates.items():
        without = final - update
        logits = [(x - x.mean()) / scale @ towards for x in (final, without)]
        assert values[name] == pytest.approx(float(logits[0] - logits[1]), abs=1e-5)


def test_the_next_token_is_explained_against_the_runner_up(tiny_model: GPT2) -> None:
    found = explain(tiny_model, TEXT[:20], ExplainOptions(attribution=True, top=2))
    best, runner_up = (each.token for each in found.expectations[-1].alternatives)
    assert found.attribution is not None
    assert (found.attribution.token, found.attribution.against) == (best, runner_up)
    named = explain(
        tiny_model, TEXT[:20], ExplainOptions(attribution=True, target=runner_up)
    ).attribution
    assert named is not None
    assert (named.token, named.against) == (runner_up, best)
    assert named.total == pytest.approx(-found.attribution.total)
    other = explain(tiny_model, TEXT[:20], ExplainOptions(attribution=True, against=7)).attribution
    assert other is not None
    assert (other.token, other.against) == (best, 7)


@pytest.mark.parametrize(
    ("change", "says"), [({"norm_first": False}, "normalizes before"), ({}, "float32")]
)
def test_attribution_is_refused_where_nothing_adds_up(
    tiny_config: GPT2Config, change: dict[str, Any], says: str
) -> None:
    model = make_model(
        replace(tiny_config, **change), dtype=torch.float32 if change else torch.bfloat16
    )
    with pytest.raises(ConfigError, match=says):
        explain(model, [1, 2], ExplainOptions(attribution=True))
