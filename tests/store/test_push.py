"""A folder pushed to a Hub on this machine; huggingface_hub is the real one, but for the upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import FakeHub, take_uploads

from gpt2kit.errors import ConfigError, DownloadError
from gpt2kit.store.push import push_folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    hub.tokens = {"hf_secret"}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield hub
    hub.close()


@pytest.fixture
def calls(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    return take_uploads(hub, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text(f"new {name}")
    return folder


def test_a_new_repository_is_private_unless_asked_otherwise(
    hub: FakeHub, calls: list[dict[str, Any]], folder: Path
) -> None:
    assert push_folder(folder, "me/novel").url == f"{hub.url}/me/novel"
    push_folder(folder, "me/open", public=True)
    assert hub.private == {"me/novel": True, "me/open": False}
    assert hub.repositories["me/novel"]["README.md"] == b"new README.md"
    assert len(calls) == 2


def test_a_card_that_is_there_is_replaced_only_on_demand(
    hub: FakeHub, calls: list[dict[str, Any]], folder: Path
) -> None:
    hub.add("me/novel", {"README.md": b"mine", "model.safetensors": b"old"})
    hub.private["me/novel"] = True
    assert push_folder(folder, "me/novel").kept_card
    assert hub.repositories["me/novel"]["README.md"] == b"mine"
    assert hub.repositories["me/novel"]["model.safetensors"] == b"new model.safetensors"
    assert not push_folder(folder, "me/novel", replace_card=True).kept_card
    assert hub.repositories["me/novel"]["README.md"] == b"new README.md"


def test_an_earlier_model_leaves_nothing_that_would_be_read_with_the_new_one(
    hub: FakeHub, calls: list[dict[str, Any]], folder: Path
) -> None:
    old = ("vocab.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "mine.txt")
    hub.add("me/novel", dict.fromkeys(old, b"old"))
    hub.private["me/novel"] = True
    push_folder(folder, "me/novel")
    assert hub.repositories["me/novel"].keys() == {
        *("config.json", "model.safetensors", "README.md", "mine.txt")
    }


@pytest.mark.parametrize("public", [False, True])
def test_nothing_is_pushed_to_a_repository_of_the_other_visibility(
    hub: FakeHub, calls: list[dict[str, Any]], folder: Path, public: bool
) -> None:
    hub.add("me/novel", {})
    hub.private["me/novel"] = public
    with pytest.raises(DownloadError, match="exists and is .*nothing was pushed; .*--public"):
        push_folder(folder, "me/novel", public=public)
    assert not calls


@pytest.mark.parametrize("name", ["novel", "me/", "a/b/c", "me/no vel", ""])
def test_a_repository_has_an_owner_and_a_name(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected USER/NAME"):
        push_folder(folder, name)


def test_every_failure_is_one_line_that_says_what_to_do(
    hub: FakeHub,
    calls: list[dict[str, Any]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said() -> str:
        with pytest.raises(DownloadError) as caught:
            push_folder(folder, "other/novel")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    hub.order("/create", "status", status=403, method="POST")
    assert "may not write to other/novel" in said()
    hub.order("/create", "status", status=500, method="POST")
    assert "the Hub answered 500" in said()
    assert hub.fired("status") == 2
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the token was not accepted" in said()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "no connection" in said()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "hf auth login" in said()
    assert not calls
