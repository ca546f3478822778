"""Who may use the server: keys, the Host header, other sites."""

from __future__ import annotations

from pathlib import Path

import pytest
from serve_builders import connected, tiny

from gpt2kit.errors import ConfigError, FileError
from gpt2kit.serve.access import host_name, is_loopback, read_keys
from gpt2kit.serve.asgi import application
from gpt2kit.serve.settings import Settings


def test_keys_come_from_options_files_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("one\n\n two \n")
    monkeypatch.setenv("GPT2KIT_API_KEY", "from-environment")
    assert read_keys(["a", f"@{tmp_path / 'keys'}"]) == ("a", "one", "two")
    assert read_keys([]) == ("from-environment",)
    monkeypatch.delenv("GPT2KIT_API_KEY")
    assert read_keys([]) == ()


def test_keys_that_cannot_be_sent_or_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an API key"):
        read_keys(["two words"])
    with pytest.raises(FileError, match="cannot be read"):
        read_keys([f"@{tmp_path / 'none'}"])
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(FileError, match="no API key"):
        read_keys([f"@{tmp_path / 'empty'}"])


def test_without_the_key_only_health_is_answered() -> None:
    settings = Settings(api_key=("first", "second"))
    with connected(settings=settings) as client:
        for path in ("/v1/models", "/metrics", "/tokenizer_info", "/v1/nothing"):
            response = client.get(path)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/health").status_code == 200
        assert client.get("/health/live").status_code == 200
        for headers in (
            {"authorization": "Bearer first"},
            {"authorization": "bearer second"},
            {"x-api-key": "second"},
        ):
            assert client.get("/v1/models", headers=headers).status_code == 200
        for headers in (
            {"authorization": "Bearer firs"},
            {"authorization": "Bearer first2"},
            {"authorization": "Basic first"},
            {"authorization": "Bearer "},
            {"x-api-key": "\xe9"},
            {"authorization": "Bearer first\xa0"},  # a space for Python, and no space in HTTP
        ):
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            assert client.get("/v1/models", headers=raw).status_code == 401


def test_a_foreign_host_is_refused_on_this_machines_own_address() -> None:
    """A page of evil.com whose name points to 127.0.0.1 could otherwise use the server."""
    with connected(settings=Settings(allowed_host=("gpt2.example",))) as client:
        for host in ("evil.com", "evil.com:8000", "127.0.0.1.evil.com"):
            response = client.get("/v1/models", headers={"host": host})
            assert response.status_code == 403, host
            assert response.json()["error"]["code"] == "foreign_host"
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "gpt2.example"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200, host
        # HAProxy checks health in HTTP/1.0 without a Host, and took a healthy server for dead.
        assert client.get("/health", headers={"host": ""}).status_code == 200


@pytest.mark.parametrize(
    ("typed", "host"),
    [
        ("gpt2.example:80", "gpt2.example"),
        ("gpt2.example:80", "gpt2.example:8000"),
        ("GPT2.example.", "gpt2.example"),
        ("[fd00::1]:80", "[fd00::1]"),
        ("FD00::1", "[fd00::1]:8000"),
    ],
)
def test_an_allowed_host_may_be_typed_as_a_header_has_it(typed: str, host: str) -> None:
    """A port was compared with names, which have none, so the name was never allowed."""
    with connected(settings=Settings(allowed_host=(typed,)), start=False) as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
        assert client.get("/v1/models", headers={"host": "evil.com"}).status_code == 403


def test_an_allowed_host_is_no_address_of_a_page() -> None:
    with pytest.raises(ConfigError, match=r"'http://a', expected a name .* such as gpt2.example"):
        Settings(allowed_host=("http://a",))


def test_any_host_is_allowed_on_other_addresses() -> None:
    with connected(base_url="http://192.0.2.7:8000", start=False) as client:
        assert client.get("/v1/models", headers={"host": "server.example"}).status_code == 200


def test_host_names_are_read_as_browsers_write_them() -> None:
    assert host_name("LocalHost:8000") == "localhost"
    assert host_name("[::1]:8000") == "::1"
    assert host_name("example.com.") == "example.com"
    assert host_name("localhost:1:evil") == "localhost:1:evil"  # was read as localhost
    assert is_loopback("127.9.9.9")
    # With --host :: this machine's own address is written so, and any Host was let in.
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:192.0.2.7")
    assert not is_loopback("127.evil.com")


def test_no_site_may_call_unless_it_was_named() -> None:
    origin = {"origin": "https://example.com"}
    with connected(start=False) as client:
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
        asked = client.request(
            "OPTIONS",
            "/v1/completions",
            headers={**origin, "access-control-request-method": "POST"},
        )
        assert asked.status_code == 405
        # What a page can send without asking first is not read.
        plain = client.post(
            "/v1/completions", content=b"{}", headers={**origin, "content-type": "text/plain"}
        )
        assert plain.status_code in (415, 503)


@pytest.mark.parametrize("origin", ["https://example.com/", "example.com", "https://Example.com"])
def test_a_site_that_no_browser_names_so_is_refused(origin: str) -> None:
    """With a slash at its end it was accepted, and its pages were refused."""
    with pytest.raises(ConfigError, match="cors_origin is .*, such as https://example.com, or"):
        Settings(cors_origin=(origin,))
    assert Settings(cors_origin=("http://localhost:3000", "*")).cors_origin


def test_a_named_site_may_call_with_every_header_and_reads_errors() -> None:
    settings = Settings(cors_origin=("https://example.com",), api_key=("k",))
    with connected(application(tiny(), settings=settings), start=False) as client:
        asked = client.request(
            "OPTIONS",
            "/v1/completions",
            headers={
                "origin": "https://example.com",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,x-stainless-os",
            },
        )
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://example.com"
        assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in asked.headers
        refused = client.get("/v1/models", headers={"origin": "https://example.com"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://example.com"
        other = client.get("/v1/models", headers={"origin": "https://evil.com"})
        assert "access-control-allow-origin" not in other.headers
