"""The JSON of answers: the legacy shape of log-probabilities, chunks, usage."""

from __future__ import annotations

import json

from conftest import GOLDEN
from serve_builders import events_of

from gpt2kit.generation.row import Chosen
from gpt2kit.serve.answers import AnswerWriter, LogprobsWriter, Usage, compact, token_name
from gpt2kit.serve.errors import Refusal
from gpt2kit.tokenizers import BPETokenizer


def tokenizer() -> BPETokenizer:
    found = BPETokenizer.from_folder(GOLDEN / "bpe" / "small")
    assert found is not None
    return found


def test_a_token_that_is_no_whole_character_is_named_by_its_bytes() -> None:
    assert token_name(b" dog") == " dog"
    assert token_name("é".encode()) == "é"
    assert token_name(b"\xf0\x9f\x98") == r"bytes:\xf0\x9f\x98"
    assert token_name(b" \xf0\\") == r"bytes: \xf0\x5c"


def test_all_tokens_of_a_vocabulary_have_different_names() -> None:
    small = tokenizer()
    names = {token_name(small.token_bytes(token)) for token in range(512)}
    assert len(names) == 512


def test_offsets_count_characters_and_stay_within_one() -> None:
    """The four tokens of an emoji begin at one offset, and what follows one character later."""
    small = tokenizer()
    ids = small.encode("a😀b")
    found = LogprobsWriter(small, 5).write([Chosen(token, -1.0) for token in ids])
    assert found["tokens"][1] == r"bytes:\xf0"
    assert found["text_offset"] == [5, 6, 6, 6, 6, 7]


def test_offsets_go_on_in_the_next_chunk() -> None:
    small = tokenizer()
    ids = small.encode("a😀b")
    writer = LogprobsWriter(small, 0)
    offsets = [writer.write([Chosen(token, -1.0)])["text_offset"][0] for token in ids]
    assert offsets == [0, 1, 1, 1, 1, 2]


def test_the_alternatives_hold_the_token_itself_with_the_same_float() -> None:
    small = tokenizer()
    listed = Chosen(64, -0.25, [(64, -0.25), (65, -2.0)])
    unlisted = Chosen(66, -3.5, [(64, -0.25), (65, -2.0)])
    first = Chosen(64)
    found = LogprobsWriter(small, 0).write([first, listed, unlisted])
    assert found["token_logprobs"] == [None, -0.25, -3.5]
    assert found["top_logprobs"] == [
        None,
        {"a": -0.25, "b": -2.0},
        {"a": -0.25, "b": -2.0, "c": -3.5},
    ]


def test_the_alternatives_have_ids_if_they_are_asked_for() -> None:
    # A name such as bytes:\xf0 does not say which token it is, so nobody could go on from it.
    small = tokenizer()
    chosen = Chosen(66, -3.5, [(64, -0.25), (172, -2.0)])
    found = LogprobsWriter(small, 0, with_ids=True).write([chosen])
    assert found["top_token_ids"] == [{"c": 66, "a": 64, token_name(small.token_bytes(172)): 172}]
    assert found["top_token_ids"][0].keys() == found["top_logprobs"][0].keys()
    assert "top_token_ids" not in LogprobsWriter(small, 0).write([chosen])


def test_usage_has_the_fields_of_openai() -> None:
    assert Usage(prompt=7, completion=5, cached=3).as_json() == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_a_stream_is_one_line_of_json_in_each_event() -> None:
    writer = AnswerWriter("124M", "gpt2kit-x", include_usage=True)
    choice = {"index": 0, "text": "zwei\nZeilen: é", "logprobs": None, "finish_reason": None}
    data = writer.chunk(choice) + writer.end(Usage(1, 2, 0))
    assert b'"text":"zwei\\nZeilen: \xc3\xa9"' in data
    chunk, last = events_of(data.decode())
    assert (chunk["object"], chunk["id"], chunk["choices"]) == (
        "text_completion",
        writer.id,
        [choice],
    )
    assert chunk["usage"] is None
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 3)


def test_an_event_is_one_line_for_clients_that_end_lines_as_unicode_does() -> None:
    """str.splitlines, by which httpx divides a stream, cut events at U+0085, U+2028 and U+2029."""
    text = "a\x85b\u2028c\u2029d\x0b\x0c\x1c\x1d\x1ee\r\nf è"
    written = compact({"text": text})
    assert len(written.decode().splitlines()) == 1
    assert json.loads(written) == {"text": text}
    assert "è".encode() in written


def test_without_include_usage_no_chunk_mentions_it() -> None:
    """Clients crash over a last chunk without choices that they did not ask for."""
    writer = AnswerWriter("124M", "gpt2kit-x", include_usage=False)
    assert writer.end(Usage(1, 2, 0)) == b"data: [DONE]\n\n"
    assert "usage" not in json.loads(writer.chunk({"index": 0})[6:])


def test_an_error_in_a_stream_has_the_shape_of_all_errors() -> None:
    event = AnswerWriter.error(Refusal(500, "broken", code="engine_failed"))
    assert json.loads(event[6:]) == {
        "error": {
            "message": "broken",
            "type": "server_error",
            "param": None,
            "code": "engine_failed",
        }
    }
