"""The record of a download: where a directory's files came from, and their sizes and hashes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.errors import CheckpointFormatError, FileError
from gpt2kit.files import read_json, write_whole
from gpt2kit.store.folders import MANIFEST

# The name of a file that we fetch: no separator and no leading dot.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Manifest:
    """Where the files of a directory came from, and their contents then; kept as gpt2kit.json."""

    source: str  # "hub" or "openai"
    repository: str  # on the Hub, or the address of OpenAI's directory
    revision: str | None  # the Hub's commit
    files: Mapping[str, tuple[int, str]]  # name -> (bytes, sha256)

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """Return the directory's manifest, or None if it has none.

        Raises CheckpointFormatError if it is damaged.
        """
        path = directory / MANIFEST
        if not os.path.lexists(path):
            return None
        try:
            return cls._parse(read_json(path))
        except (FileError, ValueError, KeyError, TypeError) as error:
            detail = error.detail if isinstance(error, FileError) else "damaged"
            advice = "expected gpt2kit's record of a download. Run: gpt2kit download … --force"
            raise CheckpointFormatError(path, f"{detail}; {advice}") from error

    @classmethod
    def _parse(cls, fields: dict[str, Any]) -> Manifest:
        """Return the manifest of a JSON object; raise ValueError, KeyError or TypeError."""
        if not isinstance(fields["files"], dict):
            raise TypeError("files is not an object")
        files = {name: (file["size"], file["sha256"]) for name, file in fields["files"].items()}
        manifest = cls(fields["source"], fields["repository"], fields["revision"], files)
        texts = [manifest.source, manifest.repository, manifest.revision or ""]
        texts += [sha256 for _, sha256 in files.values()]
        if not files or not all(isinstance(text, str) for text in texts):
            raise ValueError("a field has another type")
        if any(
            type(size) is not int or not PLAIN_NAME.fullmatch(name)
            for name, (size, _) in files.items()
        ):
            raise ValueError("a size or a name is invalid")
        return manifest

    def write(self, directory: Path) -> None:
        """Put the manifest in the directory, complete or not at all."""
        fields = {
            "source": self.source,
            "repository": self.repository,
            "revision": self.revision,
            "files": {
                name: {"size": size, "sha256": sha256}
                for name, (size, sha256) in self.files.items()
            },
        }
        write_whole(directory / MANIFEST, json.dumps(fields, indent=2) + "\n")

    def fits(self, directory: Path) -> bool:
        """Whether every file is there with its size; contents are not read."""
        try:
            return all(
                (directory / name).stat().st_size == size for name, (size, _) in self.files.items()
            )
        except OSError:
            return False
