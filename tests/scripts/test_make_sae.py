"""The script that makes a small sparse autoencoder, with the bundled model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from gpt2kit.inspection.features import load_sae

ROOT = Path(__file__).parents[2]


def test_a_few_steps_leave_an_sae_that_gpt2kit_reads(tmp_path: Path) -> None:
    few = ["--texts", "1", "--steps", "3", "--features", "16"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_sae.py", tmp_path / "sae", *few],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "16 features" in done.stdout
    sae = load_sae(tmp_path / "sae")
    assert (sae.hook, sae.width, sae.n_features) == ("blocks.4.hook_resid_pre", 192, 16)
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(16))
