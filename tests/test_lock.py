"""requirements.lock: the versions of constraints.txt, each with hashes, and all that CI needs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_IN_CI = {"tensorboard", "tensorboard-data-server", "absl-py", "grpcio", "markdown", "werkzeug"}


def versions(text: str) -> dict[str, str]:
    """Return the version of each package that a file of requirements pins."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", text, re.M)
    return {canonicalize_name(name): version for name, version in found}


def needed(requirements: list[str], extras: set[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the names and extras that requirements ask for on this machine."""
    for line in requirements:
        requirement = Requirement(line)
        environments = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def ci_packages() -> set[str]:
    """Return the names of all packages that the extra named dev brings, as far as installed."""
    own = {**EXTRAS["optional-dependencies"], "": EXTRAS["dependencies"]}
    todo = [each for line in own["dev"] for each in needed([line], set())]
    todo += needed(own[""], set())
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        if name == "gpt2kit":
            todo += needed([line for extra in extras for line in own[extra]], set())
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        todo += needed(lines, {"", *extras})
    return {name for name, _ in seen} - {"gpt2kit"}


def test_every_locked_version_is_that_of_the_constraints_and_has_hashes() -> None:
    locked, pinned = versions(LOCK), versions((ROOT / "constraints.txt").read_text())
    assert locked == {
        name: version for name, version in pinned.items() if name not in {"torch", *NOT_IN_CI}
    }
    entries = re.split(r"\n(?=\S+==)", LOCK)[1:]
    assert len(entries) == len(locked)
    assert all(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert "://" not in LOCK  # it names no package index: that is each machine's own choice


def test_everything_that_the_tests_need_is_locked_but_torch() -> None:
    # tzdata came without a fixed version: a package that pandas needs had begun to need it.
    packages = ci_packages()
    assert {"pandas", "pyarrow", "uvicorn", "typer", "sympy"} <= packages  # the walk goes deep
    assert packages - versions(LOCK).keys() == {"torch"}
    assert not packages & NOT_IN_CI
