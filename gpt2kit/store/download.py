"""Fetch weights from the Hub or from OpenAI, whole or not at all.

A download collects its files in a hidden directory, which is renamed to the model's when all files
are there and right. If it is interrupted in any way, the next call continues it. `sources` says
what the files are, and `transfer` moves the bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpt2kit.config import SIZES
from gpt2kit.errors import CheckpointFormatError, DownloadError, Gpt2KitWarning
from gpt2kit.files import put_in_place, sweep
from gpt2kit.store import catalogue, folders, integrity
from gpt2kit.store.catalogue import nearest_size
from gpt2kit.store.hub import hub_plan
from gpt2kit.store.lookup import HUB_ID, SAE_ID, directory_name, split_source
from gpt2kit.store.manifest import Manifest
from gpt2kit.store.parts import drop_sidecars
from gpt2kit.store.retries import Patience, Progress, Silent
from gpt2kit.store.sources import Plan, openai_plan

__all__ = ["Patience", "Progress", "Silent", "download", "download_vocabulary"]

_VOCABULARY_FILES = ("vocab.json", "merges.txt")


def download(
    model: str,
    *,
    source: str = "hub",
    revision: str | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch a size, an alias or a Hub id ("org/name") and return its directory.

    "org/name/FOLDER" and "org/name/FILE.pt" are sparse autoencoders of such a repository.

    A model that is here and complete is returned without using the network, unless `force` or
    another `revision` is given; the older copy then stays usable until the new one is whole.
    `verify=False` checks sizes but not hashes, and warns. Raises DownloadError.
    """
    progress, patience = progress or Silent(), patience or Patience()
    model, source = _understood(model, source, revision)
    target = folders.weights_dir() / directory_name(model, source)
    with _disk_errors(target):
        folders.undo_broken_swap(target)
        _refuse_to_replace(target, force)
        here = None if force else _complete(target)
        if here is not None and revision in (None, here.revision):
            return target
        _refuse_offline(model, target)
        if not verify:
            warnings.warn(f"the hashes of {model} are not checked", Gpt2KitWarning, stacklevel=2)
        plan = (
            openai_plan(model, patience, progress)
            if source == "openai"
            else hub_plan(model, revision, verify, patience, progress)
        )
        if here is None or here.revision != plan.revision:
            _carry_out(plan, target, force, verify, progress)
    return target


def download_vocabulary(
    *, progress: Progress | None = None, patience: Patience | None = None
) -> Path:
    """Fetch GPT-2's vocabulary without a model, 1.5 MB, and return its folder.

    Raises DownloadError.
    """
    progress, patience = progress or Silent(), patience or Patience()
    target = folders.vocabulary_dir()
    with _disk_errors(target):
        folders.undo_broken_swap(target)
        if _complete(target) is not None:
            return target
        _refuse_to_replace(target, force=False)
        _refuse_offline("GPT-2's vocabulary", target)
        plan = hub_plan("124M", None, True, patience, progress)
        needed = [file for file in plan.files if file.name in _VOCABULARY_FILES]
        _carry_out(replace(plan, files=needed), target, False, True, progress)
    return target


def _understood(model: str, source: str, revision: str | None) -> tuple[str, str]:
    """Return the canonical name and the source; raise DownloadError for what does not exist."""
    name, told = split_source(model)
    source = told or source
    if source not in ("hub", "openai"):
        raise DownloadError(f"there is no source {source!r}; it is hub or openai")
    is_on_hub = HUB_ID.fullmatch(name) or SAE_ID.fullmatch(name)
    if name not in SIZES and (source == "openai" or not is_on_hub):
        if source == "openai" and is_on_hub:
            raise DownloadError(
                f"{name} is a repository of the Hub, not one of OpenAI's models; "
                f"run: gpt2kit download {name} --source hub"
            )
        nearest = nearest_size(name)
        advice = (
            f"did you mean {nearest}? Run: gpt2kit download {nearest}"
            if nearest
            else f"there are {', '.join(SIZES)}"
        )
        raise DownloadError(f"{model} is not a published GPT-2; {advice}. A Hub id is org/name")
    if source == "openai" and catalogue.PUBLICATIONS[name].openai_directory is None:
        raise DownloadError(
            f"OpenAI did not publish {name}; run: gpt2kit download {name} --source hub"
        )
    if source == "openai" and revision is not None:
        raise DownloadError(
            "OpenAI's files have no revisions; leave out --revision, or use --source hub"
        )
    return name, source


def _refuse_to_replace(target: Path, force: bool) -> None:
    """Raise DownloadError if the target exists and is not a download of ours."""
    if os.path.lexists(target) and not target.is_dir():
        raise DownloadError(
            f"{target} is not a directory; move it, or set GPT2KIT_WEIGHTS to another folder",
            path=target,
        )
    if (
        target.exists()
        and not force
        and not (target / folders.MANIFEST).exists()
        and any(target.iterdir())
    ):
        raise DownloadError(
            f"{target} exists, but was not downloaded by gpt2kit; "
            "move it, or replace it with --force",
            path=target,
        )


def _complete(target: Path) -> Manifest | None:
    """Return the manifest of a model that is here with all its files, else None."""
    manifest = Manifest.read(target)
    return manifest if manifest is not None and manifest.fits(target) else None


def _refuse_offline(model: str, target: Path) -> None:
    """Raise DownloadError if the user's environment forbids the network."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            what = (
                "is not on this machine"
                if not target.exists()
                else "is not here in this revision, or not complete"
            )
            raise DownloadError(
                f"{model} {what} ({target}), and {variable} forbids the network; "
                "unset it, or copy the directory there"
            )


def _carry_out(plan: Plan, target: Path, force: bool, verify: bool, progress: Progress) -> None:
    """Fetch the files of the plan and put them in place, unless another process just did."""
    waited = False

    def waiting() -> None:
        """Tell the user once that another process is at work."""
        nonlocal waited
        waited = True
        progress.note(f"another process is downloading {target.name}; waiting for it")

    target.parent.mkdir(parents=True, exist_ok=True)
    with folders.locked(target.name, waiting=waiting):
        if (waited or not force) and _done_meanwhile(target, plan):
            return
        staging = folders.staging_dir(target.name)
        sweep(target)
        sweep(staging)
        staging.mkdir(exist_ok=True)
        try:
            _make_room(plan, staging)
            with plan.transfer() as transfer:
                files = {
                    file.name: (file.size, transfer.fetch(file, staging, verify=verify))
                    for file in plan.files
                }
            manifest = Manifest(plan.source, plan.repository, plan.revision, files)
            manifest.write(staging)
            integrity.remember(staging, manifest)
            drop_sidecars(staging)
            put_in_place(staging, target)
        finally:
            with contextlib.suppress(OSError):
                staging.rmdir()  # fails if there is anything in it


def _done_meanwhile(target: Path, plan: Plan) -> bool:
    """Whether another process has just put the plan's model in place."""
    try:
        here = _complete(target)
    except CheckpointFormatError:
        return False
    return here is not None and here.revision == plan.revision


def _make_room(plan: Plan, staging: Path) -> None:
    """Delete what an earlier plan left in the staging directory; check the space on the disk."""
    content = {name for file in plan.files for name in (file.name, f"{file.name}.part")}
    sidecars = {f"{file.name}.part.json" for file in plan.files}
    present = 0
    for path in staging.iterdir():
        if path.name in content:
            present += path.stat().st_size
        elif path.name not in sidecars:
            path.unlink()
    needed, free = sum(file.size for file in plan.files) - present, shutil.disk_usage(staging).free
    if needed > free:
        raise DownloadError(
            f"{plan.repository} needs {needed:,} more bytes, "
            f"but {free:,} are free in {staging.parent}",
            path=staging.parent,
        )


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Turn errors of the file system into a DownloadError."""
    try:
        yield
    except OSError as error:
        staging = folders.staging_dir(target.name)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kept = sum(path.stat().st_size for path in staging.glob("*")) if staging.is_dir() else 0
            free = shutil.disk_usage(target.parent).free
            message = (
                f"the disk takes no more data ({error.strerror}; "
                f"{free:,} bytes are free in {target.parent}); "
                f"make room and run it again: the {kept:,} bytes already fetched are kept "
                f"in {staging}"
            )
        else:
            message = (
                f"cannot use {error.filename or target}: {error.strerror or error}; "
                "to use another folder for weights, set GPT2KIT_WEIGHTS"
            )
        raise DownloadError(message, path=target) from error
