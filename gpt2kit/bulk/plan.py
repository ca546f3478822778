"""plan.json: what is computed from what, in numbered parts; every worker must agree with it.

Whoever comes first writes it. The number of workers is not in it, so that it may change.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from gpt2kit.bulk import claims, cutting
from gpt2kit.bulk.sources import Input, Part
from gpt2kit.errors import ConfigError, FileError
from gpt2kit.evaluation.conditions import Buckets
from gpt2kit.files import fsync_directory, part_of, read_json, sweep_parts

Entry = TypeVar("Entry", Input, Part)

FORMAT = 2  # of the plan and of the files that parts become
_LARGEST = 2**31  # bytes of a plan
_WAIT = 0.2  # seconds between two looks for a plan that another worker is making


@dataclass(frozen=True)
class Plan:
    """What is computed (`identity`, a flat mapping by name), from which files, in which parts."""

    identity: Mapping[str, Any]
    columns: tuple[str, ...]
    gives: str
    inputs: tuple[Input, ...]
    parts: tuple[Part, ...]
    buckets: Buckets | None = None  # how the rows are divided when the parts are merged

    @cached_property
    def rows(self) -> int:
        """Rows of all inputs."""
        return sum(part.rows for part in self.parts)

    def path_of(self, part: Part) -> Path:
        """Return where the input file of a part is on this machine."""
        return next(each.path for each in self.inputs if each.name == part.file)


def agree(
    folder: Path,
    named: Sequence[tuple[str, Path]],
    identity: Mapping[str, Any],
    make: Callable[[], Plan],
) -> Plan:
    """Return the plan of a folder, written now if there is none.

    Of several workers that come at once one makes it, and the others wait. Raises
    ConfigError that names each difference if the folder was begun with another plan.
    """
    path = folder / "plan.json"
    token = claims.new_token()
    claim = claims.Claim(folder / "claims" / "plan", token)
    while not path.exists():
        try:
            if claims.take(claim.path, token) is None:
                time.sleep(_WAIT)
            elif not path.exists():
                with claims.Heartbeat() as heartbeat:
                    heartbeat.hold(claim)
                    publish(path, make())
        finally:
            claim.release()
    return compared(read(path), named, identity)


def publish(path: Path, plan: Plan) -> None:
    """Write a plan, unless another worker has written one."""
    part = part_of(path)
    sweep_parts(path)
    content = {
        **asdict(plan),
        "format": FORMAT,
        "inputs": [
            {name: value for name, value in asdict(each).items() if name != "path"}
            for each in plan.inputs
        ],
        # A list for each part: their names would be most of the file.
        "parts": [list(asdict(each).values()) for each in plan.parts],
    }
    try:
        with part.open("wb") as file:
            file.write((json.dumps(content) + "\n").encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
        fsync_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> Plan:
    """Read a plan; raises FileError for a file that is no plan, or one of another version."""
    found = read_json(path, largest=_LARGEST)
    if found.get("format") != FORMAT:
        raise FileError(path, f"a plan of format {found.get('format')}, expected {FORMAT}")
    try:
        return Plan(
            identity=found["identity"],
            columns=tuple(found["columns"]),
            gives=found["gives"],
            inputs=tuple(_of_kinds(Input(**each)) for each in found["inputs"]),
            parts=tuple(_of_kinds(Part(*each)) for each in found["parts"]),
            buckets=found["buckets"] and Buckets(**found["buckets"]),
        )
    except (KeyError, TypeError) as error:
        raise FileError(path, f"not a plan of gpt2kit: {error}") from error


def _of_kinds(entry: Entry) -> Entry:
    """Return an entry of a plan; raises TypeError for a text that should be a number, say."""
    kinds = {"int": int, "str": str}  # annotations are texts
    for each in fields(entry):
        value, kind = getattr(entry, each.name), kinds.get(str(each.type))
        if kind and type(value) is not kind:
            raise TypeError(f"{each.name} is {_shown(value)}")
    return entry


def compared(plan: Plan, named: Sequence[tuple[str, Path]], identity: Mapping[str, Any]) -> Plan:
    """Return the plan with the paths of its inputs here, after checking that nothing differs."""
    identity = json.loads(json.dumps(identity))  # lists in place of tuples
    problems = [
        f"{name} was {_shown(plan.identity.get(name))} and is {_shown(identity.get(name))}"
        for name in dict.fromkeys((*plan.identity, *identity))
        if plan.identity.get(name) != identity.get(name)
    ]
    paths = dict(named)
    before = {each.name for each in plan.inputs}
    problems += [f"the input {name} is new" for name in paths if name not in before]
    problems += [
        f"the input {each.name} is missing" for each in plan.inputs if each.name not in paths
    ]
    problems += [
        f"the input {each.name} has changed"
        for each in plan.inputs
        if each.name in paths and _has_changed(each, paths[each.name])
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConfigError(
            f"the results of two different commands cannot be mixed: {'; '.join(problems[:5])}"
            f"{more}. Name another folder with --out, or give the command of the first time"
        )
    return replace(plan, inputs=tuple(replace(each, path=paths[each.name]) for each in plan.inputs))


def _has_changed(before: Input, path: Path) -> bool:
    """Whether an input has other bytes: they are read only if its size or time tells nothing."""
    status = path.stat()
    if status.st_size != before.size:
        return True
    return status.st_mtime_ns != before.modified and cutting.sha256_of(path) != before.sha256


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:12]}…{text[-5:]}"
