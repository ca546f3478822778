"""All finished parts as one file, after checking that every row is there once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.plan import Plan
from gpt2kit.bulk.sources import Part
from gpt2kit.errors import FileError
from gpt2kit.files import new_file, read_json

_ROW = re.compile(rb'\{"row": (\d+)')


def merge(folder: Folder, plan: Plan, target: Path) -> list[str]:
    """Write all parts into one file, in order, and return the engines that computed them.

    Raises FileError if a part is missing, is not as its receipt says, or has not each of its rows
    once; a filter may leave rows out, and words give several lines for one row.
    """
    engines = set()
    with new_file(target) as file:
        for part in plan.parts:
            path = folder.output(part.number)
            if not path.exists():
                raise FileError(path, "this part is not done; give the command again first")
            receipt = read_json(folder.receipt(part.number))
            engines.add(str(receipt.get("engine")))
            digest = hashlib.sha256()
            for line in _checked(path, part, plan.gives):
                digest.update(line)
                file.write(line)
            if digest.hexdigest() != receipt.get("sha256"):
                raise FileError(path, "damaged: delete it, and give the command again")
    return sorted(engines)


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
