"""What the routes do: completions, the list of models, the tokenizer, health."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpt2kit.errors import Gpt2KitError
from gpt2kit.serve import rows
from gpt2kit.serve.answering import Answer, cancelled_if_gone
from gpt2kit.serve.answers import AnswerWriter, compact
from gpt2kit.serve.body import Bodies
from gpt2kit.serve.completions import as_flag, as_ids, as_text, parse, refuse_unknown
from gpt2kit.serve.errors import Refusal, not_ready
from gpt2kit.serve.life import Life
from gpt2kit.serve.limits import Limits
from gpt2kit.serve.metrics import CONTENT_TYPE, Labels, Metrics
from gpt2kit.serve.models import Entry, Load, Loaded, Models
from gpt2kit.serve.settings import Settings
from gpt2kit.serve.worker import Job, Worker
from gpt2kit.tokenizers.protocol import END_OF_TEXT

log = logging.getLogger("gpt2kit.serve")


class Service:
    """A server without its routes: models, the thread that computes, limits and counters."""

    def __init__(self, found: Sequence[Entry], *, settings: Settings, load: Load) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.worker = Worker()
        self.life = Life(self.worker)
        self.limits = Limits(settings, self.metrics)
        self.bodies = Bodies()
        self.models = Models(
            found, settings=settings, worker=self.worker, metrics=self.metrics, load=load
        )
        self.loop: asyncio.AbstractEventLoop | None = None  # in which it was started
        self._jobs: set[Job] = set()
        self._is_cut = False  # whether running requests were ended, because the server stops
        self._loading: asyncio.Task[None] | None = None
        self._loads: set[asyncio.Future[Loaded]] = set()  # what requests wait for
        self._add_gauges()

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load the first model, unless that was done."""
        if self.life.state == "new":
            self.life.state = "loading"
            self.loop = asyncio.get_running_loop()
            self.worker.on_failure = functools.partial(
                self.loop.call_soon_threadsafe, self._engine_failed
            )
            self.worker.start()
            self._loading = asyncio.create_task(self._load_first())

    async def _load_first(self) -> None:
        try:
            await self._loaded(self.models.entries[0])
        except Refusal as refusal:
            if self.life.state == "loading":
                self.life.fail(refusal)
            return
        if self.life.state == "loading":
            self.life.state = "ready"

    def _engine_failed(self) -> None:
        assert self.worker.failure is not None
        self.life.fail(self.worker.failure)

    async def drain(self) -> None:
        """Take no new requests, and wait for the running ones, but not too long."""
        self.life.state = "draining"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain):
                await self._until_idle()
        self._is_cut = True
        self.worker.end_all(not_ready("the server stops, and the answer was cut; ask again"))
        for load in self._loads:
            load.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self._until_idle()

    async def _until_idle(self) -> None:
        while self.limits.requests:
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Let the thread that computes end."""
        self.worker.stop()

    # --- completions ------------------------------------------------------------------------------

    async def complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/completions."""
        self._require_ready()
        async with self.bodies.object(scope, receive) as body:
            asked = parse(body)
        entry = self.models.named(asked.model)
        n_ctx = entry.loaded.model.config.n_ctx if entry.loaded else 1024
        with self.limits.reserve(asked, n_ctx) as reservation, self.models.holding(entry):
            loaded = await self._loaded(entry)
            prompts = await asyncio.to_thread(rows.encode, loaded, asked)
            reservation.tokens = rows.tokens_needed(loaded, asked, prompts)
            job = Job(seconds_to_wait=self.settings.queue_timeout)
            hold = functools.partial(self.limits.hold, reservation)
            await asyncio.to_thread(rows.add_rows, job, loaded, asked, prompts, hold)
            writer = AnswerWriter(
                asked.model or entry.name, loaded.fingerprint, include_usage=asked.include_usage
            )
            answer = Answer(asked, loaded, prompts, job, writer, asked.model or entry.name)
            try:
                await self._work(answer, receive, send, scope)
            finally:
                scope["gpt2kit.facts"].update(_facts(entry, answer))

    async def _work(self, answer: Answer, receive: Receive, send: Send, scope: Scope) -> None:
        """Let the engine work for an answer and send it; stop both if the client leaves."""
        job = answer.job

        def cancel() -> None:
            if not job.has_ended:
                self.metrics.cancelled.add()
                self.worker.cancel(job)
                Job.wake([job])

        if self._is_cut:  # its prompts were being encoded when the others were ended
            raise _about_to_stop()
        self._jobs.add(job)
        if job.samples:
            self.worker.submit(answer.loaded.batch, job)
        try:
            async with cancelled_if_gone(receive, cancel):
                if answer.asked.stream:
                    await answer.send_stream(send)
                else:
                    await answer.send_whole(send)
        except TimeoutError:  # the client takes nothing
            scope.get("gpt2kit.abort", lambda: None)()
        finally:
            cancel()
            self._jobs.discard(job)

    def _require_ready(self) -> None:
        if refusal := self.life.refusal():
            self.metrics.refused.add(reason=self.life.state)
            raise refusal

    async def _loaded(self, entry: Entry) -> Loaded:
        """Return a model in memory, or raise Refusal; the log says why it cannot be loaded."""
        load = asyncio.ensure_future(self.models.loaded(entry))
        self._loads.add(load)
        try:
            return await load
        except asyncio.CancelledError:
            if not self._is_cut:
                raise
            raise _about_to_stop() from None
        except Refusal as refusal:
            log.error("%s", refusal)
            raise
        except Gpt2KitError as error:
            log.error("%s cannot be loaded: %s", entry.name, error)
        except Exception:
            log.exception("%s cannot be loaded", entry.name)
        finally:
            self._loads.discard(load)
        message = f"the model {entry.name} cannot be loaded; the server's log says why"
        raise Refusal(500, message, code="model_failed")

    # --- models and tokenizers --------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        listed = [self._described(entry) for entry in self.models.entries]
        return _json({"object": "list", "data": listed})

    async def show_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return _json(self._described(self.models.named(request.path_params["name"])))

    def _described(self, entry: Entry) -> dict[str, Any]:
        loaded = entry.loaded
        described = {
            "id": entry.name,
            "object": "model",
            "created": loaded.created if loaded else 0,
            "owned_by": "gpt2kit",
            "loaded": loaded is not None,
        }
        return described | ({"max_model_len": loaded.model.config.n_ctx} if loaded else {})

    async def tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /tokenize."""
        self._require_ready()
        async with self.bodies.object(scope, receive) as body:
            found = await self._tokenized(body)
        await _json(found)(scope, receive, send)

    async def _tokenized(self, body: dict[str, Any]) -> dict[str, Any]:
        # GPT-2 adds no tokens of its own, whether clients want them or not.
        flags = {"special": True, "return_token_strs": False, "add_special_tokens": True}
        refuse_unknown(body, {"model", "prompt", *flags})
        text = as_text("prompt", body.get("prompt"))
        flags = {name: as_flag(name, body.get(name), default) for name, default in flags.items()}
        loaded = await self._for(body.get("model"))
        special = flags["special"]
        ids = await asyncio.to_thread(rows.encode_text, loaded, text, special=special)
        found = {"count": len(ids), "max_model_len": loaded.model.config.n_ctx, "tokens": ids}
        if flags["return_token_strs"]:
            found["token_strs"] = rows.names(loaded, ids)
        return found

    async def detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /detokenize."""
        self._require_ready()
        async with self.bodies.object(scope, receive) as body:
            refuse_unknown(body, {"model", "tokens"})
            tokens = body.get("tokens")
            ids = () if tokens == [] else as_ids("tokens", tokens)
            loaded = await self._for(body.get("model"))
            rows.check_ids(loaded, ids, "tokens")
            found = {"prompt": loaded.tokenizer.decode(list(ids))}
        await _json(found)(scope, receive, send)

    async def tokenizer_info(self, request: Request) -> Response:
        """GET /tokenizer_info."""
        self._require_ready()
        loaded = await self._for(request.query_params.get("model"))
        tokenizer = loaded.tokenizer
        marker = None if tokenizer.stop_id is None else END_OF_TEXT
        return _json(
            {
                "tokenizer_class": type(tokenizer).__name__,
                "vocab_size": tokenizer.n_vocab,
                "model_max_length": loaded.model.config.n_ctx,
                "bos_token": marker,
                "eos_token": marker,
                "eos_token_id": tokenizer.stop_id,
                "chat_template": None,
            }
        )

    async def _for(self, name: Any) -> Loaded:
        entry = self.models.named(None if name is None else as_text("model", name))
        with self.models.holding(entry):
            return await self._loaded(entry)

    # --- health -----------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """GET /health: whether requests should be sent here."""
        if refusal := self.life.ill_health():
            raise refusal
        return _json({"status": "ok"})

    async def live(self, request: Request) -> Response:
        """GET /health/live: whether the process should go on."""
        if self.life.state == "failed":
            raise not_ready("the server has failed and stops; its log says why")
        return _json({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _add_gauges(self) -> None:
        jobs = self._jobs
        gauge = self.metrics.gauge
        gauge(
            "gpt2kit_requests_running",
            "Requests with a text that is being written.",
            lambda: {(): sum(job.started is not None for job in list(jobs))},
        )
        gauge(
            "gpt2kit_requests_waiting",
            "Requests that wait for their turn.",
            lambda: {(): sum(job.started is None for job in list(jobs))},
        )
        gauge("gpt2kit_slots", "Texts that can be written at once.", self._slots)
        gauge("gpt2kit_model_info", "The models in memory.", self._model_info)

    def _slots(self) -> dict[Labels, float]:
        loaded = [entry for entry in self.models.entries if entry.loaded]
        return {
            (("model", entry.name),): entry.loaded.batch.slots for entry in loaded if entry.loaded
        }

    def _model_info(self) -> dict[Labels, float]:
        found: dict[Labels, float] = {}
        for entry in self.models.entries:
            if loaded := entry.loaded:
                labels = {
                    "model": entry.name,
                    "dtype": loaded.dtype,
                    "engine": loaded.engine,
                }
                found[tuple(labels.items())] = 1
        return found


def _about_to_stop() -> Refusal:
    """Return the refusal of an accepted request that has not begun when the server stops."""
    return not_ready("the server is about to stop; try another one")


def _facts(entry: Entry, answer: Answer) -> dict[str, object]:
    """Return what the log says about a completion: counts and times, never a text."""
    job = answer.job
    facts: dict[str, object] = {
        "model": entry.name,
        "prompt_tokens": sum(len(prompt.ids) for prompt in answer.prompts),
        "cached": sum(job.cached.values()),
        "new_tokens": job.generated,
        "seed": answer.asked.request.seed,
    }
    if job.started is not None:
        facts["wait"] = f"{job.started - job.created:.3f}"
    if job.first is not None:
        facts["first_token"] = f"{job.first - job.created:.3f}"
    facts["reason"] = "cancelled" if job.cancelled else "failed" if job.error else "done"
    return facts


def _json(value: dict[str, Any]) -> Response:
    return Response(compact(value), headers={"content-type": "application/json"})
