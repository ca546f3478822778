"""What a client is told when the server refuses or fails: OpenAI's shape, one sentence."""

from __future__ import annotations

import json
from typing import Any

_TYPES = {401: "authentication_error", 403: "authentication_error", 404: "not_found_error"}


class Refusal(Exception):
    """A request that is not answered as asked: its status, and what the client is told.

    param        the field of the request that is wrong, if it is one
    code         a word for programs, such as "model_not_found"
    retry_after  seconds after which the same request may succeed; None if it never will
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self._headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON object."""
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        else:
            kind = _TYPES.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def content(self) -> bytes:
        """The answer's bytes, in ASCII: a message may quote half of a character."""
        return json.dumps(self.body).encode()

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers, in lower case."""
        headers = {"content-type": "application/json", **self._headers}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        elif self.status >= 500:
            headers["x-should-retry"] = "false"  # OpenAI's client would try twice again
        return headers


def too_long(n_ctx: int, prompt: int, new: int, *, is_exact: bool = True) -> Refusal:
    """Return the refusal of a prompt that does not fit the window together with its new tokens.

    If it `is_exact`, the prompt has `prompt` tokens, else it may have more.
    """
    least = "" if is_exact else "at least "
    return Refusal(
        400,
        f"This model's maximum context length is {n_ctx} tokens, however you requested {least}"
        f"{prompt + new} tokens ({prompt} in your prompt; {new} for the completion). Please reduce "
        'your prompt or completion length, or send "overflow": "slide" or "stop"; '
        f"for lm-eval, pass max_length={n_ctx}.",
        param="prompt",
        code="context_length_exceeded",
    )


def model_not_found(asked: str, known: list[str]) -> Refusal:
    """Return the refusal of a model's name that is not served here."""
    return Refusal(
        404,
        f"the model {asked[:100]!r} is not served here; there are: {', '.join(known)}",
        param="model",
        code="model_not_found",
    )


def not_ready(why: str, *, retry_after: int = 5, headers: dict[str, str] | None = None) -> Refusal:
    """Return the refusal of a server that answers again soon, or whose replica does."""
    return Refusal(503, why, code="unavailable", retry_after=retry_after, headers=headers)


def engine_failed() -> Refusal:
    """Return what every running request is told after the engine raised an exception."""
    return Refusal(
        500,
        "the engine failed while it computed, and the server stops; its log says why",
        code="engine_failed",
    )
