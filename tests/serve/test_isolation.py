"""The server as an ordinary user: weights that it can only read, no home folder, no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from serve_builders import CONFIG, tiny

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "docs" / "examples" / "gpt2kit.service"
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
NOBODY = [*POWERLESS, "--reuid=65534", "--regid=65534", "--clear-groups"]

# Runs where the server runs: only there can it be reached.
CLIENT = """
import http.client, json, os, re, signal, subprocess, sys

interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
assert interfaces == ["lo"], interfaces
assert "HOME" not in os.environ
status = open("/proc/self/status").read()
assert re.search(r"CapEff:\\s+0+\\n", status), status
try:
    open(os.path.join(os.environ["GPT2KIT_WEIGHTS"], "tiny", "new"), "w")
except OSError:
    pass
else:
    raise SystemExit("the weights can be written")
command = [sys.executable, "-m", "gpt2kit", "serve", "--model", "tiny", "--port", "0"]
server = subprocess.Popen(command + sys.argv[1:], stderr=subprocess.PIPE, text=True)
said = ""
while not (port := re.search(r"http://127.0.0.1:(\\d+)", said)):
    line = server.stderr.readline()
    assert line, said
    said += line
connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=60)
body = json.dumps({"prompt": "The", "max_tokens": 5, "seed": 1})
connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
answer = json.load(connection.getresponse())
assert answer["usage"]["completion_tokens"] == 5, answer
assert ("int8" in said) == ("int8" in sys.argv), said  # that they cannot be kept
server.send_signal(signal.SIGTERM)
assert server.wait(30) == 0
print("answered")
"""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / "gpt2kit.service"
    text = UNIT.read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/gpt2kit/bin/gpt2kit", shutil.which("true") or ""))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    if "Failed to" in done.stderr and "manager" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(text.replace("ProtectSystem", "ProtectSystems"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert "ProtectSystems" in done.stderr  # it does look


def test_the_examples_start_the_server_with_options_that_it_has() -> None:
    for path in (UNIT, UNIT.with_name("Containerfile")):
        text = path.read_text(encoding="utf-8")
        given = {*re.findall(r"--(?:model|host|port|api_key|allowed_host|drain)\b", text)}
        assert {"--model", "--host", "--port"} <= given
        assert "GPT2KIT_WEIGHTS=/" in text


@pytest.fixture
def weights() -> Iterator[Path]:
    """A folder that every user may read, with a tiny model in it."""
    folder = Path(tempfile.mkdtemp(prefix="gpt2kit-isolated-"))
    model, _ = tiny()
    add_vocabulary(write_hub(folder / "tiny", model, n_ctx=CONFIG.n_ctx))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder
    shutil.rmtree(folder)


def works(*command: str) -> bool:
    """Whether a command can be run here."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [[], ["--quantize", "int8"]], ids=["float32", "int8"])
def test_it_answers_without_a_home_a_network_or_a_folder_to_write(
    weights: Path, quantize: list[str]
) -> None:
    alone = ["unshare", "--net", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    if not works(*alone, "true") or not works(*POWERLESS, "true"):
        pytest.skip("needs unshare and setpriv, and a system that lets this user use them")
    usable = "import subprocess, sys, torch; subprocess.run([sys.executable, '-V'], check=True)"
    user = NOBODY if works(*NOBODY, sys.executable, "-c", usable) else POWERLESS
    script = (
        "ip link set lo up && mount --bind $1 $1 && mount -o remount,bind,ro $1 && shift && "
        'exec "$@"'
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "GPT2KIT_WEIGHTS": str(weights),
    }
    command = [*alone, "sh", "-c", script, "sh", str(weights), *user]
    done = subprocess.run(
        [*command, sys.executable, "-c", CLIENT, *quantize],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
        timeout=120,
    )
    assert done.stdout == "answered\n", done.stderr
    assert not list(weights.rglob("*.gpt2kit-int8"))
