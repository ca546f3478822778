"""Bodies of requests: what is no JSON object is refused in one sentence, whatever it is."""

from __future__ import annotations

import gzip

import pytest
from serve_builders import connected

from gpt2kit.serve.body import parse_object
from gpt2kit.serve.errors import Refusal


def test_an_object_is_parsed() -> None:
    assert parse_object('{"prompt": "perché", "n": 2}'.encode()) == {"prompt": "perché", "n": 2}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": }', "not JSON: Expecting value, at character 6"),
        (b'{"a": NaN}', "NaN, which is not JSON"),
        (b'{"a": -Infinity}', "-Infinity, which is not JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"x": {"b": 1, "b": 1}}', "'b' is there twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),  # json guesses, and read it
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(Refusal, match="the body|the key|a number") as caught:
        parse_object(body)
    assert caught.value.status == 400
    assert message in str(caught.value)


def test_a_compressed_body_is_refused_by_name() -> None:
    """The answer was that the body is not UTF-8."""
    with connected() as client:
        response = client.post(
            "/v1/completions", content=gzip.compress(b"{}"), headers={"content-encoding": "gzip"}
        )
    assert response.status_code == 415
    assert "content-encoding is 'gzip'" in response.json()["error"]["message"]
