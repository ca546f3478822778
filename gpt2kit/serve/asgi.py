"""The server as an ASGI application: its routes, and what surrounds all of them.

    app = gpt2kit.serve.application("124M")      # then: uvicorn module:app

Any host of ASGI applications runs it. The first model is loaded when the host starts it up, or with
the first request if the host does not; until then it answers with status 503.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2kit.checkpoints.load import load
from gpt2kit.serve.access import HostCheck, KeyCheck, read_keys, refuse, with_cors
from gpt2kit.serve.body import ClientGoneError, header
from gpt2kit.serve.errors import Refusal
from gpt2kit.serve.models import Load, Source, entries
from gpt2kit.serve.page import page
from gpt2kit.serve.service import Service
from gpt2kit.serve.settings import Settings

log = logging.getLogger("gpt2kit.serve")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ABSOLUTE_FORM = re.compile(r"https?://(?P<name>[^/]*)(?P<path>.*)", re.IGNORECASE | re.DOTALL)
_ASKED_OFTEN = ("/health", "/health/live", "/metrics")
_FACTS = "gpt2kit.facts"  # in a request's scope: what the log says about it
_CLIENT_GONE = 499  # as nginx writes it: the client left before an answer began
_PATHS = {
    "/",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/health",
    "/health/live",
    "/metrics",
    *(
        f"{prefix}/{name}"
        for prefix in ("", "/v1")
        for name in ("tokenize", "detokenize", "tokenizer_info")
    ),
}
_ROUTES = "GET /, POST /v1/completions, GET /v1/models, POST /tokenize, POST /detokenize"


def application(
    *models: Source, settings: Settings | None = None, load: Load = load
) -> Application:
    """Return an ASGI application that serves models.

    Each is a name or folder that `gpt2kit.load` knows, or a model in memory with its tokenizer. The
    first is loaded at the start, the others when they are asked for. Raises ConfigError for names
    or keys that cannot be used.
    """
    settings = settings or Settings()
    found = entries(models or ("124M",), settings.served_name)
    return Application(Service(found, settings=settings, load=load), settings)


class Application:
    """The ASGI application: refuses who may not come in, numbers requests, counts and logs them."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service = service
        self._inner = self._surrounded(_routes(service), settings)

    def _surrounded(self, routes: ASGIApp, settings: Settings) -> ASGIApp:
        keys = read_keys(settings.api_key)
        checked: ASGIApp = KeyCheck(routes, keys) if keys else routes
        # Refusals are answered inside, so that a page of an allowed site can read them.
        allowed = with_cors(_AnsweringRefusals(checked), settings.cors_origin)
        return HostCheck(allowed, settings.allowed_host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner_lifespan(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        self.service.start()
        await self._answer(scope, receive, send)

    async def _inner_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.service.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                self.service.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, then count and log it."""
        scope = _with_path_alone(scope)
        sent = header(scope, "x-request-id")
        number = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)
        # Another application may have this one under a prefix, which no check or route knows.
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") or "/"
        own = {"path": path, "raw_path": path.encode(), "root_path": ""}
        # With an "app", Starlette raises what it would answer in plain text.
        scope = {**scope, **own, "app": self, _FACTS: {}}
        status, began = 0, time.monotonic()

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = (b"x-request-id", number.encode())
                message = {**message, "headers": [*message.get("headers", []), added]}
            await send(message)

        try:
            await self._inner(scope, receive, numbered)
        finally:
            status = status or _CLIENT_GONE
            route = _route_of(path)
            self.service.metrics.requests.add(route=route, code=str(status))
            facts = {"route": route, "status": status, **scope[_FACTS]}
            facts["seconds"] = f"{time.monotonic() - began:.3f}"
            level = logging.DEBUG if route in _ASKED_OFTEN else logging.INFO
            log.log(
                level, "%s %s", number, " ".join(f"{name}={value}" for name, value in facts.items())
            )


def _with_path_alone(scope: Scope) -> Scope:
    """Return the scope of a request for http://NAME/PATH as if /PATH had been asked of NAME.

    Clients send this form to proxies, and every server has to take it: RFC 9112, section 3.2.2,
    by which the name counts and not the Host header.
    """
    if not (target := _ABSOLUTE_FORM.fullmatch(scope["path"])):
        return scope
    others = [(key, value) for key, value in scope["headers"] if key != b"host"]
    return {
        **scope,
        "path": target["path"] or "/",
        "headers": [(b"host", target["name"].encode()), *others],
    }


def _route_of(path: str) -> str:
    """Return a path for logs and counters, of which there are few whatever clients ask for."""
    if path.startswith("/v1/models/"):
        return "/v1/models/NAME"
    return path if path in _PATHS else "unknown"


class _AnsweringRefusals:
    """Answers a refusal that the application around which it lies raises, and any failure."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ClientGoneError:
            return
        except Refusal as refusal:
            await refuse(refusal, scope, receive, send)
        except HTTPException as error:
            await refuse(_as_refusal(error, scope["method"]), scope, receive, send)
        except Exception:
            log.exception("a request failed")
            if has_begun:
                raise
            message = "the server failed to answer this request; its log says why"
            await refuse(Refusal(500, message, code="internal_error"), scope, receive, send)


class _Raw:
    """An endpoint that speaks ASGI itself."""

    def __init__(self, handle: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(scope, receive, send)


def _routes(service: Service) -> Router:
    """Return all routes; those of the tokenizer are there under /v1 too, where clients differ."""
    return Router(
        [
            Route("/", _page),
            Route("/v1/completions", _Raw(service.complete), methods=["POST"]),
            Route("/v1/chat/completions", _no_chat, methods=["GET", "POST"]),
            Route("/v1/models", service.list_models),
            Route("/v1/models/{name:path}", service.show_model),
            Route("/health", service.health),
            Route("/health/live", service.live),
            Route("/metrics", service.show_metrics),
            *(
                route
                for prefix in ("", "/v1")
                for route in (
                    Route(f"{prefix}/tokenize", _Raw(service.tokenize), methods=["POST"]),
                    Route(f"{prefix}/detokenize", _Raw(service.detokenize), methods=["POST"]),
                    Route(f"{prefix}/tokenizer_info", service.tokenizer_info),
                )
            ),
        ]
    )


async def _page(request: Request) -> Response:
    data, policy = page()
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "cache-control": "no-cache",  # so that a newer server is not asked by an older page
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Response(data, headers=headers)


async def _no_chat(request: Request) -> Response:
    raise Refusal(
        404,
        "GPT-2 continues texts and has no chat template; use /v1/completions",
        code="no_chat_template",
    )


def _as_refusal(error: HTTPException, method: str) -> Refusal:
    """Return the refusal for an unknown path, or for a method that a path does not have."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        message = f"this path does not take {method[:20]!r}, expected {headers.get('Allow')}"
    else:
        message = f"there is nothing at this path; there are {_ROUTES}"
    return Refusal(error.status_code, message, headers=headers)
