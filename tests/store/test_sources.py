"""What an unreachable or failing server leaves the user to do."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from servers import FakeHub, FakeOpenAI

from gpt2kit.errors import DownloadError
from gpt2kit.store import hub, sources
from gpt2kit.store.download import download
from gpt2kit.store.retries import Patience

NOWHERE = "http://127.0.0.1:1"  # no server listens on this port
QUICK = Patience(connect=2, read=2, backoff=0.01, lookups=2, tries=2)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both sources be unreachable, with no proxy and no mirror set."""
    for variable in list(os.environ):
        if variable.lower().endswith("_proxy") or variable.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(variable)
    monkeypatch.delenv("GPT2KIT_OPENAI_URL", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setattr(hub, "HUB_URL", NOWHERE)
    monkeypatch.setattr(sources, "OPENAI_URL", NOWHERE)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let both sources answer that they are overloaded."""
    servers = FakeHub(), FakeOpenAI()
    for server in servers:
        server.order("", "status", status=503, times=99)
    monkeypatch.setattr(hub, "HUB_URL", servers[0].url)
    monkeypatch.setattr(sources, "OPENAI_URL", servers[1].url)
    yield
    for server in servers:
        server.close()


def message(model: str = "124M", source: str = "hub", revision: str | None = None) -> str:
    """Return the error of a download."""
    with pytest.raises(DownloadError) as caught:
        download(model, source=source, revision=revision, patience=QUICK)
    return str(caught.value)


def test_an_unreachable_source_names_the_other_one_a_proxy_and_a_mirror() -> None:
    # It said "Try again later" and nothing else.
    found = message()
    assert "no connection" in found
    assert "gave up after 2 tries" in found
    assert "OpenAI has the same weights: gpt2kit download 124M --source openai" in found
    assert "If a proxy is needed here, set HTTP_PROXY" in found
    assert found.endswith("If you use a mirror, set HF_ENDPOINT")
    assert "GPT2KIT_OPENAI_URL" not in found
    found = message(source="openai")
    assert "The Hub has the same weights: gpt2kit download 124M." in found
    assert found.endswith("If you use a mirror, set GPT2KIT_OPENAI_URL")
    assert "HF_ENDPOINT" not in found


@pytest.mark.parametrize(
    ("model", "revision"), [("distilgpt2", None), ("org/novel", None), ("124M", "main")]
)
def test_the_other_source_is_named_only_if_it_has_the_same_weights(
    model: str, revision: str | None
) -> None:
    found = message(model, revision=revision)
    assert "--source openai" not in found
    assert "set HTTP_PROXY" in found


@pytest.mark.parametrize(
    ("source", "variable"), [("hub", "HF_ENDPOINT"), ("openai", "GPT2KIT_OPENAI_URL")]
)
def test_a_mirror_that_is_set_is_shown_instead_of_proposed(
    source: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://user:secret@127.0.0.1:2")
    found = message(source=source)
    assert found.endswith(f"{variable} is http://127.0.0.1:2: is that right?")
    assert "secret" not in found


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://user:secret@127.0.0.1:3", "http://127.0.0.1:3"])
def test_a_proxy_that_is_set_is_shown_instead_of_proposed(
    variable: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    found = message()
    assert f"{variable} is http://127.0.0.1:3: is that right? If you use a mirror" in found
    assert "secret" not in found
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "set HTTP_PROXY" in message()


@pytest.mark.usefixtures("failing")
def test_a_server_that_answers_needs_no_proxy_and_no_mirror() -> None:
    found = message()
    assert found.endswith("OpenAI has the same weights: gpt2kit download 124M --source openai")
    assert "503" in found
    assert message(source="openai").endswith("The Hub has the same weights: gpt2kit download 124M")
    assert message("org/novel").endswith("Try again later")
