"""Downloads from servers that misbehave: complete or not at all, never mixed, never endless.

The servers are on this machine and huggingface_hub is the real one. Every test asserts that its
fault happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from servers import COMMIT, FakeHub, FakeOpenAI, FakeServer, in_an_hour, silent_listener

from gpt2kit import store
from gpt2kit.errors import DownloadError, Gpt2KitWarning
from gpt2kit.store import catalogue
from gpt2kit.store.catalogue import Publication, PublishedFile
from gpt2kit.store.download import Patience, Silent, download, download_vocabulary
from gpt2kit.store.integrity import CHECKED
from gpt2kit.store.transfer import Transfer

TOKEN = "hf_ThisIsASecretOfTheTests"
OTHER_COMMIT = "beef" + "0" * 36
PATIENCE = Patience(
    connect=2,
    read=1.5,
    stall=0.3,
    floor=20_000,
    tries=4,
    lookups=3,
    progress=10_000,
    backoff=0.01,
    longest_backoff=0.05,
    longest_retry_after=0.05,
)


def _contents(names: list[str], weights: str, seed: int = 0) -> dict[str, bytes]:
    generator = random.Random(seed)
    return {name: generator.randbytes(300_000 if name == weights else 40) for name in names}


HUB_FILES = _contents(
    ["config.json", "generation_config.json", "vocab.json", "merges.txt", "model.safetensors"],
    "model.safetensors",
)
OPENAI_DATA = "model.ckpt.data-00000-of-00001"
OPENAI_FILES = _contents(
    ["checkpoint", "encoder.json", "hparams.json", "model.ckpt.index", "vocab.bpe", OPENAI_DATA],
    OPENAI_DATA,
)


def _known(name: str, contents: bytes) -> PublishedFile:
    # The data file has no pinned hash, like most of OpenAI's: the server's Content-MD5 guards it.
    return PublishedFile(
        name,
        len(contents),
        None if name in (OPENAI_DATA, "merges.txt") else hashlib.sha256(contents).hexdigest(),
    )


SMALL_CATALOGUE = {
    "124M": Publication(
        repository="openai-community/gpt2",
        hub_files=tuple(_known(name, contents) for name, contents in HUB_FILES.items()),
        openai_directory="124M",
        openai_files=tuple(_known(name, contents) for name, contents in OPENAI_FILES.items()),
    ),
    "distilgpt2": Publication(
        repository="distilbert/distilgpt2", hub_files=(), openai_directory=None
    ),
}


class Recorder(Silent):
    """Records what a download reports."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, int, int]] = []
        self.advances = 0
        self.files: list[str] = []
        self.notes: list[str] = []

    def started(self, file: str, total: int, already: int) -> None:
        self.starts.append((file, total, already))

    def advanced(self, n: int) -> None:
        self.advances += n

    def finished(self, file: str) -> None:
        self.files.append(file)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Origin(SimpleNamespace):
    """One of the two sources, with a server of this test."""

    source: str
    server: Any  # FakeHub or FakeOpenAI
    files: dict[str, bytes]
    big: str  # the name of the weights

    def fetch(self, **how: Any) -> Path:
        return download(
            how.pop("model", "124M"), source=self.source, **{"patience": PATIENCE, **how}
        )

    @property
    def target(self) -> Path:
        return store.weights_dir() / store.directory_name("124M", self.source)

    @property
    def part(self) -> Path:
        return store.staging_dir(self.target.name) / f"{self.big}.part"

    def assert_whole(self, files: dict[str, bytes] | None = None) -> None:
        """Assert that the model is there with the right bytes and manifest, and nothing else."""
        files = files or self.files
        assert {
            path.name: path.read_bytes()
            for path in self.target.iterdir()
            if path.name not in (store.MANIFEST, CHECKED)
        } == files
        manifest = store.Manifest.read(self.target)
        assert manifest is not None
        assert manifest.source == self.source
        assert manifest.files == {
            name: (len(contents), hashlib.sha256(contents).hexdigest())
            for name, contents in files.items()
        }
        assert {path.name for path in store.weights_dir().iterdir()} <= {
            self.target.name,
            f".{self.target.name}.lock",
        }


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if (
            variable.lower().endswith("_proxy")
            or variable.startswith(("HF_", "HUGGING"))
            or variable == "TRANSFORMERS_OFFLINE"
        ):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("GPT2KIT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("GPT2KIT_OPENAI_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    # Otherwise huggingface_hub sends a request of its own, once a day.
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(catalogue, "PUBLICATIONS", SMALL_CATALOGUE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    server = FakeHub()
    server.add(
        "openai-community/gpt2",
        HUB_FILES | {"README.md": b"x", "onnx/config.json": b"x", "..\\evil.json": b"x"},
    )
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield Origin(source="hub", server=server, files=HUB_FILES, big="model.safetensors")
    server.close()


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    server = FakeOpenAI()
    server.add("124M", OPENAI_FILES)
    monkeypatch.setenv("GPT2KIT_OPENAI_URL", server.url)
    yield Origin(source="openai", server=server, files=OPENAI_FILES, big=OPENAI_DATA)
    server.close()


@pytest.fixture(params=["hub", "openai"])
def origin(request: pytest.FixtureRequest) -> Origin:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Origin)
    return found


def _child(source: str, limit: int | None = None) -> subprocess.Popen[str]:
    """Start a process that downloads 124M."""
    code = f"import test_download; test_download.download_in_child({source!r}, {limit})"
    paths = [
        *(str(folder) for folder in Path(__file__).parents[:2]),
        str(Path(__file__).parents[2]),
    ]
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def download_in_child(source: str, limit: int | None) -> None:
    """Download in a process of its own, which prints nothing but an error."""
    import resource

    catalogue.PUBLICATIONS = SMALL_CATALOGUE
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        download("124M", source=source, patience=PATIENCE)
    except DownloadError as error:
        print(error)


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


@contextlib.contextmanager
def _refused(*words: str) -> Iterator[None]:
    """Assert that the block raises a DownloadError with these words, soon and without the token."""
    began = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        yield
    assert time.monotonic() - began < 20
    assert TOKEN not in repr((str(caught.value), caught.value.url))
    for word in words:
        assert word in str(caught.value)


# Downloads that succeed.


def test_gpt2s_vocabulary_is_fetched_without_a_model_and_once(hub: Origin) -> None:
    folder = download_vocabulary(patience=PATIENCE)
    assert folder == store.vocabulary_dir()
    names = {"vocab.json", "merges.txt"}
    assert {path.name for path in folder.iterdir()} - {CHECKED} == {*names, store.MANIFEST}
    assert all((folder / name).read_bytes() == HUB_FILES[name] for name in names)
    assert [model for model in store.installed() if not model.is_bundled] == []
    hub.server.close()
    assert download_vocabulary(patience=PATIENCE) == folder


def test_offline_the_vocabulary_is_not_asked_for(
    hub: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with _refused("GPT-2's vocabulary", "HF_HUB_OFFLINE"):
        download_vocabulary(patience=PATIENCE)


def test_a_download_is_whole_and_only_what_is_needed_is_fetched(origin: Origin) -> None:
    progress = Recorder()
    assert origin.fetch(progress=progress) == origin.target
    origin.assert_whole()
    assert progress.files[-1] == origin.big
    assert sorted(progress.files) == sorted(origin.files)
    assert progress.starts == [(name, len(origin.files[name]), 0) for name in progress.files]
    assert progress.advances == sum(map(len, origin.files.values()))
    assert (
        sum(request.sent for request in origin.server.log if "/api/" not in request.path)
        == progress.advances
    )
    manifest = json.loads((origin.target / store.MANIFEST).read_text())
    assert manifest["revision"] == (COMMIT if origin.source == "hub" else None)


def test_a_complete_model_needs_no_network(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.fetch()
    origin.server.log.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert origin.fetch(model="gpt2") == origin.target
    assert origin.server.log == []
    (origin.target / origin.big).write_bytes(b"cut short")
    with _refused("HF_HUB_OFFLINE", "not complete"):
        origin.fetch()
    assert origin.server.log == []


def test_offline_says_so_without_a_request(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with _refused("HF_HUB_OFFLINE", "124M is not on this machine"):
        origin.fetch()
    assert origin.server.log == []
    assert not store.weights_dir().exists()


def test_a_missing_connection_is_reported_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("hub", "openai"):
        with _refused("no connection", "3 tries"):
            download("124M", source=source, patience=PATIENCE)
    assert not store.weights_dir().exists()


def test_force_fetches_again_and_an_installed_revision_does_not(hub: Origin) -> None:
    hub.fetch()
    hub.server.log.clear()
    hub.fetch(revision=COMMIT)
    assert hub.server.log == []
    hub.fetch(revision="main")
    assert [request.path.partition("?")[0] for request in hub.server.log] == [
        "/api/models/openai-community/gpt2/revision/main"
    ]
    hub.fetch(force=True)
    assert hub.server.gets(hub.big)
    hub.assert_whole()


def test_another_revision_replaces_the_installed_one(hub: Origin) -> None:
    hub.fetch()
    newer = HUB_FILES | {"model.safetensors": b"another model"}
    hub.server.add("openai-community/gpt2", newer, OTHER_COMMIT)
    hub.fetch(revision="main")
    hub.assert_whole(newer)


def test_without_verification_two_revisions_are_not_mixed(hub: Origin) -> None:
    """A file that the older revision's download had completed passed for the newer one's."""
    hub.server.order(hub.big, "cut", times=9)
    with pytest.warns(Gpt2KitWarning, match="not checked"), _refused("gave up"):
        hub.fetch(verify=False)
    assert hub.server.fired("cut")
    hub.server.faults.clear()
    newer = {name: bytes(len(contents)) for name, contents in HUB_FILES.items()}
    hub.server.add("openai-community/gpt2", newer, OTHER_COMMIT)
    with pytest.warns(Gpt2KitWarning, match="not checked"):
        hub.fetch(verify=False, revision="main")
    hub.assert_whole(newer)


@pytest.mark.parametrize("verify", [True, False])
def test_without_verification_a_wrong_hash_passes_with_a_warning(
    origin: Origin, verify: bool
) -> None:
    origin.server.order(origin.big, "flip", times=9)
    if verify:
        with _refused("expected"):
            origin.fetch()
        assert not origin.target.exists()
    else:
        with pytest.warns(Gpt2KitWarning, match="not checked"):
            origin.fetch(verify=False)
        assert origin.target.exists()
    assert origin.server.fired("flip")


def test_any_gpt2_of_the_hub_is_fetched_with_its_shards_and_nothing_else(hub: Origin) -> None:
    files = {
        name: name.encode()
        for name in ("config.json", "tokenizer.json", "pytorch_model.bin.index.json")
    }
    files |= {f"pytorch_model-0000{i}-of-00002.bin": b"%d" % i for i in (1, 2)}
    hub.server.add("acme/tiny-gpt2", files | {"training_args.bin": b"x", "tf_model.h5": b"x"})
    path = hub.fetch(model="acme/tiny-gpt2")
    assert path.name == "acme--tiny-gpt2"
    assert {file.name for file in path.iterdir()} == {*files, store.MANIFEST, CHECKED}
    del files["pytorch_model-00002-of-00002.bin"]
    hub.server.add("acme/half", files)
    with _refused("acme/half", "only 1"):
        hub.fetch(model="acme/half")
    hub.server.add("acme/onnx", {"config.json": b"{}", "model.onnx": b"x"})
    with _refused("no weights"):
        hub.fetch(model="acme/onnx")


def test_adapters_of_peft_are_fetched_without_their_model(hub: Origin) -> None:
    """They were refused, since there is no config.json beside them."""
    files = {
        name: name.encode()
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    }
    others = ("adapter_model.bin", "optimizer.pt", "README.md")
    hub.server.add("acme/lora", files | dict.fromkeys(others, b"x"))
    path = hub.fetch(model="acme/lora")
    assert {file.name for file in path.iterdir()} == {*files, store.MANIFEST, CHECKED}
    assert store.find("acme/lora") == path


# Refused before the first byte of a file.


@pytest.mark.parametrize(
    ("model", "how", "words"),
    [
        ("125M", {}, ["gpt2kit download 124M"]),
        ("gpt2-mediun", {"source": "openai"}, ["gpt2kit download 355M"]),
        ("../evil", {}, ["not a published"]),
        ("distilgpt2", {"source": "openai"}, ["OpenAI did not publish distilgpt2"]),
        ("acme/tiny-gpt2", {"source": "openai"}, ["--source hub"]),
        ("124M", {"source": "openai", "revision": "main"}, ["no revisions"]),
        ("124M", {"source": "mars"}, ["hub or openai"]),
    ],
)
def test_an_impossible_download_is_refused_before_any_request(
    hub: Origin, openai: Origin, model: str, how: dict[str, str], words: list[str]
) -> None:
    with _refused(*words):
        download(model, patience=PATIENCE, **how)  # type: ignore[arg-type]
    assert hub.server.log == openai.server.log == []


def test_a_pinned_file_that_the_hub_describes_differently_is_refused_unless_a_revision_is_asked_for(
    hub: Origin,
) -> None:
    changed = HUB_FILES | {"model.safetensors": bytes(300_000)}
    hub.server.add("openai-community/gpt2", changed)
    with _refused("model.safetensors", "--revision main"):
        hub.fetch()
    assert hub.server.gets(".safetensors") == []
    hub.fetch(revision="main")
    hub.assert_whole(changed)


def test_a_file_of_openai_with_another_size_is_refused(openai: Origin) -> None:
    openai.server.order(OPENAI_DATA, "length", method="HEAD")
    with _refused("300,001 bytes, expected 300,000"):
        openai.fetch()
    assert openai.server.fired("length") == 1
    assert not store.weights_dir().exists()


def test_a_disk_that_is_too_small_is_reported_before_the_first_byte(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1234))
    with _refused("needs 300,", "1,234 are free"):
        origin.fetch()
    assert origin.server.gets(origin.big) == []
    assert not store.staging_dir(origin.target.name).exists()


@pytest.mark.parametrize("where", ["target", "folder", "inside a file"])
def test_a_folder_that_is_not_writable_is_one_error_and_nothing_is_left(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "target":
        store.weights_dir().mkdir()
        origin.target.write_text("mine")
    elif where == "folder":
        store.weights_dir().write_text("mine")
    else:
        (tmp_path / "file").write_text("mine")
        monkeypatch.setenv("GPT2KIT_WEIGHTS", str(tmp_path / "file" / "weights"))
    before = sorted(tmp_path.rglob("*"))
    with _refused("GPT2KIT_WEIGHTS"):
        origin.fetch()
    assert sorted(path for path in tmp_path.rglob("*") if "hf" not in path.parts) == before


def test_a_directory_that_is_not_a_download_is_replaced_only_with_force(origin: Origin) -> None:
    origin.target.mkdir(parents=True)
    (origin.target / "thesis.txt").write_text("years of work")
    with _refused("not downloaded by gpt2kit", "--force"):
        origin.fetch()
    assert origin.server.log == []
    origin.fetch(force=True)
    origin.assert_whole()


# Connections that break.


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_broken_connection_is_resumed(origin: Origin, kind: str) -> None:
    origin.server.order(origin.big, kind, after=200_000)
    origin.fetch()
    origin.assert_whole()
    assert origin.server.fired(kind) == 1
    first, second = origin.server.gets(origin.big)
    start = int(second.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= first.sent == 200_000
    assert second.sent == 300_000 - start
    assert second.status == 206


def test_a_connection_that_always_breaks_is_an_error_and_its_bytes_are_kept(origin: Origin) -> None:
    origin.server.order(origin.big, "cut", after=50_000)
    origin.server.order(origin.big, "cut", times=99)
    with _refused("gave up after 4 tries"):
        origin.fetch()
    assert origin.server.fired("cut") == 4
    assert _size(origin.part) == 50_000
    assert not origin.target.exists()
    origin.server.faults.clear()
    origin.fetch()
    origin.assert_whole()
    assert origin.server.gets(origin.big)[-1].sent == 250_000


def test_a_server_without_ranges_that_always_breaks_is_not_asked_endlessly(origin: Origin) -> None:
    for _ in range(20):
        origin.server.order(origin.big, "cut", after=100_000, headers={"ETag": 'W/"weak"'})
    with _refused("gave up"):
        origin.fetch()
    assert 4 <= origin.server.fired("cut") <= 5
    assert not any("range" in request.headers for request in origin.server.log)


def test_a_killed_download_continues_in_the_next_process(origin: Origin) -> None:
    origin.server.order(origin.big, "hold", after=200_000)
    child = _child(origin.source)
    try:
        _until(lambda: _size(origin.part) == 200_000)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert origin.server.fired("hold") == 1
    assert not origin.target.exists()
    small = [name for name in origin.files if name != origin.big]
    assert all(len(origin.server.gets(f"/{name}")) == 1 for name in small)

    progress = Recorder()
    origin.fetch(progress=progress)  # the lock of the killed process is free
    origin.assert_whole()
    assert origin.server.gets(origin.big)[-1].headers["range"] == "bytes=200000-"
    assert origin.server.gets(origin.big)[-1].sent == 100_000
    assert (origin.big, 300_000, 200_000) in progress.starts
    assert all(len(origin.server.gets(f"/{name}")) == 1 for name in small)


def test_ctrl_c_leaves_a_part_that_can_be_resumed(origin: Origin) -> None:
    class Stopping(Recorder):
        def advanced(self, n: int) -> None:
            super().advanced(n)
            if self.advances > 100_000:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        origin.fetch(progress=Stopping())
    kept = _size(origin.part)
    assert kept > 50_000
    origin.fetch()
    origin.assert_whole()
    assert origin.server.gets(origin.big)[-1].sent == 300_000 - kept


def test_a_server_that_never_answers_is_given_up(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = Patience(connect=0.3, read=0.2, tries=2, lookups=2, backoff=0.01)
    with silent_listener() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("GPT2KIT_OPENAI_URL", url)
        with _refused("no answer in time", "2 tries"):
            origin.fetch(patience=impatient)
    monkeypatch.setenv("HF_ENDPOINT", origin.server.url)
    monkeypatch.setenv("GPT2KIT_OPENAI_URL", origin.server.url)
    origin.server.order(origin.big, "hang", times=9)
    with _refused("no answer in time", origin.big):
        origin.fetch(patience=Patience(connect=1, read=0.5, tries=2, backoff=0.01))
    assert origin.server.fired("hang") == 2


def test_a_very_slow_transfer_is_interrupted(origin: Origin) -> None:
    origin.server.order(origin.big, "drip", after=100_000)
    origin.server.order(origin.big, "drip", times=99)
    with _refused("only", "gave up"):
        origin.fetch()
    assert origin.server.fired("drip") >= 4
    assert _size(origin.part) > 100_000


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_temporary_failure_is_tried_again(origin: Origin, status: int) -> None:
    lookup, method = ("?blobs=true", "GET") if origin.source == "hub" else ("checkpoint", "HEAD")
    origin.server.order(lookup, "status", status=status, method=method)
    origin.server.order(origin.big, "status", status=status, times=2)
    progress = Recorder()
    origin.fetch(progress=progress)
    origin.assert_whole()
    assert origin.server.fired("status") == 3
    assert sum(str(status) in note for note in progress.notes) == 3


# The processes that run the tests must give them the same names, so no name has the time in it.
@pytest.mark.parametrize(
    "wait", ["86400", in_an_hour(), "nonsense"], ids=["seconds", "date", "nonsense"]
)
def test_a_server_that_asks_for_a_day_gets_the_longest_wait_we_allow(
    origin: Origin, wait: str
) -> None:
    origin.server.order(origin.big, "status", status=429, times=99, headers={"Retry-After": wait})
    with _refused("429", "gave up after 4 tries"):
        origin.fetch()
    assert origin.server.fired("status") == 4


# Wrong bytes.


@pytest.mark.parametrize("kind", ["flip", "length"])
def test_wrong_bytes_are_fetched_once_more_from_zero(origin: Origin, kind: str) -> None:
    origin.server.order(origin.big, kind)
    progress = Recorder()
    origin.fetch(progress=progress)
    origin.assert_whole()
    assert origin.server.fired(kind) == 1
    assert len(origin.server.gets(origin.big)) == 2
    assert any("again from the start" in note for note in progress.notes)


@pytest.mark.parametrize("small", [True, False])
def test_bytes_that_are_wrong_twice_are_deleted(origin: Origin, small: bool) -> None:
    name = (
        ("merges.txt" if origin.source == "hub" else "vocab.bpe") if small else origin.big
    )  # merges.txt has a git hash only
    origin.server.order(f"/{name}", "flip", times=9)
    with _refused(name, "expected", "deleted"):
        origin.fetch()
    assert origin.server.fired("flip") == 2
    assert not origin.target.exists()
    assert not any(
        path.name.startswith(name) for path in store.staging_dir(origin.target.name).iterdir()
    )


def test_a_kept_part_with_a_wrong_byte_is_noticed_at_the_end(origin: Origin) -> None:
    origin.server.order(origin.big, "cut", after=50_000)
    origin.server.order(origin.big, "cut", times=9)
    with _refused("gave up"):
        origin.fetch()
    origin.server.faults.clear()
    origin.part.write_bytes(bytes(50_000))
    origin.fetch()
    origin.assert_whole()
    assert [request.status for request in origin.server.gets(origin.big)[-2:]] == [206, 200]


@pytest.mark.parametrize("kind", ["whole", "misrange", "status"])
def test_a_response_that_does_not_continue_the_part_means_starting_at_zero(
    origin: Origin, kind: str
) -> None:
    origin.server.order(origin.big, "cut", after=200_000)
    origin.server.order(origin.big, kind, status=416 if kind == "status" else 0)
    progress = Recorder()
    origin.fetch(progress=progress)
    assert progress.starts[-2:] == [(origin.big, 300_000, 0)] * 2  # started, and started again
    origin.assert_whole()
    assert origin.server.fired(kind) == 1
    assert "range" in origin.server.gets(origin.big)[1].headers
    assert origin.server.gets(origin.big)[-1].sent == 300_000


@pytest.mark.parametrize(
    "etag", ['"\xe9"', '"' + "e" * 60_000 + '"', '"\x01"'], ids=["not ASCII", "long", "control"]
)
def test_a_strange_etag_is_not_sent_back(origin: Origin, etag: str) -> None:
    """One that is not ASCII was a UnicodeEncodeError.

    A long one was kept, and an honest server refused it in every later download.
    """
    origin.server.order(origin.big, "cut", after=200_000, headers={"ETag": etag})
    origin.fetch()
    origin.assert_whole()
    assert origin.server.fired("cut") == 1
    assert not any("range" in request.headers for request in origin.server.log)


def test_a_range_of_thousands_of_digits_means_starting_at_zero(origin: Origin) -> None:
    """Python does not convert such a number: it was a ValueError."""
    digits = "9" * 5000
    origin.server.order(origin.big, "cut", after=200_000)
    lie = {"Content-Range": f"bytes {digits}-{digits}/*"}
    origin.server.order(origin.big, "range", headers=lie, speak=_with(lie))
    origin.fetch()
    origin.assert_whole()
    assert origin.server.fired("range") == 1


def _with(headers: dict[str, str]) -> Callable[[socket.socket, bytes], None]:
    """Return what answers with these headers, and without those of the same names."""

    def speak(connection: socket.socket, answer: bytes) -> None:
        first, *lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        kept = [line for line in lines if line.partition(":")[0] not in headers]
        new = [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([first, *kept, *new, "", ""]).encode())

    return speak


def test_a_description_that_drips_is_given_up(hub: Origin) -> None:
    def drip(connection: socket.socket, answer: bytes) -> None:
        for offset in range(len(answer)):
            connection.sendall(answer[offset : offset + 1])
            if offset > 300:
                time.sleep(0.02)

    hub.server.order("blobs=true", "drip", speak=drip, times=9)
    with _refused("did not end in time", "gave up"):
        hub.fetch(patience=replace(PATIENCE, connect=0.1, read=0.1, lookups=2))
    assert hub.server.fired("drip") == 2


def test_a_file_that_changed_between_two_runs_is_not_mixed(openai: Origin) -> None:
    openai.server.order(OPENAI_DATA, "cut", after=200_000)
    openai.server.order(OPENAI_DATA, "cut", times=9)
    with _refused("gave up"):
        openai.fetch()
    assert openai.server.fired("cut") == 4
    openai.server.faults.clear()
    changed = OPENAI_FILES | {OPENAI_DATA: bytes(300_000)}
    openai.server.add("124M", changed)
    openai.fetch()
    openai.assert_whole(changed)
    last = openai.server.gets(OPENAI_DATA)[-1]
    assert (last.headers["range"], last.status, last.sent) == ("bytes=200000-", 200, 300_000)


def test_a_web_page_is_recognized(origin: Origin) -> None:
    lookup, method = ("?blobs=true", "GET") if origin.source == "hub" else ("checkpoint", "HEAD")
    for where, how in ((lookup, method), (origin.big, "GET")):
        origin.server.order(where, "page", method=how)
        with _refused("proxy or login page"):
            origin.fetch()
    assert origin.server.fired("page") == 2
    assert not origin.target.exists()


def test_a_web_page_without_its_content_type_is_recognized(origin: Origin) -> None:
    path = next(path for path in origin.server.contents if path.endswith(origin.big))
    page = b"<?xml version='1.0'?><Error/>" + bytes(300_000 - 29)
    origin.server.contents[path] = page
    with _refused("proxy or login page"):
        origin.fetch()
    assert origin.server.gets(origin.big)


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"id": 3, "sha": null, "siblings": []}',
        b'{"id": "x", "siblings": [{}]}',
        b'{"id": "x", "sha": "c0", "siblings": [{"rfilename": 7}]}',  # was a TypeError
        b'{"id": "x", "sha": "c0", "siblings": [{"rfilename": []}]}',  # so was this
        b"[" * 100_000,  # was a RecursionError
        b" " * (2**24 + 1),  # was read whole, however much it was
    ],
)
def test_a_response_that_does_not_describe_a_model_is_one_error(
    hub: Origin, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(
        FakeHub, "page", lambda *_: (200, {"Content-Type": "application/json"}, answer)
    )
    with _refused("?"):
        hub.fetch()
    assert len(hub.server.log) == 1


# Refusals.


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "", ["or it is private", "hf auth login"]),
        (403, "", ["may not be read"]),
        (403, "GatedRepo", ["accept its license"]),
        (404, "EntryNotFound", ["no file model.safetensors"]),
        (404, "RevisionNotFound", ["no revision"]),
        (410, "", ["410"]),
    ],
)
def test_a_refusal_of_the_hub_says_at_once_what_to_do(
    hub: Origin, status: int, code: str, words: list[str]
) -> None:
    hub.server.order(hub.big, "status", status=status, headers={"X-Error-Code": code})
    with _refused(*words):
        hub.fetch()
    assert hub.server.fired("status") == 1


def test_wrong_names_and_revisions_are_told_apart(hub: Origin) -> None:
    with _refused("no repository openai-community/gpt3", "Did you mean openai-community/gpt2"):
        hub.fetch(model="openai-community/gpt3")
    with _refused("no revision v9"):
        hub.fetch(revision="v9")
    assert [request.status for request in hub.server.log] == [404, 404]


def test_a_file_that_is_not_in_openais_bucket_names_the_hub(openai: Origin) -> None:
    del openai.server.contents["/124M/hparams.json"]
    with _refused("404", "hparams.json", "gpt2kit download 124M"):
        openai.fetch()
    assert openai.server.log[-1].status == 404


# Who may read the token.


def test_the_token_goes_to_the_endpoint_and_never_to_where_it_redirects(
    hub: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = FakeServer()
    try:
        elsewhere.contents["/blob"] = HUB_FILES["model.safetensors"]
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.server.tokens = {TOKEN}
        hub.server.order(
            hub.big, "redirect", status=302, headers={"Location": f"{elsewhere.url}/blob"}
        )
        hub.server.order("config.json", "redirect", status=307, headers={"Location": "merges.txt"})
        hub.server.order("merges.txt", "redirect", status=307, headers={"Location": "config.json"})
        hub.fetch()
        hub.assert_whole()
        assert hub.server.fired("redirect") == 3
        assert all(
            request.headers["authorization"] == f"Bearer {TOKEN}" for request in hub.server.log
        )
        assert [request.headers.get("authorization") for request in elsewhere.log] == [None]
        assert TOKEN not in (hub.target / store.MANIFEST).read_text()
    finally:
        elsewhere.close()


def test_a_token_that_is_refused_or_damaged_is_not_quoted(
    hub: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.server.tokens = {"another"}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with _refused("the token was not accepted"):
        hub.fetch()
    assert hub.server.log[-1].status == 401
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\x07è")
    with _refused("invalid characters"):
        hub.fetch()


def test_redirects_end_and_never_leave_https(origin: Origin) -> None:
    origin.server.order(
        origin.big, "redirect", status=302, times=99, headers={"Location": origin.big}
    )
    with _refused("redirected more than"):
        origin.fetch()
    assert 5 < origin.server.fired("redirect") < 20
    origin.server.faults.clear()
    origin.server.order(
        origin.big, "redirect", status=302, headers={"Location": "file:///etc/passwd"}
    )
    with _refused("not followed"):
        origin.fetch()
    origin.server.faults.clear()
    # The name of this host cannot be looked up: it was a UnicodeError.
    origin.server.order(origin.big, "redirect", status=302, headers={"Location": "http://..:1/"})
    with _refused("invalid address"):
        origin.fetch()


@pytest.mark.parametrize("start", ["http", "https"])
@pytest.mark.parametrize("end", ["http", "https"])
def test_https_is_not_left_for_http(monkeypatch: pytest.MonkeyPatch, start: str, end: str) -> None:
    def answer(_: httpx2.Client, request: httpx2.Request, **__: object) -> httpx2.Response:
        asked.append(request.url.scheme)
        headers = {"Location": f"{end}://example.org/y"} if request.url.path == "/x" else {}
        return httpx2.Response(302 if headers else 200, headers=headers, request=request)

    asked: list[str] = []
    monkeypatch.setattr(httpx2.Client, "send", answer)
    transfer = Transfer(
        endpoint="https://example.org",
        headers={},
        refusal=str,
        patience=PATIENCE,
        progress=Silent(),
    )
    address = f"{start}://user:secret@example.org/x?signature=secret"
    with transfer:
        if (start, end) == ("https", "http"):
            with _refused("from https to http"):
                transfer.head(address)
            assert asked == ["https"]
        else:
            transfer.head(address)
            assert asked == [start, end]


@pytest.mark.parametrize(
    "address", ["ftp://127.0.0.1", "no address", "http://", "https://user:secret@"]
)
def test_an_endpoint_that_is_not_an_address_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("GPT2KIT_OPENAI_URL", address)
    for source, variable in (("hub", "HF_ENDPOINT"), ("openai", "GPT2KIT_OPENAI_URL")):
        with _refused(variable):
            download("124M", source=source, patience=PATIENCE)


# Several processes, and an older model in place.


def test_three_processes_fetch_the_model_once(hub: Origin) -> None:
    hub.server.order(hub.big, "hold", after=200_000)
    children = [_child("hub") for _ in range(3)]
    try:
        _until(lambda: sum("/api/models/" in request.path for request in hub.server.log) == 3)
        hub.server.released.set()  # the first one continues, with a broken connection
        outputs = [child.communicate(timeout=30) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0, 0, 0]
    assert outputs == [("", "")] * 3
    hub.assert_whole()
    assert hub.server.fired("hold") == 1
    assert sum(request.sent for request in hub.server.log if "/resolve/" in request.path) == sum(
        map(len, HUB_FILES.values())
    )


def test_a_disk_that_fills_up_is_reported_with_numbers_and_the_rest_is_fetched_later(
    hub: Origin,
) -> None:
    child = _child("hub", limit=150_000)
    output, errors = child.communicate(timeout=30)
    assert "the disk takes no more data" in output
    assert "bytes already fetched are kept" in output
    assert errors == ""
    assert _size(hub.part) == 150_000  # the limit was hit
    hub.fetch()
    hub.assert_whole()
    assert hub.server.gets(hub.big)[-1].headers["range"] == "bytes=150000-"


def test_an_update_that_fails_leaves_the_older_model_usable(origin: Origin) -> None:
    origin.fetch()
    origin.server.order(origin.big, "status", status=503, times=99)
    with _refused("503"):
        origin.fetch(force=True)
    assert origin.server.fired("status") == 4
    assert store.find(origin.target.name) == origin.target
    manifest = store.Manifest.read(origin.target)
    assert manifest is not None
    assert manifest.fits(origin.target)
    origin.server.faults.clear()
    origin.fetch(force=True)
    origin.assert_whole()


def test_a_download_killed_between_the_renames_is_repaired_without_network(
    hub: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fetch()
    hub.target.rename(hub.target.with_name(f".{hub.target.name}.old"))
    hub.server.log.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.fetch()
    hub.assert_whole()
    assert hub.server.log == []


def test_waiting_for_another_process_is_reported(hub: Origin) -> None:
    class Releasing(Recorder):
        def note(self, text: str) -> None:
            super().note(text)
            other.terminate()

    store.weights_dir().mkdir()
    code = (
        "import sys, time; from gpt2kit import store\n"
        "with store.locked('124M'): print('held', flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            progress = Releasing()
            hub.fetch(progress=progress)
        finally:
            other.kill()
    assert progress.notes == ["another process is downloading 124M; waiting for it"]
    hub.assert_whole()


def test_what_an_earlier_plan_left_does_not_become_part_of_the_model(origin: Origin) -> None:
    staging = store.staging_dir(origin.target.name)
    staging.mkdir(parents=True)
    for name in (
        "model-00001-of-00002.safetensors",
        "tokenizer.json.part",
        f"{origin.big}.part",
        f"{origin.big}.part.json",
    ):
        (staging / name).write_bytes(b"[")
    (staging / next(iter(origin.files))).write_bytes(
        bytes(40)
    )  # of the right size, with other contents
    origin.fetch()
    origin.assert_whole()


def test_a_download_killed_before_its_last_rename_needs_no_file_again(origin: Origin) -> None:
    staging = store.staging_dir(origin.target.name)
    staging.mkdir(parents=True)
    for name, contents in (origin.files | {store.MANIFEST: b"{"}).items():
        (staging / name).write_bytes(contents)
    origin.fetch()
    origin.assert_whole()
    assert [
        request.path
        for request in origin.server.log
        if request.method == "GET" and "/api/" not in request.path
    ] == []


def test_downloading_imports_no_torch() -> None:
    code = (
        "import sys; import gpt2kit.store.download\n"
        "sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
