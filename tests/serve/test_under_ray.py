"""Two replicas under Ray Serve, with the program that docs/serve.md shows."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from serve_builders import CONFIG, tiny

PAGE = Path(__file__).parent.parent.parent / "docs" / "serve.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]

# With two processors and no more, Ray would start one replica and wait for ever with the other.
BEFORE = "import ray\nray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)\n"
AFTER = """
import json, urllib.request

def ask(path, body=None):
    data = body and json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:8000{path}", data, {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=60).read().decode()

def complete(**body):
    return ask("/v1/completions", {"prompt": "The", "max_tokens": 5, "seed": 1, **body})

texts = {json.loads(complete())["choices"][0]["text"] for _ in range(20)}
counts = [
    int(line.split()[-1])
    for _ in range(10)
    for line in ask("/metrics").splitlines()
    if line.startswith('gpt2kit_requests_total{route="/v1/completions"')
]
stream = complete(stream=True)
with open("found.json", "w") as file:  # Ray writes to stdout, too
    json.dump({"texts": sorted(texts), "counts": counts, "stream": stream}, file)
serve.shutdown()
"""


def test_two_replicas_share_the_requests(weights: Path, tmp_path: Path) -> None:
    add_vocabulary(write_hub(weights / "124M", tiny()[0], n_positions=CONFIG.n_ctx))
    blocks = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (program,) = [block for block in blocks if "from ray import serve" in block]
    (tmp_path / "program.py").write_text(BEFORE + program + AFTER)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["texts"]) == 1
    assert all(0 < count < 20 for count in found["counts"])
    assert found["stream"].endswith("data: [DONE]\n\n")
