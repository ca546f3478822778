"""The beginning of a file on disk, that another process can go on with.

A file grows as NAME.part. NAME.part.json beside it says which version of which address it is the beginning of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2kit.files import write_whole


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to fetch and what it must be."""

    name: str
    url: str
    size: int
    digests: Mapping[str, str] = field(
        default_factory=dict
    )  # "sha256", "md5" or "git" (the blob id) -> hexadecimal digits


class Part:
    """The beginning of a file on disk, with the hashes of what it holds and the version that it is the beginning of."""

    def __init__(self, directory: Path, file: RemoteFile) -> None:
        self._file = file
        self._target = directory / file.name
        self._path = directory / f"{file.name}.part"
        self._sidecar = directory / f"{file.name}.part.json"
        self._handle: Any = None
        self._forget()

    def _forget(self) -> None:
        self.size = 0
        self.etag: str | None = None
        self._hashes = {"sha256": hashlib.sha256()}
        if "md5" in self._file.digests:
            self._hashes["md5"] = hashlib.md5(usedforsecurity=False)
        if "git" in self._file.digests:
            self._hashes["git"] = hashlib.sha1(
                b"blob %d\0" % self._file.size, usedforsecurity=False
            )

    @property
    def sha256(self) -> str:
        """The hash of what is there so far."""
        return self._hashes["sha256"].hexdigest()

    def exists(self) -> bool:
        """Whether there is a part on disk, be it empty."""
        return self._path.exists()

    def reopen(self) -> None:
        """Take up what an earlier process left, if that can be the beginning of this file."""
        if self._target.exists():
            os.replace(
                self._target, self._path
            )  # finished then; what it is worth now, the hashes tell
        try:
            found = self._path.stat().st_size
        except FileNotFoundError:
            return
        etag, same_address = self._read_sidecar()
        whole = found == self._file.size
        if found <= self._file.size and (
            (whole and (self._file.digests or same_address)) or (same_address and etag)
        ):
            with self._path.open("rb") as file:
                while block := file.read(2**20):
                    self._count(block)
            self.etag = etag
        else:
            self.discard()

    def _read_sidecar(self) -> tuple[str | None, bool]:
        try:
            fields = json.loads(self._sidecar.read_bytes())
            etag = fields["etag"]
            return (etag if isinstance(etag, str) else None), fields["address"] == self._address()
        except (OSError, ValueError, KeyError, TypeError):
            return None, False

    def _address(self) -> str:
        """Return what stands for the address on disk: its hash, since an address may hold a password."""
        return hashlib.sha256(self._file.url.encode()).hexdigest()

    def restart(self, etag: str | None) -> None:
        """Begin at zero with the version that the server calls `etag`."""
        self.discard()
        if etag is not None and not etag.startswith('"'):
            etag = None  # a weak one (W/"…") does not promise the same bytes
        write_whole(self._sidecar, json.dumps({"address": self._address(), "etag": etag}))
        self._path.touch()
        self.etag = etag

    def append(self, chunk: bytes) -> None:
        """Add bytes to the end."""
        if self._handle is None:
            self._handle = self._path.open("ab", buffering=0)
        self._count(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._handle.write(rest) :]

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        for hash in self._hashes.values():
            hash.update(chunk)

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def discard(self) -> None:
        """Delete what is there."""
        self.close()
        self._path.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)
        self._forget()

    def problem(self, *, verify: bool) -> str | None:
        """Say what is wrong with the complete part, if something is."""
        if self.size != self._file.size:
            return f"{self._file.name} does not end after the {self._file.size:,} bytes expected"
        for name, expected in self._file.digests.items() if verify else ():
            if (found := self._hashes[name].hexdigest()) != expected:
                kind = "git hash" if name == "git" else name
                return f"{self._file.name} has the {kind} {found}, expected {expected}"
        return None

    def finish(self) -> None:
        """Give the part the file's name, safely on disk. Its sidecar stays until `drop_sidecars`."""
        with self._path.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(self._path, self._target)


def drop_sidecars(directory: Path) -> None:
    """Delete what only an unfinished download needs."""
    for path in directory.glob("*.part.json"):
        path.unlink()
