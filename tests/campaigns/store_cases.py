"""Cases of downloads: a server that misbehaves by a seed, what was kept, and the next download."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import shutil
import ssl
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from servers import FakeHub, FakeOpenAI, FakeServer, Fault

from campaigns.cases import Result, TooSlow, limited_time
from gpt2kit import store
from gpt2kit.errors import DownloadError, Gpt2KitError
from gpt2kit.store import catalogue
from gpt2kit.store.catalogue import Publication, PublishedFile
from gpt2kit.store.download import Patience, download
from gpt2kit.store.integrity import CHECKED

SECONDS = 5.0
HONEST_SECONDS = 20.0
EVERY = 50  # cases after which threads and memory are compared
GROWTH = 100 * 2**20  # bytes of memory that a hostile server may cost
TOKEN = "hf_ThisIsASecretOfTheCampaign"
REPOSITORY = "acme/tiny-gpt2"
PATIENCE = Patience(
    connect=1.0,
    read=0.5,
    stall=0.2,
    floor=20_000,
    tries=3,
    lookups=2,
    progress=1000,
    give_up=2.0,
    backoff=0.002,
    longest_backoff=0.01,
    longest_retry_after=0.01,
)
HONEST = Patience(backoff=0.002, longest_backoff=0.01)

_draw = random.Random(0)
HUB_NAMES = ("config.json", "merges.txt", "model.safetensors")
HUB_FILES = {name: _draw.randbytes(20_000 if "model" in name else 40) for name in HUB_NAMES}
OPENAI_NAMES = ("hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001")
OPENAI_FILES = {name: _draw.randbytes(20_000 if "data" in name else 40) for name in OPENAI_NAMES}


def _pinned(name: str, content: bytes) -> PublishedFile:
    """Return what the catalogue knows: of some files the hash, of others the size only."""
    known = name not in ("merges.txt", OPENAI_NAMES[-1])
    return PublishedFile(name, len(content), hashlib.sha256(content).hexdigest() if known else None)


PUBLICATION = Publication(
    repository="openai-community/gpt2",
    hub_files=tuple(_pinned(name, content) for name, content in HUB_FILES.items()),
    openai_directory="124M",
    openai_files=tuple(_pinned(name, content) for name, content in OPENAI_FILES.items()),
)


@dataclass
class Scene:
    """A source of files for one case, and another server to which it may lead."""

    source: str  # "hub" or "openai"
    model: str
    server: FakeHub | FakeOpenAI
    elsewhere: FakeServer
    files: dict[str, bytes]  # the right ones
    may_differ: bool = False  # whether no hash says which bytes are right
    big: str = ""  # the name of the weights
    lookup: tuple[str, str] = ("", "")  # end of the path and method of the first request
    names: list[str] = field(default_factory=list)

    def order(self, path: str, **how: object) -> None:
        """Let something go wrong with the next requests whose path ends so."""
        self.server.faults.append(Fault(path, **{"kind": "wire", **how}))  # type: ignore[arg-type]


Trouble = Callable[[Scene, random.Random, int], None]
Download = Callable[[str, str, Patience], Path]


def honest_client(model: str, source: str, patience: Patience) -> Path:
    """Download as gpt2kit does."""
    return download(model, source=source, patience=patience)


@dataclass(frozen=True)
class StoreTarget:
    """A kind of hostile server; `trouble` orders what goes wrong."""

    name: str
    trouble: Trouble
    client: Download = honest_client
    limits_memory: bool = False  # threads map more than they use
    stuck: float = 90.0

    def prepare(self, folder: Path) -> StoreCases:
        """Start the servers."""
        return StoreCases(self, folder)


class StoreCases:
    """Downloads from servers on this machine, each known by its seed."""

    def __init__(self, target: StoreTarget, folder: Path) -> None:
        self.target = target
        self._weights = folder / "weights"
        self._hub, self._openai, self._elsewhere = FakeHub(), FakeOpenAI(), FakeServer()
        self._patch = pytest.MonkeyPatch()
        for variable in list(os.environ):
            if variable.lower().endswith("_proxy") or variable.startswith(("HF_", "HUGGING")):
                self._patch.delenv(variable)
        self._patch.delenv("TRANSFORMERS_OFFLINE", raising=False)
        for name, value in {
            "GPT2KIT_WEIGHTS": str(self._weights),
            "HF_ENDPOINT": self._hub.url,
            "GPT2KIT_OPENAI_URL": self._openai.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "hf"),
        }.items():
            self._patch.setenv(name, value)
        # Certificates take longer to read than such a download; nobody here speaks TLS.
        self._patch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)
        self._patch.setattr(catalogue, "PUBLICATIONS", {"124M": PUBLICATION})
        self._restore()
        for source in ("hub", "openai"):
            self._honest("124M", source, HUB_FILES if source == "hub" else OPENAI_FILES)
        self._restore()
        self._threads = threading.active_count()
        self._memory = _peak()

    def _restore(self) -> None:
        """Put right what a case has changed."""
        for server in (self._hub, self._openai, self._elsewhere):
            server.faults.clear()
            server.log.clear()
            server.contents.clear()
        self._hub.lies.clear()
        for repository in ("openai-community/gpt2", REPOSITORY):
            self._hub.add(repository, dict(HUB_FILES))
        self._openai.add("124M", dict(OPENAI_FILES))
        shutil.rmtree(self._weights, ignore_errors=True)

    def _scene(self, draw: random.Random) -> Scene:
        if draw.random() < 0.4:
            return Scene("openai", "124M", self._openai, self._elsewhere, OPENAI_FILES,
                         big=OPENAI_NAMES[-1], lookup=("hparams.json", "HEAD"),
                         names=list(OPENAI_NAMES))  # fmt: skip
        model = draw.choice(["124M", REPOSITORY])
        return Scene("hub", model, self._hub, self._elsewhere, HUB_FILES, big=HUB_NAMES[-1],
                     lookup=("blobs=true", "GET"), names=list(HUB_NAMES))  # fmt: skip

    def describe(self, seed: int) -> tuple[str, bytes]:
        """Return which source misbehaves; there is no file."""
        scene = self._scene(random.Random(f"{self.target.name} {seed}"))
        return f"{scene.source}, {scene.model}", b""

    def run(self, seed: int) -> Result:
        """Download from a server that misbehaves, and then from one that does not."""
        draw = random.Random(f"{self.target.name} {seed}")
        scene = self._scene(draw)
        self.target.trouble(scene, draw, seed)
        try:
            result = self._outcome(scene)
            if problem := self._leaked():
                result = Result("failed", problem)
            if result.outcome == "refused":
                self._restore_server(scene)
                self._honest(scene.model, scene.source, scene.files)
        except (Exception, TooSlow) as error:
            return Result("failed", f"the next download: {type(error).__name__}: {error}")
        finally:
            self._restore()
        if result.outcome != "failed" and seed % EVERY == EVERY - 1:
            return self._lost() or result
        return result

    def _restore_server(self, scene: Scene) -> None:
        """Let a server be honest again, and keep what was downloaded."""
        kept = self._weights.with_name("kept")
        if self._weights.exists():
            self._weights.rename(kept)
        self._restore()
        if kept.exists():
            kept.rename(self._weights)

    def _outcome(self, scene: Scene) -> Result:
        try:
            with _quiet(), limited_time(SECONDS):
                path = self.target.client(scene.model, scene.source, PATIENCE)
        except DownloadError as error:
            if left := self._half_written():
                return Result("failed", f"{left} is left after: {error}")
            if TOKEN in f"{error} {error.url}":
                return Result("failed", f"the token is in the message: {error}")
            return Result("refused", str(error))
        except Gpt2KitError as error:
            return Result("failed", f"another error, {type(error).__name__}: {error}")
        except (Exception, TooSlow) as error:
            return Result("failed", f"{type(error).__name__}: {error}")
        found = _content(path)
        if found == scene.files:
            return Result("same")
        if scene.may_differ and {n: len(c) for n, c in found.items()} == {
            n: len(c) for n, c in scene.files.items()
        }:
            return Result("undetectable")
        wrong = [
            name for name in {*found, *scene.files} if found.get(name) != scene.files.get(name)
        ]
        return Result("failed", f"{', '.join(sorted(wrong))} of {path.name} is wrong")

    def _half_written(self) -> str:
        """Return the name of something that looks like a model, though the download failed."""
        if not self._weights.exists():
            return ""
        return next((path.name for path in self._weights.iterdir() if path.name[0] != "."), "")

    def _leaked(self) -> str:
        """Say whether another server was sent the token."""
        for request in (*self._elsewhere.log, *self._openai.log):
            if TOKEN in str(request):
                return f"the token was sent elsewhere: {request.path}"
        return ""

    def _honest(self, model: str, source: str, files: dict[str, bytes]) -> None:
        with _quiet(), limited_time(HONEST_SECONDS):
            path = honest_client(model, source, HONEST)
        if _content(path) != files:
            raise AssertionError(f"{path.name} is not the model")

    def _lost(self) -> Result | None:
        """Return a failure if threads were lost, or too much memory was taken."""
        end = time.monotonic() + SECONDS
        while threading.active_count() > self._threads + 3 and time.monotonic() < end:
            time.sleep(0.05)
        if (threads := threading.active_count()) > self._threads + 3:
            return Result("failed", f"{threads} threads, after {self._threads}")
        if (memory := _peak()) > self._memory + GROWTH:
            return Result("failed", f"{memory:,} bytes of memory at most, after {self._memory:,}")
        return None

    def close(self) -> None:
        """End the servers, and put the environment back."""
        self._patch.undo()
        for server in (self._hub, self._openai, self._elsewhere):
            server.close()


def _content(path: Path) -> dict[str, bytes]:
    skipped = (store.MANIFEST, CHECKED)
    return {each.name: each.read_bytes() for each in path.iterdir() if each.name not in skipped}


def _peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
