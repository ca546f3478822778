"""Random requests under random load: texts, slots and counts stay right."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import threading
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import make_model
from serve_builders import events_of, running, tiny, wait_until

from gpt2kit.config import GPT2Config
from gpt2kit.generation.request import Request
from gpt2kit.generation.row import Row
from gpt2kit.generation.text import TextOfRow
from gpt2kit.serve.asgi import Application, application
from gpt2kit.serve.metrics import Metrics
from gpt2kit.serve.settings import Settings
from gpt2kit.serve.worker import Batch, Job

# A window of several pieces, so that beginnings of prompts are shared and read in parts.
CONFIG = GPT2Config(n_vocab=512, n_ctx=256, n_embd=16, n_head=2, n_layer=2)


def random_request(rng: random.Random) -> dict[str, Any]:
    """Return a request of any kind; prompts often begin alike."""
    shared = [7 + i % 200 for i in range(rng.choice([0, 0, 60, 64, 130, 180]))]
    prompts = [
        shared + [rng.randrange(511) for _ in range(rng.randrange(1, 40))]
        for _ in range(rng.choice([1, 1, 1, 2, 4]))
    ]
    asked: dict[str, Any] = {
        "prompt": prompts,
        "max_tokens": rng.choice([1, 3, 10, 30]),
        "seed": rng.randrange(100),
        "n": rng.choice([1, 1, 2, 3]),
        "temperature": rng.choice([0, 0.7, 1, 1.5]),
        "top_k": rng.choice([0, 1, 5, 40]),
        "top_p": rng.choice([1, 0.9]),
        "overflow": rng.choice(["slide", "stop"]),
        "stream": rng.random() < 0.5,
    }
    if rng.random() < 0.3:
        asked |= {"logprobs": rng.choice([0, 3]), "echo": rng.random() < 0.5}
    if rng.random() < 0.2:
        asked |= {"frequency_penalty": 0.5, "presence_penalty": 0.3, "logit_bias": {"40": 2}}
    if rng.random() < 0.2:
        asked |= {"stop": ["e", " th"]}
    return asked


def ask(url: str, asked: dict[str, Any], *, leave: bool = False) -> Any:
    """Return the choices of an answer, a stream joined, or None after leaving it early."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    with contextlib.closing(connection):
        connection.request(
            "POST", "/v1/completions", json.dumps(asked), {"content-type": "application/json"}
        )
        if leave:
            return None
        answer = connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, body
        if not asked["stream"]:
            return json.loads(body)["choices"]
        return joined(events_of(body))


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the choices of a stream as an answer that is not streamed has them."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for new in event["choices"]:
            old = choices.setdefault(new["index"], new)
            if old is not new:
                old["text"] += new["text"]
                old["finish_reason"] = new["finish_reason"]
                for name in old["logprobs"] or ():
                    old["logprobs"][name] += new["logprobs"][name]
    return [choices[index] for index in sorted(choices)]


def try_all(n: int, *, threads: int) -> Application:
    """Ask n random requests alone, then all under load with others that leave, and compare."""
    _, tokenizer = tiny()
    app = application(
        (make_model(CONFIG), tokenizer),
        settings=Settings(parallel=5, queue=1000, queue_tokens=10**9),
    )
    rng = random.Random(1)
    asked = [random_request(rng) for _ in range(n)]
    with running(app=app) as url:
        alone = [ask(url, each) for each in asked]
        left: SimpleQueue[int] = SimpleQueue()
        for index in rng.sample(range(n), n):
            left.put(index)
        found: dict[int, Any] = {}

        def work() -> None:
            own = random.Random(threading.get_ident())
            with contextlib.suppress(Empty):
                while True:
                    index = left.get_nowait()
                    if own.random() < 0.3:
                        ask(url, asked[own.randrange(n)], leave=True)
                    found[index] = ask(url, asked[index])

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        wait_until(lambda: not app.service.limits.requests)
        for index in range(n):
            assert found.get(index) == alone[index], asked[index]
    return app


def test_random_requests_get_the_same_answers_under_load_as_alone() -> None:
    app = try_all(40, threads=8)
    batch = app.service.models.entries[0].loaded.batch  # type: ignore[union-attr]
    assert not batch.running
    assert not batch.has_work


def test_clients_get_their_first_tokens_in_the_order_in_which_they_came() -> None:
    model, tokenizer = tiny()
    request = Request(max_tokens=8, seed=1)

    async def firsts() -> list[int]:
        batch = Batch(model, slots=4, n_vocab=model.config.n_vocab, metrics=Metrics())
        for index in range(64):
            job = Job(seconds_to_wait=60)
            for sample in range(20 if index == 0 else 1):
                row = Row([5, 6, index], request, model.config, sample=sample)
                text = TextOfRow(sample, row, tokenizer)
                job.add(row, text, prompt=0, only_reads=False)
            batch.jobs.append(job)
        jobs, found = list(batch.jobs), []
        while batch.has_work:
            batch.turn()
            found += [i for i, job in enumerate(jobs) if job.first is not None and i not in found]
        return found

    # The first one asks for many texts, and does not keep all slots to itself.
    assert asyncio.run(firsts()) == list(range(64))


@pytest.mark.slow
def test_a_thousand_random_requests_get_the_same_answers_under_load_as_alone() -> None:
    try_all(1000, threads=12)
