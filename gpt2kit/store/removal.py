"""Delete a model of the weights folder, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gpt2kit.errors import CheckpointError, CheckpointNotFoundError
from gpt2kit.files import delete, sweep
from gpt2kit.store.folders import (
    BUNDLED,
    holds_model,
    holds_sae,
    is_in_weights_dir,
    kept_dir,
    locked,
    remains,
    staging_dir,
    undo_broken_swap,
    weights_dir,
)
from gpt2kit.store.lookup import OPENAI_SUFFIX, candidates, split_source
from gpt2kit.store.models import installed, installed_saes


def removable(name: str) -> Path:
    """Return the directory that `remove` would delete.

    The name is a size, an alias, a Hub id or the name of a directory of `weights_dir()`; what
    interrupted commands left there counts as a model. Another source than the one that is named is
    never taken. For a bundled model and for the path of a model elsewhere, it is what the user's
    cache keeps for the model, such as int8 weights. Raises CheckpointError if there is nothing.
    """
    _, source = split_source(name)
    for candidate in candidates(name):
        if candidate != name and not source and candidate.endswith(OPENAI_SUFFIX):
            continue
        target = weights_dir() / candidate
        undo_broken_swap(target)
        is_model = holds_model(target) or holds_sae(target) or os.path.islink(target)
        if is_model or staging_dir(candidate).is_dir() or remains(candidate):
            return target
        if target.is_dir():
            raise CheckpointNotFoundError(
                f"{target} holds no model, so it is left alone", path=target
            )
    for folder in (BUNDLED / name, Path(name)) if name else ():
        if holds_model(folder) and kept_dir(folder) != folder and kept_dir(folder).is_dir():
            return kept_dir(folder)
    if name and holds_model(BUNDLED / name):
        raise CheckpointError(
            f"{name} comes with gpt2kit and is not removed; "
            "a model of your own with that name is used instead of it"
        )
    known = [model.name for model in installed() if not model.is_bundled]
    here = ", ".join([*known, *(sae.name for sae in installed_saes())]) or "none"
    raise CheckpointNotFoundError(
        f"there is no model {name!r} in {weights_dir()}; models there: {here}"
    )


def remove(name: str) -> Path:
    """Delete what `removable` finds, and all that is kept for the model or left of it.

    Returns where it was. A symbolic link is unlinked, and what it points to stays.
    """
    target = removable(name)
    if not is_in_weights_dir(target):  # a folder of the cache
        shutil.rmtree(target, ignore_errors=True)
        return target
    unfinished = staging_dir(target.name)
    try:
        with locked(target.name, wait=False):
            if kept_dir(target) != target:
                shutil.rmtree(kept_dir(target), ignore_errors=True)
            sweep(target)  # first, or the previous content would be taken for the model afterwards
            if os.path.islink(target) or holds_model(target) or holds_sae(target):
                delete(target)
            if unfinished.is_dir():
                delete(unfinished)
            sweep(unfinished)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be deleted: {error.strerror or error}") from error
    return target
