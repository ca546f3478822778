"""plan.json: read back as it was written, and refused if somebody changed what it is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.bulk import plan
from gpt2kit.bulk.sources import Input, Part
from gpt2kit.errors import FileError


def write(path: Path, **changes: Any) -> plan.Plan:
    """Publish a plan of one part, then change fields of the part's entry."""
    inputs = (Input("a.jsonl", 120, 1, "ab" * 32),)
    parts = (Part(0, "a.jsonl", "bytes", 0, 120, 1, 10, "", 120),)
    made = plan.Plan({"model": "124M"}, ("text",), "filter", inputs, parts)
    plan.publish(path, made)
    content = json.loads(path.read_text())
    content["inputs"][0].update(changes)
    path.write_text(json.dumps(content))
    return made


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert write(tmp_path / "plan.json") == plan.read(tmp_path / "plan.json")


@pytest.mark.parametrize("change", [{"size": "12"}, {"size": True}, {"name": None}, {"new": 1}])
def test_an_entry_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    # A size that was a text ended a worker in a traceback, long after the plan was read.
    write(tmp_path / "plan.json", **change)
    with pytest.raises(FileError, match="not a plan of gpt2kit"):
        plan.read(tmp_path / "plan.json")
