"""The JSON of an answer: choices, the legacy shape of log-probabilities, usage, chunks of a stream.

A chunk of a stream and a whole answer have the same shape; `ChoiceWriter` writes both.
"""

from __future__ import annotations

import codecs
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2kit.generation.row import Chosen
from gpt2kit.generation.text import Piece
from gpt2kit.serve.completions import CompletionRequest
from gpt2kit.serve.errors import Refusal
from gpt2kit.tokenizers import Tokenizer

_REASONS = {
    "end_of_text": "stop",
    "stop_text": "stop",
    "constraint": "stop",
    "max_tokens": "length",
    "context": "length",
}


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the client knows it, and as the model reads it."""

    text: str
    ids: tuple[int, ...]


class LogprobsWriter:
    """Writes log-probabilities in the shape that OpenAI's completions have, token after token."""

    def __init__(self, tokenizer: Tokenizer, offset: int, *, with_ids: bool = False) -> None:
        """Begin at an offset in the text, in characters; perhaps with the alternatives' ids."""
        self._tokenizer = tokenizer
        self._offset = offset
        self._with_ids = with_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, tokens: Iterable[Chosen]) -> dict[str, list[Any]]:
        """Return the log-probabilities of some more tokens."""
        written: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        if self._with_ids:
            written["top_token_ids"] = []
        for chosen in tokens:
            name = self._name(chosen.token)
            written["tokens"].append(name)
            written["token_logprobs"].append(chosen.logprob)
            written["top_logprobs"].append(self._alternatives(chosen, name))
            written["text_offset"].append(self._offset)
            if self._with_ids:
                ids = [chosen.token, *(token for token, _ in chosen.top_logprobs or ())]
                written["top_token_ids"].append({self._name(token): token for token in ids})
            # A token that ends within a character and the next one begin at the same offset.
            self._offset += len(self._utf8.decode(self._tokenizer.token_bytes(chosen.token)))
        return written

    def _alternatives(self, chosen: Chosen, name: str) -> dict[str, float] | None:
        if chosen.logprob is None:  # the first token of a text, before which there is nothing
            return None
        listed = {self._name(token): value for token, value in chosen.top_logprobs or ()}
        return {**listed, name: listed.get(name, chosen.logprob)}

    def _name(self, token: int) -> str:
        return token_name(self._tokenizer.token_bytes(token))


def token_name(data: bytes) -> str:
    r"""Return a token's text, or bytes:\xf0\x9f if its bytes are not whole characters.

    So different tokens have different names, as keys of an object must have.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        printable = (chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in data)
        return "bytes:" + "".join(printable)


class ChoiceWriter:
    """Writes what one choice adds to an answer; the first time with the prompt, if it is echoed."""

    def __init__(
        self, index: int, prompt: EncodedPrompt, asked: CompletionRequest, tokenizer: Tokenizer
    ) -> None:
        self._index = index
        self._prompt = prompt
        self._asked = asked
        self._is_first = True
        self._logprobs = None
        if asked.logprobs is not None:
            with_ids = asked.return_token_ids
            self._of_prompt = LogprobsWriter(tokenizer, 0, with_ids=with_ids)
            self._logprobs = LogprobsWriter(tokenizer, len(prompt.text), with_ids=with_ids)

    def write(
        self,
        pieces: Sequence[Piece],
        prompt_logprobs: Sequence[Chosen] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """Return a choice made of some more pieces.

        `prompt_logprobs` are those of the prompt's tokens, which the first call needs if they are
        asked for. `finish_reason` is for a choice without any piece.
        """
        echoes = self._is_first and self._asked.echo
        reason = pieces[-1].finish_reason if pieces else finish_reason
        text = "".join(piece.text for piece in pieces)
        choice = {
            "index": self._index,
            "text": self._prompt.text + text if echoes else text,
            "logprobs": self._write_logprobs(pieces, prompt_logprobs if echoes else ()),
            "finish_reason": reason and _REASONS[reason],
        }
        if self._asked.return_token_ids:
            choice["token_ids"] = [piece.token for piece in pieces]
            if self._is_first:
                choice["prompt_token_ids"] = list(self._prompt.ids)
        self._is_first = False
        return choice

    def _write_logprobs(
        self, pieces: Sequence[Piece], prompt_logprobs: Sequence[Chosen]
    ) -> dict[str, list[Any]] | None:
        if self._logprobs is None:
            return None
        before = self._of_prompt.write(prompt_logprobs)
        new = self._logprobs.write(
            Chosen(piece.token, piece.logprob, piece.top_logprobs) for piece in pieces
        )
        return {name: before[name] + new[name] for name in new}


@dataclass
class Usage:
    """The tokens of one request."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0  # of the prompt's, those that were not read again

    def as_json(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class AnswerWriter:
    """Writes whole answers and chunks, which share their first fields."""

    def __init__(self, model: str, fingerprint: str, *, include_usage: bool) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex[:24]}"
        self._include_usage = include_usage
        self._common = {
            "id": self.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(
        self,
        choices: Sequence[dict[str, Any]],
        usage: Usage,
        receipt: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Return the body of an answer that is not streamed, with its receipt if there is one."""
        more = {} if receipt is None else {"receipt": receipt}
        return compact({**self._common, "choices": choices, "usage": usage.as_json(), **more})

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """Return an event of a stream."""
        usage = {"usage": None} if self._include_usage else {}
        return _event({**self._common, "choices": [choice], **usage})

    def end(self, usage: Usage) -> bytes:
        """Return the last events of a stream."""
        done = b"data: [DONE]\n\n"
        if not self._include_usage:
            return done
        return _event({**self._common, "choices": [], "usage": usage.as_json()}) + done

    @staticmethod
    def error(refusal: Refusal) -> bytes:
        """Return the event that ends a stream early; no [DONE] follows it."""
        return _event(refusal.body)


_LINE_ENDS = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}


def compact(value: dict[str, Any]) -> bytes:
    """Return an object as UTF-8 JSON without line ends: httpx divides a stream at U+2028, too."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (text if text.isascii() else text.translate(_LINE_ENDS)).encode()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + compact(value) + b"\n\n"
