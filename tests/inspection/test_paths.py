"""Direct path patching: equal to runs in which everything between the two parts is frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import Edit, Pair, path_patch, run
from gpt2kit.inspection.paths import parse_receiver, parse_sender
from gpt2kit.model import GPT2

PAIR = Pair([5, 17, 300, 42, 8, 99], [5, 18, 300, 43, 8, 98], 30, 31)
CONFIG = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=3)


def frozen(model: GPT2, receiver: str, sender: str) -> float:
    """Compute one path the long way: the stream changes where the receiver reads, and only there.

    In a first run the sender's output is replaced and all heads and MLPs between it and the
    receiver keep their output; what the receiver then computes is put into a second run.
    """
    clean, corrupted = (torch.tensor([each]) for each in (PAIR.clean, PAIR.corrupted))
    names = ["z", "mlp_out", "hook_embed", "hook_pos_embed"]
    base, other = run(model, corrupted, record=names), run(model, clean, record=names)
    to, begin = parse_receiver(receiver), parse_sender(sender)
    edits = []
    for layer in range(3):
        for head in range(2):
            own = (layer, head) == (begin.layer, begin.head)
            source = other if own else base
            edits.append(Edit(f"blocks.{layer}.attn.hook_z", head=head, value=source["z", layer]))
        own = (layer, None) == (begin.layer, begin.head)
        if to.head is not None or to.layer is None or layer != to.layer:
            source = other if own else base
            edits.append(Edit(f"blocks.{layer}.hook_mlp_out", value=source["mlp_out", layer]))
    if begin.layer is None:
        edits += [Edit(name, value=other[name]) for name in ("hook_embed", "hook_pos_embed")]
    if to.layer is None:
        logits = run(model, corrupted, edits).logits
    else:
        place = "hook_mlp_out" if to.head is None else f"attn.hook_{to.input}"
        name = f"blocks.{to.layer}.{place}"
        seen = run(model, corrupted, edits, [name])[name]
        edit = Edit(name, value=seen, head=to.head)
        logits = run(model, corrupted, [edit]).logits
    return float(logits[0, -1, PAIR.answer] - logits[0, -1, PAIR.wrong])


@pytest.mark.parametrize("receiver", ["2.1.q", "2.0.k", "1.1.v", "mlp.1", "mlp.2", "logits"])
def test_a_path_changes_only_what_the_receiver_sees(receiver: str) -> None:
    model = make_model(CONFIG)
    found = path_patch(model, PAIR, parse_receiver(receiver))
    for path in found.paths:
        expected = frozen(model, receiver, path.sender.name)
        assert path.logit_diff == pytest.approx(expected, abs=2e-5), path.sender.name
    assert len({path.logit_diff for path in found.paths}) > 3


def test_all_senders_before_a_receiver_are_there_once() -> None:
    model = make_model(CONFIG)
    names = [path.sender.name for path in path_patch(model, PAIR, parse_receiver("mlp.1")).paths]
    assert names == ["embeddings", "0.0", "0.1", "mlp.0", "1.0", "1.1"]
    chosen = path_patch(model, PAIR, parse_receiver("logits"), [parse_sender("2.1")])
    assert [path.sender.name for path in chosen.paths] == ["2.1"]


def test_paths_that_are_not_there_are_refused(tiny_config: GPT2Config) -> None:
    model = make_model(CONFIG)
    with pytest.raises(ConfigError, match=r"'9' names no receiver; expected queries"):
        parse_receiver("9")
    with pytest.raises(ConfigError, match=r"'9\.9\.q' names no sender; expected a head"):
        parse_sender("9.9.q")
    with pytest.raises(ConfigError, match=r"2\.0 does not send to 1\.0\.q: it comes later"):
        path_patch(model, PAIR, parse_receiver("1.0.q"), [parse_sender("2.0")])
    with pytest.raises(ConfigError, match=r"3\.0\.q: the model has 3 layers of 2 heads"):
        path_patch(model, PAIR, parse_receiver("3.0.q"))
    with pytest.raises(ConfigError, match="residual stream is the sum"):
        path_patch(
            make_model(replace(tiny_config, norm_first=False)), PAIR, parse_receiver("logits")
        )
