"""Run the tests with the oldest versions of all dependencies that are allowed, or with the newest.

    python scripts/check_versions.py lowest
    python scripts/check_versions.py newest

The bounds are those of pyproject.toml. The script makes a virtual environment in a temporary
folder, installs gpt2kit there, runs the default tests, and prints one line with the versions that
were tested. It needs the package registry, several gigabytes and about fifteen minutes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lower_bounds(pyproject: Path) -> list[str]:
    """Return every dependency pinned to its lower bound, extras included: ["torch==2.10", …]."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [
        line.replace(">=", "==")
        for group in groups
        for line in group
        if re.search(r"[\w\]]>=\d", line)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("which", choices=("lowest", "newest"))
    parser.add_argument("--torch", help="take this version of torch instead, such as 2.13.0")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, such as -x tests/engine")
    arguments = parser.parse_args()
    pins = lower_bounds(ROOT / "pyproject.toml") if arguments.which == "lowest" else []
    if arguments.torch:
        pins = [pin for pin in pins if not pin.startswith("torch==")]
        pins.append(f"torch=={arguments.torch}")
    with tempfile.TemporaryDirectory(prefix="gpt2kit-versions-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder, "bin", "python"))
        install = [python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[dev,tensorboard]", *pins]
        subprocess.run([*install, "--upgrade-strategy", "eager", "--upgrade"], check=True)
        tests = subprocess.run([python, "-m", "pytest", *arguments.pytest], cwd=ROOT)
        listed = [python, "-m", "pip", "list", "--format", "freeze"]
        versions = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    names = {re.split(r"[=<>\[]", pin)[0].lower() for pin in lower_bounds(ROOT / "pyproject.toml")}
    tested = [line for line in versions.splitlines() if line.split("==")[0].lower() in names]
    print(f"{'passed' if tests.returncode == 0 else 'failed'} with {', '.join(tested)}")
    return tests.returncode


if __name__ == "__main__":
    raise SystemExit(main())
