"""A request's way through the worker: its inbox, and when a client counts as too slow."""

from __future__ import annotations

import asyncio
import time

from serve_builders import CONFIG, tiny

from gpt2kit.generation.request import Request
from gpt2kit.generation.row import Row
from gpt2kit.generation.text import Piece, TextOfRow
from gpt2kit.serve.worker import Job, Sample

LARGE = [Piece(text="x", token=1, row=0, top_logprobs=[(1, 0.0)] * 100)] * 500  # about 2 MiB


def new_job() -> tuple[Job, Sample]:
    async def make() -> Job:
        return Job(seconds_to_wait=1)

    job = asyncio.run(make())
    row = Row([1], Request(), CONFIG)
    job.add(row, TextOfRow(0, row, tiny()[1]), prompt=0, only_reads=False)
    return job, job.samples[0]


def test_pieces_of_one_text_are_joined_where_its_reader_lags() -> None:
    job, sample = new_job()
    first, second = (Piece(text=text, token=1, row=0) for text in "ab")
    job.put(sample, [first])
    job.put(sample, [second])
    assert job.take() == [(sample, [first, second])]
    assert job.take() == []


def test_only_a_client_that_takes_nothing_loses_its_request() -> None:
    """A request of many texts with many alternatives brings as much in a few steps."""
    job, sample = new_job()
    job.put(sample, LARGE)
    assert job.error is None  # nothing is sent yet: the whole answer is being collected
    job.sending_since = time.monotonic()
    job.put(sample, LARGE)
    assert job.error is None  # it is being sent
    job.sending_since = time.monotonic() - 5
    job.take()
    job.put(sample, LARGE[:1])
    assert job.error is None  # there is little to take
    job.put(sample, LARGE)
    assert job.error is not None
    assert job.has_ended
