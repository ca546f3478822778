"""The NumPy reference: it computes what OpenAI's program and transformers computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt2kit import reference
from gpt2kit.checkpoints.load import open_checkpoint

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/*/tensors.json"))


@pytest.mark.parametrize(
    "folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}"
)
def test_logits_are_those_of_the_original_programs(folder: Path) -> None:
    answers = np.load(folder / "reference.npz")
    checkpoint = open_checkpoint(folder)
    weights = {name: each.read().double().numpy() for name, each in checkpoint.tensors.items()}
    for row, ids in enumerate(answers["tokens_7"].tolist()):
        found = reference.logits(checkpoint.config, weights, ids)
        if "positions_7" in answers.files:
            found = found[answers["positions_7"]]
        # transformers' answers are in float64, those of TensorFlow in float32.
        tolerance = 1e-9 if folder.parent.name == "hf" else 2e-5
        np.testing.assert_allclose(found, answers["logits_7"][row], rtol=0, atol=tolerance)


def test_a_token_sees_itself_and_earlier_tokens_only() -> None:
    folder = GOLDEN / "tf" / "micro-a"
    checkpoint = open_checkpoint(folder)
    weights = {name: each.read().numpy() for name, each in checkpoint.tensors.items()}
    notes: reference.Notes = {}
    whole = reference.logits(checkpoint.config, weights, [1, 2, 3, 4, 5], notes)
    start = reference.logits(checkpoint.config, weights, [1, 2, 3])
    np.testing.assert_allclose(whole[:3], start, rtol=0, atol=1e-12)
    shares = notes["0.weights"]  # (H, T, T)
    np.testing.assert_allclose(shares.sum(axis=2), 1)
    assert (np.triu(shares, 1) == 0).all()
    assert (np.tril(shares) > 0)[:, *np.tril_indices(5)].all()
