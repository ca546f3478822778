"""The part of a file that has been downloaded, on disk, where another process can continue it.

A file grows as NAME.part. NAME.part.json beside it records the address and the version (the ETag).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2kit.errors import DownloadError, FileError
from gpt2kit.files import open_regular, read_json, write_whole

# What is kept and sent back. A weak one (W/"…") does not promise the same bytes, and a server
# might refuse a long one for ever.
_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to fetch, with the size and hashes that it must have."""

    name: str
    url: str
    size: int  # bytes
    # "sha256", "md5" or "git" (the blob's id) -> hexadecimal digits
    digests: Mapping[str, str] = field(default_factory=dict)


class Part:
    """The downloaded part of a file, with the hashes of its bytes and the version of the file."""

    def __init__(self, directory: Path, file: RemoteFile) -> None:
        self._file = file
        self._target = directory / file.name
        self._path = directory / f"{file.name}.part"
        self._sidecar = directory / f"{file.name}.part.json"
        self._handle: Any = None
        self._forget()

    def _forget(self) -> None:
        """Start counting and hashing at zero."""
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
        """The hash of the bytes so far."""
        return self._hashes["sha256"].hexdigest()

    def exists(self) -> bool:
        """Whether there is a part on disk, which may be empty."""
        return self._path.exists()

    def reopen(self, *, verify: bool) -> None:
        """Continue what an earlier process left, if it may be a part of this file.

        `verify` says whether the hashes will be compared once it is complete.
        """
        if self._target.exists():  # it was complete then, maybe of another version of the file
            os.replace(self._target, self._path)
        try:
            found = self._path.stat().st_size
        except FileNotFoundError:
            return
        etag, same_address = self._read_sidecar()
        whole = found == self._file.size and (same_address or (verify and bool(self._file.digests)))
        resumable = found <= self._file.size and same_address and bool(etag)
        if whole or resumable:
            with open_regular(self._path, error=DownloadError) as file:
                while block := file.read(2**20):
                    self._count(block)
            self.etag = etag
        else:
            self.discard()

    def _read_sidecar(self) -> tuple[str | None, bool]:
        """Return the recorded ETag, and whether the recorded address is this one."""
        try:
            fields = read_json(self._sidecar)
        except FileError:
            return None, False
        etag = fields.get("etag")
        return etag if isinstance(etag, str) else None, fields.get("address") == self._address()

    def _address(self) -> str:
        """Return the hash of the address, which may hold a password and is not recorded itself."""
        return hashlib.sha256(self._file.url.encode()).hexdigest()

    def restart(self, etag: str | None) -> None:
        """Start at zero with the version of this ETag."""
        self.discard()
        if etag is not None and not _ETAG.fullmatch(etag):
            etag = None
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
        """Add bytes to the size and the hashes."""
        self.size += len(chunk)
        for hash in self._hashes.values():
            hash.update(chunk)

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def discard(self) -> None:
        """Delete the part."""
        self.close()
        self._path.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)
        self._forget()

    def problem(self, *, verify: bool) -> str | None:
        """Say what is wrong with the complete part, or return None."""
        if self.size != self._file.size:
            return f"{self._file.name} does not end after the {self._file.size:,} bytes expected"
        for name, expected in self._file.digests.items() if verify else ():
            if (found := self._hashes[name].hexdigest()) != expected:
                kind = "git hash" if name == "git" else name
                return f"{self._file.name} has the {kind} {found}, expected {expected}"
        return None

    def finish(self) -> None:
        """Rename the part to the file, safely on disk; its sidecar stays until `drop_sidecars`."""
        with self._path.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(self._path, self._target)


def drop_sidecars(directory: Path) -> None:
    """Delete the records that only an unfinished download needs."""
    for path in directory.glob("*.part.json"):
        path.unlink()
