"""Two replicas behind nginx, with the configuration that docs/serve.md shows."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from serve_builders import ENDLESS, running, tiny, wait_until

from gpt2kit.serve.asgi import Application, application
from gpt2kit.serve.settings import Settings

PAGE = Path(__file__).parent.parent.parent / "docs" / "serve.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


@contextmanager
def nginx(folder: Path, replicas: list[str]) -> Iterator[str]:
    """Run nginx with the page's configuration in front of two replicas, and yield its URL."""
    found = re.search(r"^```nginx\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    port = free_port()
    shown = found[1].replace("listen 8000", f"listen 127.0.0.1:{port}")
    for number, url in zip((8001, 8002), replicas, strict=True):
        shown = shown.replace(f"127.0.0.1:{number}", urlsplit(url).netloc)
    folders = "".join(
        f"{kind}_temp_path {folder};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log {folder}/log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{folders}{shown}}}\n"
    )
    process = subprocess.Popen(
        ["nginx", "-p", str(folder), "-e", f"{folder}/log", "-c", f"{folder}/nginx.conf"]
    )

    def answers() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def two_replicas(folder: Path, settings: Settings) -> Iterator[tuple[list[Application], str]]:
    """Run two replicas behind nginx; yield them and its URL."""
    apps = [application(tiny(), settings=settings) for _ in range(2)]
    with (
        running(app=apps[0]) as first,
        running(app=apps[1]) as second,
        nginx(folder, [first, second]) as url,
    ):
        yield apps, url


def are_idle(apps: list[Application]) -> bool:
    return not any(app.service.limits.requests for app in apps)


def test_a_replica_may_be_busy_or_stop_and_every_request_is_answered(tmp_path: Path) -> None:
    with (
        two_replicas(tmp_path, Settings(parallel=1, queue=0)) as (apps, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):

        def ask() -> str:
            found = client.completions.create(model="model", prompt="The", seed=1)
            return found.choices[0].text

        texts = {ask() for _ in range(6)}
        assert len(texts) == 1
        assert all(app.service.metrics.request.mean for app in apps), "both replicas answer"
        stream = client.completions.create(
            model="model",
            prompt="The",
            max_tokens=ENDLESS["max_tokens"],
            stream=True,
            extra_body={"overflow": "slide", "ignore_eos": True},
        )
        next(iter(stream))  # one of them is busy now, and refuses others with 429
        assert {ask() for _ in range(4)} == texts
        stream.close()
        wait_until(lambda: are_idle(apps))
        apps[0].service.life.state = "draining"  # it refuses with 503
        assert {ask() for _ in range(4)} == texts


def test_a_client_that_leaves_nginx_frees_its_slot(tmp_path: Path) -> None:
    with two_replicas(tmp_path, Settings()) as (apps, url):
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        body, headers = json.dumps(ENDLESS), {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)
        wait_until(lambda: not are_idle(apps))
        connection.close()
        wait_until(lambda: are_idle(apps))
