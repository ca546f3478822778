"""Files of receipts, and how a model was loaded, for replay."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2kit.cli.options import ModelOptions

LARGEST = 2**28  # bytes of a receipt's file


def check_folder(file: str) -> None:
    """Raise FileError if there is no folder to write a file into."""
    from gpt2kit.errors import FileError

    path = Path(file)
    if path.is_dir():
        raise FileError(path, "a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileError(path.parent, "no such folder; make it first")


def loaded_from(source: ModelOptions, draft: str | None, batch_size: int) -> dict[str, Any]:
    """Return what was typed about the model, as far as it is not the default, and the draft."""
    typed = {
        each.name: value
        for each in dataclasses.fields(source)
        if (value := getattr(source, each.name)) != each.default
    }
    return {"model": source.model, **typed, "draft": draft, "batch_size": batch_size}


def write_receipt(file: str, receipt: Mapping[str, Any]) -> None:
    """Write a receipt into a file."""
    from gpt2kit.files import write_whole

    write_whole(Path(file), json.dumps(receipt, indent=1) + "\n")


def read_receipt(file: str) -> dict[str, Any]:
    """Return the receipt in a file; raises FileError for anything else."""
    from gpt2kit.errors import ConfigError, FileError
    from gpt2kit.files import read_json
    from gpt2kit.generation.receipts.replaying import check_receipt

    path = Path(file)
    found = read_json(path, largest=LARGEST)
    try:
        check_receipt(found)
    except ConfigError as error:
        raise FileError(path, str(error)) from None
    return found
