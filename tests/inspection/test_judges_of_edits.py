"""Activations and edits beside TransformerLens and nnsight, in environments of their own.

GPT2KIT_JUDGES names a folder of virtual environments: tl43 with transformer-lens 4.3.0, tl39 with
3.9.0, nns with nnsight 0.8.1, each with torch and transformers.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, write_hub
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.inspection import Edit, run, trace
from gpt2kit.inspection.places import find_place, present_in

pytestmark = pytest.mark.slow

CONFIG = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
MODEL = make_model(CONFIG)  # its biases and gains are random, too
IDS = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(1))
EDITS: list[tuple[str, int | None, int, float]] = [
    ("blocks.0.hook_resid_pre", None, 3, 0.5),
    ("blocks.1.hook_resid_mid", None, 4, 0.25),
    ("blocks.1.hook_resid_post", None, 8, -1.0),
    ("blocks.0.hook_attn_out", None, 2, 0.0),
    ("blocks.1.hook_mlp_out", None, 8, 1.0),
    ("blocks.0.attn.hook_q", 1, 5, 2.0),
    ("blocks.0.attn.hook_k", 0, 1, 2.0),
    ("blocks.1.attn.hook_v", 1, 6, -2.0),
    ("blocks.1.attn.hook_z", 0, 8, 3.0),
    ("blocks.1.attn.hook_pattern", 1, 8, 0.125),
    ("blocks.0.mlp.hook_post", None, 7, 0.5),
]


def judged(judge: str, script: str, given: Any, folder: Path) -> Any:
    """Return what a script finds in the environment of a judge."""
    python = Path(os.environ.get("GPT2KIT_JUDGES", "")) / judge / "bin" / "python"
    if "GPT2KIT_JUDGES" not in os.environ or not python.exists():
        pytest.skip(f"set GPT2KIT_JUDGES to the folder of the environment {judge}")
    add_vocabulary(write_hub(folder / "model", MODEL))
    torch.save(given, folder / "given.pt")
    out, scripts = folder / "out.pt", Path(__file__).parent / "judges"
    done = subprocess.run(
        [python, scripts / script, folder / "model", folder / "given.pt", out],
        capture_output=True, text=True, cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


def centered(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(dim=-1, keepdim=True)


def test_every_activation_and_edit_equals_transformerlens_4(tmp_path: Path) -> None:
    theirs = judged("tl43", "hooked_transformer.py", (IDS, EDITS), tmp_path)
    names = [place.lens_name for place in present_in(CONFIG) if place.lens_name]
    ours = run(MODEL, IDS, record=names)
    torch.testing.assert_close(ours.logits, theirs["logits"], rtol=0, atol=1e-4)
    compared = set()
    for name in ours.names:
        if name in theirs["activations"]:
            other = theirs["activations"][name]
            compared.add(find_place(name).place.name)
            found = ours[name].masked_fill(ours[name].isinf(), 0)
            other = other.masked_fill(other < -1e30, 0).reshape(found.shape)
            torch.testing.assert_close(found, other, rtol=0, atol=1e-4, msg=name)
    assert len(compared) >= 18, compared
    for (name, head, position, value), logits in zip(EDITS, theirs["edited"], strict=True):
        edit = Edit(name, head=head, position=position, value=value)
        if name.endswith("resid_mid"):
            # The bridge changes only what the norm reads, and not the stream that the MLP adds to.
            # HookedTransformer changes both, as `run` does: see the next test. The edit makes all
            # numbers equal, and the norm makes 0 of them.
            edit = Edit("blocks.1.ln2.hook_normalized", position=position, value=0)
        found = run(MODEL, IDS, [edit]).logits
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-4, msg=name)


def test_folded_numbers_equal_transformerlens_3(tmp_path: Path) -> None:
    streams = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")
    edits = [("blocks.1.attn.hook_z", 1, 8, 0.0), *((name, None, 4, 0.25) for name in streams)]
    theirs = judged("tl39", "hooked_transformer.py", (IDS, edits), tmp_path)
    ours = trace(MODEL, IDS).as_transformer_lens()
    torch.testing.assert_close(ours["logits"], theirs["logits"], rtol=0, atol=1e-4)
    activations = theirs["activations"]
    activations = {k: x for k, x in activations.items() if not k.startswith("unembed.")}
    assert activations.keys() == ours.keys() - {"logits"}
    for name, other in activations.items():
        found = ours[name].masked_fill(ours[name].isinf(), 0)
        other = other.masked_fill(other < -1e4, 0)
        torch.testing.assert_close(found, other, rtol=0, atol=1e-4, msg=name)
    edit = Edit("blocks.1.attn.hook_z", head=1, position=8, value="zero-tl")
    zeroed = centered(run(MODEL, IDS, [edit]).logits)
    torch.testing.assert_close(zeroed, theirs["edited"][0], rtol=0, atol=1e-4)
    for (name, _, position, value), logits in zip(edits[1:], theirs["edited"][1:], strict=True):
        found = centered(run(MODEL, IDS, [Edit(name, position=position, value=value)]).logits)
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-4, msg=name)


def test_interventions_equal_nnsight(tmp_path: Path) -> None:
    value = torch.linspace(-1, 1, 16)
    theirs = judged("nns", "interleaved.py", (IDS, value), tmp_path)
    edits = [
        Edit("blocks.1.attn.hook_z", head=0, position=3, value=0),
        Edit("blocks.0.hook_mlp_out", position=2, value=value),
    ]
    for edit, logits in zip(edits, theirs, strict=True):
        torch.testing.assert_close(run(MODEL, IDS, [edit]).logits, logits, rtol=0, atol=1e-4)
