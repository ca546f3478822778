"""check_versions.py: which versions it pins."""

from __future__ import annotations

import tomllib
from pathlib import Path

from check_versions import ROOT, lower_bounds


def test_every_dependency_has_a_lower_bound_and_is_pinned_to_it() -> None:
    pins = lower_bounds(ROOT / "pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    listed = [line for group in groups for line in group]
    assert len(pins) == len([line for line in listed if not line.startswith("gpt2kit[")])
    assert all(pin.count("==") == 1 for pin in pins)


def test_a_bound_becomes_an_exact_version(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[project]\ndependencies = ["torch>=2.10"]\n'
        "[project.optional-dependencies]\n"
        'dev = ["gpt2kit[plots]", "ray[serve]>=2.60", "pytest>=8.4"]\n'
    )
    assert lower_bounds(file) == ["torch==2.10", "ray[serve]==2.60", "pytest==8.4"]
