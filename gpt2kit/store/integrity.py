"""Compare downloaded files with their recorded hashes, once for each version of a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from pathlib import Path

from gpt2kit.errors import CheckpointError, CheckpointFormatError, FileError, Gpt2KitWarning
from gpt2kit.files import new_file, open_regular, read_json
from gpt2kit.store.catalogue import canonical_size
from gpt2kit.store.folders import MANIFEST, kept_dir
from gpt2kit.store.manifest import Manifest

CHECKED = ".gpt2kit-checked.json"  # the versions of files whose hashes were right

# File name -> inode, bytes, time of the last change in nanoseconds, sha256.
_Versions = dict[str, list[int | str]]


def check_files(folder: Path, *, record: bool = True) -> None:
    """Compare the files of a download with the hashes in its manifest, if it has one.

    A file is hashed only if it changed since the last comparison, going by its inode, size and time
    of change: hashing 0.5 GB takes 0.3 s. Missing files are left to the readers. Raises
    CheckpointFormatError for a file that is not as it was downloaded; a damaged manifest is a
    warning. Without `record`, nothing is written, and the next call compares again.
    """
    try:
        manifest = Manifest.read(folder)
    except CheckpointFormatError as error:
        message = f"the hashes of the files are not checked: {error}"
        warnings.warn(message, Gpt2KitWarning, stacklevel=2)
        return
    if manifest is None:
        return
    versions = _versions(folder, manifest)
    known = _read(folder)
    for name, version in versions.items():
        if known.get(name) != version:
            _check(folder / name, manifest, name)
    if record and known != versions:
        _write(folder, versions)


def remember(folder: Path, manifest: Manifest) -> None:
    """Record that the files of a download have been compared, since their transfer did that."""
    _write(folder, _versions(folder, manifest))


def _versions(folder: Path, manifest: Manifest) -> _Versions:
    """Return the present version of each file of the manifest that exists."""
    versions: _Versions = {}
    for name, (_, sha256) in manifest.files.items():
        with contextlib.suppress(OSError):
            status = os.stat(folder / name)
            versions[name] = [status.st_ino, status.st_size, status.st_mtime_ns, sha256]
    return versions


def _check(path: Path, manifest: Manifest, name: str) -> None:
    """Raise CheckpointFormatError unless the file has its recorded size and hash."""
    size, sha256 = manifest.files[name]
    with open_regular(path, error=CheckpointError) as file:
        found = os.fstat(file.fileno()).st_size
        if found == size and hashlib.file_digest(file, "sha256").hexdigest() == sha256:
            return
    what = f"{found:,} bytes instead of {size:,}" if found != size else "another sha256"
    raise CheckpointFormatError(
        path,
        f"not as it was downloaded ({what}): it is damaged, or was changed. To get it again, run: "
        f"gpt2kit download {_as_typed(manifest)} --force. If you changed it, delete {MANIFEST}",
    )


def _as_typed(manifest: Manifest) -> str:
    """Return the arguments of `gpt2kit download` that fetch what the manifest records."""
    if manifest.source == "openai":
        return f"{manifest.repository.rstrip('/').rpartition('/')[2]} --source openai"
    return canonical_size(manifest.repository) or manifest.repository


def _read(folder: Path) -> _Versions:
    """Return the versions that were right; none if the record is missing or damaged."""
    with contextlib.suppress(FileError):
        return read_json(kept_dir(folder) / CHECKED)
    return {}


def _write(folder: Path, versions: _Versions) -> None:
    """Record versions that were right; without the record, files are compared each time."""
    with contextlib.suppress(OSError):
        path = kept_dir(folder) / CHECKED
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            file.write(json.dumps(versions).encode())
