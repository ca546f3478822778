"""GPT-2 at its published sizes with random weights: exact conversions, and the memory to load them.

pytest -m slow tests/test_full_size.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2kit.checkpoints.load import build_model, open_checkpoint, write_model
from gpt2kit.config import SIZES

pytestmark = pytest.mark.slow


def write_random(folder: Path, size: str, dtype: torch.dtype = torch.float32) -> Path:
    """Let transformers make and save a model of a published size."""
    transformers = pytest.importorskip("transformers")
    config = SIZES[size]
    torch.manual_seed(0)
    with torch.device("meta"):
        shape = transformers.GPT2Config(
            n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd
        )
        model = transformers.GPT2LMHeadModel(shape)
    model = model.to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05)
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def test_124m_goes_from_the_hub_to_ours_and_back_bit_for_bit(tmp_path: Path) -> None:
    from safetensors import safe_open

    transformers = pytest.importorskip("transformers")
    source = write_random(tmp_path / "hub", "124M")
    model = build_model(open_checkpoint(source))
    (tmp_path / "ours").mkdir()
    write_model(tmp_path / "ours", model)
    with (
        safe_open(source / "model.safetensors", "pt") as before,
        safe_open(tmp_path / "ours" / "model.safetensors", "pt") as after,
    ):
        names = {name.removeprefix("transformer."): name for name in before.keys()}  # noqa: SIM118
        assert sorted(names) == sorted(after.keys())
        assert len(names) == 148
        assert all(
            torch.equal(before.get_tensor(theirs), after.get_tensor(ours))
            for ours, theirs in names.items()
        )
    ids = torch.randint(0, 50257, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = transformers.GPT2LMHeadModel.from_pretrained(source).eval()(ids).logits
        again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()(ids).logits
        assert torch.equal(theirs, again)
        torch.testing.assert_close(
            model(ids), theirs, rtol=0, atol=2e-5 * float(theirs.abs().max())
        )


MEASURE = """
import json, re, sys, torch
from pathlib import Path
from gpt2kit.checkpoints.load import build_model, open_checkpoint
import gpt2kit.tokenizers
def memory(kind):  # not getrusage, whose peak a process inherits from the one that started it
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
checkpoint = open_checkpoint(Path(sys.argv[1]))
before = memory("VmRSS")
model = build_model(checkpoint, dtype=getattr(torch, sys.argv[2]))
largest = max(stored.nbytes for stored in checkpoint.tensors.values())
size = sum(p.nbytes for p in model.parameters())
print(json.dumps({"used": memory("VmHWM") - before, "model": size, "largest": largest}))
"""


@pytest.mark.parametrize("size", ["124M", "1558M"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_model_and_one_tensor(tmp_path: Path, size: str, dtype: str) -> None:
    folder = write_random(tmp_path, size)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (
        found["model"] <= found["used"] <= found["model"] + found["largest"] + 128e6
    )  # the last is code that torch loads on first use
