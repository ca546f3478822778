"""Several models: by which names, loaded when, and let go when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from serve_builders import CONFIG, Client, connected, tiny

from gpt2kit.checkpoints.load import load
from gpt2kit.errors import ConfigError
from gpt2kit.serve.asgi import application
from gpt2kit.serve.models import entries, fingerprint, slot_bytes, slots_that_fit, weight_bytes
from gpt2kit.serve.settings import Settings


@pytest.fixture
def names(weights: Path) -> list[str]:
    """Three models of the weights folder."""
    found = ["124M", "novel", "poems"]
    for seed, name in enumerate(found):
        model = make_model(CONFIG, seed=seed)
        add_vocabulary(write_hub(weights / name, model, n_positions=CONFIG.n_ctx))
    return found


def loaded(client: Client) -> list[str]:
    listed = client.get("/v1/models").json()["data"]
    return [each["id"] for each in listed if each["loaded"]]


def test_a_model_answers_to_every_name_that_means_it() -> None:
    (size,) = entries(["124M"], ())
    assert all(size.is_called(name) for name in ("124M", "gpt2", "openai-community/gpt2", "GPT2"))
    assert not size.is_called("355M")
    (folder,) = entries([Path("weights/novel")], ())
    assert folder.name == "novel"
    assert folder.is_called("weights/novel")
    (named,) = entries(["weights/novel"], ["book"])
    assert named.name == "book"
    assert named.is_called("novel")
    with pytest.raises(ConfigError, match="given 2 times for 1 models"):
        entries(["a"], ["b", "c"])
    with pytest.raises(ConfigError, match="two models are called"):
        entries(["a", "b"], ["a", "a"])


def test_models_are_loaded_when_they_are_asked_for(names: list[str]) -> None:
    with connected(application(*names)) as client:
        assert loaded(client) == ["124M"]
        first = client.complete(prompt="The", seed=1, max_tokens=9)
        assert first["model"] == "124M"
        other = client.complete(prompt="The", seed=1, max_tokens=9, model="novel")
        assert other["model"] == "novel"
        assert loaded(client) == ["124M", "novel"]
        assert first["choices"] != other["choices"]
        assert first["system_fingerprint"] != other["system_fingerprint"]
        same = client.complete(prompt="The", seed=1, max_tokens=9, model="gpt2")
        assert same["choices"] == first["choices"]
        assert client.get("/tokenizer_info?model=poems").status_code == 200
        assert loaded(client) == names


def test_the_least_used_model_is_let_go_where_memory_is_short(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(application(*names)) as client:
        client.texts(prompt="a", model="novel", max_tokens=1)
        client.texts(prompt="a", model="124M", max_tokens=1)
        kept = client.app.service.models.entries[0].loaded

        assert kept is not None
        # Enough for two of these models, which are equally large, and not for three.
        monkeypatch.setattr("gpt2kit.serve.models.free_memory", lambda _: int(2.5 * kept.n_bytes))
        client.texts(prompt="a", model="poems", max_tokens=1)
        assert loaded(client) == ["124M", "poems"]
        assert client.app.service.models.entries[0].loaded is kept
        assert client.texts(prompt="The", seed=1, max_tokens=9)


def test_a_model_that_is_in_use_stays(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(application(*names)) as client:
        monkeypatch.setattr("gpt2kit.serve.models.free_memory", lambda _: 0)
        models = client.app.service.models
        with models.holding(models.entries[0]):
            response = client.post("/v1/completions", {"prompt": "a", "model": "novel"})
        assert response.status_code == 503
        assert "not enough memory" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) > 0
        assert loaded(client) == ["124M"]


def test_a_model_that_cannot_be_loaded_fails_its_requests_only(
    names: list[str], weights: Path
) -> None:
    (weights / "novel" / "model.safetensors").write_bytes(b"broken")
    with connected(application(*names)) as client:
        status, error = client.error(prompt="a", model="novel")
        assert (status, error["code"]) == (500, "model_failed")
        assert str(weights) not in error["message"]
        assert client.texts(prompt="a", max_tokens=1)
        assert client.get("/health").status_code == 200


def test_without_memory_for_a_model_the_client_may_try_again(names: list[str]) -> None:
    def short(source: str | Path) -> Any:
        if source == "novel":
            raise MemoryError
        return load(source)

    with connected(application(*names, load=short)) as client:
        response = client.post("/v1/completions", {"prompt": "a", "model": "novel"})
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0


def test_there_are_fewer_slots_if_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny()
    one = slot_bytes(CONFIG, model.dtype)
    assert one == 2 * 2 * 64 * 16 * 4
    assert slots_that_fit(model, 8) == 8
    own = weight_bytes(model)
    assert own > 4 * 512 * 16
    for room, expected in ((10 * one, 8), (5 * one, 4), (0, 1), (-own, 1)):
        monkeypatch.setattr("gpt2kit.serve.models.free_memory", lambda _, free=own + room: free)
        assert slots_that_fit(model, 8) == expected
        assert slots_that_fit(model, 8, held=10**9) == 1


def test_the_fingerprint_depends_on_weights_and_dtype() -> None:
    model, _ = tiny()
    first = fingerprint(model)
    assert first == fingerprint(tiny()[0])
    assert first != fingerprint(make_model(CONFIG, seed=1))
    assert first.startswith("gpt2kit-")
    assert "-float32-" in first


def test_clients_see_the_served_name(names: list[str]) -> None:
    settings = Settings(served_name=("mine",))
    with connected(application(*names, settings=settings)) as client:
        assert client.complete(prompt="a", max_tokens=1)["model"] == "mine"
        assert client.complete(prompt="a", max_tokens=1, model="124M")["model"] == "124M"
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [
            "mine",
            *names[1:],
        ]
