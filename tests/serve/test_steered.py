"""Models that are served with a steering vector."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from features_builders import write_sae
from serve_builders import connected, tiny

from gpt2kit.errors import ConfigError
from gpt2kit.generation.text import complete
from gpt2kit.inspection.steering import steered, steering_of
from gpt2kit.serve.asgi import application
from gpt2kit.serve.settings import Settings


def test_a_served_model_writes_what_the_library_writes_with_the_same_vector(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    typed = f"sae:{write_sae(tmp_path / 'sae')}#7 *20"
    model, tokenizer = tiny()
    options: dict[str, Any] = {"max_tokens": 9, "temperature": 0, "ignore_eos": True, "seed": 1}
    plain = complete(model, tokenizer, "The cat", **options)[0]
    with steered(model, [steering_of(typed, model, tokenizer)]):
        expected = complete(model, tokenizer, "The cat", **options)[0]
    assert expected.text != plain.text
    with (
        caplog.at_level(logging.INFO, logger="gpt2kit.serve"),
        connected(application(tiny(), settings=Settings(steer=(typed,)))) as client,
    ):
        answer = client.complete(prompt="The cat", **options, receipt=True)
    assert answer["choices"][0]["text"] == expected.text
    assert answer["receipt"]["source"]["steer"] == [typed]
    with connected(application(tiny())) as client:
        other = client.complete(prompt="The cat", **options)
    assert other["choices"][0]["text"] == plain.text
    assert other["system_fingerprint"] != answer["system_fingerprint"]
    assert "adds a vector of norm" in caplog.text


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("Love - Hate @1 *5", "a server has many"), ("Love", "expected one ' - '")],
)
def test_what_a_server_cannot_do_is_refused_before_it_starts(typed: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Settings(steer=(typed,))
