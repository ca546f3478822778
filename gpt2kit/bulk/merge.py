"""All finished parts as one file, after checking that every row is there once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.plan import Plan
from gpt2kit.bulk.sources import Part
from gpt2kit.data.streams import ROWS_AT_ONCE, write_batches
from gpt2kit.data.tables import Table, format_of, json_line
from gpt2kit.errors import ConfigError, FileError
from gpt2kit.evaluation.conditions import BUCKET, Buckets, Conditions, bucket, percentiles
from gpt2kit.files import new_file, read_json

_ROW = re.compile(rb'\{"row": (\d+)')


@dataclass(frozen=True)
class Merged:
    """What became of the parts."""

    rows: int  # that were written
    engines: list[str]  # what computed the parts
    cuts: list[float] | None  # the perplexities that divide the rows, if they are divided


def merge(folder: Folder, plan: Plan, target: Path) -> Merged:
    """Write all parts into one file, in order.

    The end of the target's name tells the format; .jsonl is the fastest. Raises FileError if a part
    is missing, is not as its receipt says, or has not each of its rows once; a filter may leave
    rows out, and words give several lines for one row.
    """
    if format_of(target) in (None, "txt"):
        raise ConfigError(
            f"{target}: expected a name that ends in .jsonl, .csv, .tsv (also with .gz or .zst) "
            "or .parquet"
        )
    engines: set[str] = set()
    columns, cuts = plan.columns, None
    if plan.buckets is not None:
        lines = _checked_parts(folder, plan, engines)
        cuts = percentiles(_perplexities(lines), plan.buckets.percentiles)
        columns = (*columns[:-1], BUCKET, columns[-1])

    def read() -> Iterator[bytes]:
        lines = _checked_parts(folder, plan, engines)
        if plan.buckets is None or cuts is None:
            return lines
        return _divided(lines, columns, cuts, plan.buckets)

    if target.suffix == ".jsonl":
        with new_file(target) as file:
            rows = sum(file.write(line) > 0 for line in read())
    else:
        rows = write_batches(target, _tables(read(), columns, _types(read()), target))
    return Merged(rows, sorted(engines), cuts)


def _perplexities(lines: Iterator[bytes]) -> Iterator[float]:
    for line in lines:
        if (found := json.loads(line)["perplexity"]) is not None:
            yield found


def _divided(
    lines: Iterator[bytes], columns: Sequence[str], cuts: Sequence[float], buckets: Buckets
) -> Iterator[bytes]:
    """Yield lines with the column bucket before the last, and of them those that are kept."""
    kept = None if buckets.keep is None else Conditions.parse(buckets.keep)
    for line in lines:
        cells = json.loads(line)
        cells[BUCKET] = bucket(cells["perplexity"], cuts)
        if kept is None or kept.holds(cells):
            yield json_line(columns, [cells[name] for name in columns]).encode()


def _checked_parts(folder: Folder, plan: Plan, engines: set[str]) -> Iterator[bytes]:
    """Yield the lines of all parts; the last of a part comes before its hash is compared."""
    for part in plan.parts:
        path = folder.output(part.number)
        if not path.exists():
            raise FileError(path, "this part is not done; give the command again first")
        receipt = read_json(folder.receipt(part.number))
        engines.add(str(receipt.get("engine")))
        digest = hashlib.sha256()
        for line in _checked(path, part, plan.gives):
            digest.update(line)
            yield line
        if digest.hexdigest() != receipt.get("sha256"):
            raise FileError(path, "damaged: delete it, and give the command again")


def _checked(path: Path, part: Part, gives: str) -> Iterator[bytes]:
    """Yield the lines of a part, after checking the number of each row."""
    before, last = part.first_row - 1, part.first_row + part.rows - 1
    with path.open("rb") as file:
        for line in file:
            found = _ROW.match(line)
            number = int(found[1]) if found else -1
            expected = {
                "one": number == before + 1,
                "some": before < number <= last,
                "many": before <= number <= before + 1 and number >= part.first_row,
            }
            if not expected[gives] or number > last:
                raise FileError(path, f"row {number} comes after row {before}")
            before = number
            yield line
    if gives != "some" and before != last:
        raise FileError(path, f"it ends with row {before}, expected {last}")


def _types(lines: Iterator[bytes]) -> dict[str, Any]:
    """Return the type of each column whose cells are all of one: a table may begin with nulls."""
    found: dict[str, set[type]] = {}
    for line in lines:
        for name, cell in json.loads(line).items():
            if cell is not None:
                found.setdefault(name, set()).add(type(cell))
    plain = {name: kinds for name, kinds in found.items() if kinds <= {int, float, str}}
    return {
        name: float if kinds == {int, float} else next(iter(kinds))
        for name, kinds in plain.items()
        if len(kinds) == 1 or kinds == {int, float}
    }


def _tables(
    lines: Iterator[bytes], columns: tuple[str, ...], types: dict[str, Any], target: Path
) -> Iterator[Table]:
    first = 1
    while some := list(islice(lines, ROWS_AT_ONCE)):
        rows = [list(json.loads(line).values()) for line in some]
        yield Table(columns, rows, target, first=first, types=types)
        first += len(some)
    if first == 1:  # a table names its columns even if it has no rows
        yield Table(columns, [], target, types=types)
