"""The models of a server, by name: loaded when they are asked for, let go where memory is short."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import google_crc32c
import torch

from gpt2kit import __version__, store
from gpt2kit.checkpoints.load import load, open_checkpoint
from gpt2kit.config import GPT2Config
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.snapshot import weights_sha256
from gpt2kit.errors import ConfigError, Gpt2KitError, OutOfMemoryError, is_out_of_memory
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.row import Row
from gpt2kit.inspection.steering import bias_of, steer, steering_of
from gpt2kit.model import GPT2
from gpt2kit.serve.errors import model_not_found, not_ready
from gpt2kit.serve.metrics import Metrics
from gpt2kit.serve.settings import Settings
from gpt2kit.serve.worker import Batch, Worker
from gpt2kit.store.catalogue import canonical_size
from gpt2kit.tokenizers import BPETokenizer, Tokenizer, require_tokenizer
from gpt2kit.training.plan import free_memory

log = logging.getLogger("gpt2kit.serve")

T = TypeVar("T")
Source = str | Path | tuple[GPT2, Tokenizer | None]
_SHARE_FOR_SLOTS = 0.8  # of the memory that is left beside the weights
Load = Callable[[str | Path], tuple[GPT2, Tokenizer | None]]


@dataclass(frozen=True)
class Loaded:
    """A model in memory, ready to answer."""

    model: GPT2
    tokenizer: Tokenizer
    batch: Batch
    fingerprint: str  # changes if answers to the same request may change
    created: int  # seconds since 1970
    steer: tuple[str, ...] = ()  # what it is steered by, as it was typed

    @functools.cached_property
    def weights_sha256(self) -> str:
        """The digest of its weights, for receipts; it takes about a second for each GB."""
        return weights_sha256(self.model)

    @property
    def dtype(self) -> str:
        """The type of the numbers that it computes with, or int8."""
        return dtype_name(self.model)

    @property
    def engine(self) -> str:
        """Who computes a step: "torch", "native avx2", ..."""
        return Decoder(self.model).name()

    @property
    def n_bytes(self) -> int:
        """The memory of its weights and slots."""
        slots = self.batch.slots * slot_bytes(self.model.config, self.model.dtype)
        return weight_bytes(self.model) + slots

    @functools.cached_property
    def longest_token(self) -> int | None:
        """The bytes of the longest token, if tokens joined are the bytes of any text; else None.

        A vocabulary of words may have one token for all words that it does not know.
        """
        if not isinstance(self.tokenizer, BPETokenizer):
            return None
        return max(len(self.tokenizer.token_bytes(token)) for token in range(self.n_vocab))

    @property
    def n_vocab(self) -> int:
        """How many ids can be read and chosen; the model may have more, as padding."""
        return min(self.tokenizer.n_vocab, self.model.config.n_vocab)


class Entry:
    """A model that is served, whether it is in memory or not."""

    def __init__(self, name: str, source: Source, names: set[str]) -> None:
        self.name = name  # what answers call it
        self.source = source
        self.loaded: Loaded | None = None
        self.used = 0.0  # when it was asked for last
        self.users = 0  # requests that hold it in memory
        self._names = {each.lower() for each in names}

    def is_called(self, asked: str) -> bool:
        """Whether a client may mean this model by a name."""
        return asked.lower() in self._names or (
            (size := canonical_size(asked)) is not None and size.lower() in self._names
        )


def entries(sources: Sequence[Source], served_names: Sequence[str]) -> list[Entry]:
    """Return the models to serve, with the names that clients may use for each."""
    if len(served_names) > len(sources):
        raise ConfigError(
            f"served_name is given {len(served_names)} times for {len(sources)} models; "
            "expected one for each model at most"
        )
    found = []
    for i, source in enumerate(sources):
        names = _names(source)
        served = served_names[i] if i < len(served_names) else names[0]
        found.append(Entry(served, source, {served, *names}))
    names = [entry.name for entry in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models are called {names}; tell them apart by served_name")
    return found


def _names(source: Source) -> list[str]:
    """Return what a model may be called, the best name first."""
    if isinstance(source, tuple):
        return ["model"]
    typed = str(source)
    names = [Path(typed).name] if isinstance(source, Path) or "/" in typed else []
    return [*names, typed, *([size] if (size := canonical_size(typed)) else [])]


class Models:
    """All models of a server."""

    def __init__(
        self,
        found: Sequence[Entry],
        *,
        settings: Settings,
        worker: Worker,
        metrics: Metrics,
        load: Load = load,
    ) -> None:
        self.entries = list(found)
        self._settings = settings
        self._worker = worker
        self._metrics = metrics
        self._load = load
        self._loading: asyncio.Lock | None = None  # of the event loop that first needs it

    def named(self, asked: str | None) -> Entry:
        """Return the model that a client asks for, the first one by default; or raise Refusal."""
        if asked is None:
            return self.entries[0]
        for entry in self.entries:
            if entry.is_called(asked):
                return entry
        raise model_not_found(asked, [entry.name for entry in self.entries])

    @contextmanager
    def holding(self, entry: Entry) -> Iterator[None]:
        """Keep a model from being let go meanwhile."""
        entry.users += 1
        entry.used = time.monotonic()
        try:
            yield
        finally:
            entry.users -= 1

    async def loaded(self, entry: Entry) -> Loaded:
        """Return a model in memory, after loading it if needed; or raise Refusal.

        If memory is short, models that no request uses are let go, the least used first.
        """
        if entry.loaded is not None:
            return entry.loaded
        self._loading = self._loading or asyncio.Lock()
        async with self._loading:
            if entry.loaded is None:
                while not await asyncio.to_thread(self._fits, entry):
                    if not self._let_one_go():
                        raise not_ready(
                            f"there is not enough memory to load {entry.name} now; try again"
                        )
                entry.loaded = await _in_daemon_thread(functools.partial(self._make, entry))
                self._worker.add(entry.loaded.batch)
            return entry.loaded

    def _in_memory(self) -> list[Loaded]:
        return [entry.loaded for entry in self.entries if entry.loaded is not None]

    def _fits(self, entry: Entry) -> bool:
        """Whether there is memory for one more model, as far as one can tell.

        It will have the device and the dtype of the others. The first always fits.
        """
        others = self._in_memory()
        if isinstance(entry.source, tuple) or not others:
            return True
        model = others[0].model
        free = free_memory(model.device)
        config = open_checkpoint(store.find(entry.source)).config
        slots = self._settings.parallel * slot_bytes(config, model.dtype)
        needed = config.n_params * model.dtype.itemsize + slots
        return free is None or needed + sum(other.n_bytes for other in others) <= free

    def _let_one_go(self) -> bool:
        """Let the least used model go that no request uses; return whether there was one."""
        idle = [
            each
            for each in self.entries
            if each.loaded and not each.users and not isinstance(each.source, tuple)
        ]
        if not idle:
            return False
        least = min(idle, key=lambda each: each.used)
        assert least.loaded is not None
        self._worker.remove(least.loaded.batch)
        least.loaded = None
        return True

    def _make(self, entry: Entry) -> Loaded:
        """Load a model, and let it take a first step."""
        source = entry.source
        try:
            model, vocabulary = source if isinstance(source, tuple) else self._load(source)
            tokenizer = require_tokenizer(vocabulary, entry.name)
            for typed in self._settings.steer:
                _steer(model, tokenizer, typed)
            n_vocab = min(tokenizer.n_vocab, model.config.n_vocab)
            held = sum(other.n_bytes for other in self._in_memory())
            slots = slots_that_fit(model, self._settings.parallel, held=held)
            batch = Batch(model, slots=slots, n_vocab=n_vocab, metrics=self._metrics)
            now = int(time.time())
            steer = self._settings.steer
            loaded = Loaded(model, tokenizer, batch, fingerprint(model), now, steer)
        except (Gpt2KitError, OSError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) or isinstance(error, OutOfMemoryError):
                raise not_ready(f"there is not enough memory to load {entry.name}") from error
            raise
        loaded.batch.warm_up(Row([0], _ONE_TOKEN, model.config))
        return loaded


def _steer(model: GPT2, tokenizer: Tokenizer, typed: str) -> None:
    """Add a vector to a model for good, and log how large it is."""
    given = steering_of(typed, model, tokenizer)
    if bias_of(model, given) is None:
        raise ConfigError(
            f"{typed!r} is no constant that a bias of this model can hold, which serve needs"
        )
    steer(model, given)
    log.info("steering: %s: adds a vector of norm %.1f at every position", typed, given.norm)


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Return what work returns; the process may end meanwhile, but not while asyncio's threads run.

    Loading takes long, and nobody needs the model of a server that stops.
    """
    found: Future[T] = Future()

    def run() -> None:
        found.set_running_or_notify_cancel()
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name="gpt2kit-load", daemon=True).start()
    return await asyncio.wrap_future(found)


_ONE_TOKEN = Request(max_tokens=1, seed=0, sampling=Sampling(temperature=0))


def slot_bytes(config: GPT2Config, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values of one text as long as the window."""
    return 2 * config.n_layer * config.n_ctx * config.n_embd * dtype.itemsize


def weight_bytes(model: GPT2) -> int:
    """Return the bytes of a model's weights."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def slots_that_fit(model: GPT2, most: int, *, held: int = 0) -> int:
    """Return how many texts a model can write at once: `most`, or fewer if memory is short.

    `held` are bytes that other models have.
    """
    free = free_memory(model.device)  # with what this process has already
    if free is None:
        return most
    room = int(_SHARE_FOR_SLOTS * (free - held - weight_bytes(model)))
    return max(1, min(most, room // slot_bytes(model.config, model.dtype)))


def fingerprint(model: GPT2) -> str:
    """Return a name for this model as it computes here: version, dtype and a sum of its weights."""
    crc = 0
    for _, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        data.flags.writeable = False  # google_crc32c takes read-only memory only
        crc = google_crc32c.extend(crc, data)
    return f"gpt2kit-{__version__}-{dtype_name(model)}-{crc:08x}"


def dtype_name(model: GPT2) -> str:
    """Return the type of a model's numbers, or int8."""
    return "int8" if model.is_quantized else str(model.dtype).removeprefix("torch.")
