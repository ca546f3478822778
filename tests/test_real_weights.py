"""GPT-2's real weights, where they are in weights/: what other programs say they answer.

gpt2kit download 124M && pytest -m weights
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit.evaluation.verify import verify

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.mark.weights
@pytest.mark.parametrize("name", ["124M", "124M-openai"])
def test_published_weights_give_their_published_answers(name: str) -> None:
    if not (WEIGHTS / name).is_dir():
        pytest.skip(f"weights/{name} is not here; run: gpt2kit download 124M")
    outcomes = {check.name: check for check in verify(WEIGHTS / name)}
    assert not [check for check in outcomes.values() if check.passed is False]
    assert outcomes["fingerprint"].passed
