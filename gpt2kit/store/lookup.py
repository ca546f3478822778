"""From a model's name to its directory."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from gpt2kit.config import SIZES
from gpt2kit.errors import CheckpointNotFoundError
from gpt2kit.files import previous
from gpt2kit.store.catalogue import canonical_size, nearest_size
from gpt2kit.store.folders import (
    ADAPTERS_FILE,
    BUNDLED,
    MODEL_FILES,
    SAE_WEIGHTS,
    holds_model,
    holds_sae,
    is_in_weights_dir,
    undo_broken_swap,
    weights_dir,
)
from gpt2kit.store.manifest import PLAIN_NAME
from gpt2kit.store.models import installed

HUB_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
# A sparse autoencoder: a folder or .pt of a repository that holds many, org/name/FOLDER
SAE_ID = re.compile(rf"({HUB_ID.pattern})/((?:{PLAIN_NAME.pattern}/)*{PLAIN_NAME.pattern})")
OPENAI_SUFFIX = "-openai"


def split_source(model: str) -> tuple[str, str | None]:
    """Return a model's canonical name, and the source if the name includes it.

    >>> split_source("117M-openai"), split_source("gpt2-xl"), split_source("org/novel")
    (('124M', 'openai'), ('1558M', None), ('org/novel', None))
    """
    if size := canonical_size(model):
        return size, None
    if model.lower().endswith(OPENAI_SUFFIX):
        size = canonical_size(model[: -len(OPENAI_SUFFIX)])
        if size:
            return size, "openai"
    return model, None


def directory_name(model: str, source: str) -> str:
    """Return the name of the directory in which a download of the model from that source lands."""
    name, _ = split_source(model)
    return name.replace("/", "--") + (OPENAI_SUFFIX if source == "openai" else "")


def find(model: str | Path) -> Path:
    """Return the path that a name means: a path, a size, an alias, a Hub id or a trained model.

    Anything with a separator is a path, and so is a folder of the current directory that holds a
    model; other names are looked up in `weights_dir()`, then among the bundled models. A weights
    file and the prefix of a TensorFlow checkpoint are returned as they are. The network is never
    asked, and a similar name never taken. If a kill left a model of `weights_dir()` under the name
    of its previous content, that is renamed back; nothing is renamed elsewhere. Raises
    CheckpointNotFoundError, which says what to type.
    """
    name = str(model)
    path = Path(os.path.expanduser(model))
    is_path = isinstance(model, Path) or _is_path(name)
    if "\0" not in name and is_in_weights_dir(path):
        undo_broken_swap(path)
    if os.path.isdir(path) and (is_path or holds_model(path)):
        return path
    for candidate in candidates(name):
        undo_broken_swap(weights_dir() / candidate)
        for folder in (weights_dir(), BUNDLED):
            if holds_model(folder / candidate):
                return folder / candidate
    if "\0" not in name and (os.path.isfile(path) or os.path.isfile(f"{path}.index")):
        return path
    raise CheckpointNotFoundError(_what_to_type(model, path), path=path if is_path else None)


def find_sae(name: str | Path) -> Path:
    """Return the path of a sparse autoencoder: a path, or the name of one in `weights_dir()`.

    The name is the Hub's, or that of the directory. The network is never asked. Raises
    CheckpointNotFoundError, which says what to type, for a name of the Hub that is not on this
    machine; any other path is returned as it is.
    """
    path = Path(os.path.expanduser(name))
    if os.path.lexists(path):
        return path
    for candidate in candidates(str(name)):
        folder = weights_dir() / candidate
        if holds_sae(folder):
            return folder if os.path.isfile(folder / SAE_WEIGHTS) else next(folder.glob("*.pt"))
    if not SAE_ID.fullmatch(str(name)):
        return path
    raise CheckpointNotFoundError(
        f"there is no file or folder {name}, and the Hub's is not on this machine (looked in "
        f"{weights_dir()}). Run: gpt2kit download {name}",
        path=path,
    )


def _is_path(name: str) -> bool:
    """Whether a text can only be a path."""
    has_separator = os.sep in name or (os.altsep is not None and os.altsep in name)
    return has_separator or name in (".", "..")


def candidates(name: str) -> list[str]:
    """Return the directory names that a model's name may mean, the first that exists counts.

    The name itself comes first, so that a run called "small" is that run and not the size 124M.
    """
    is_plain = name and name == os.path.basename(name) and not name.startswith(".")
    names = [name] if is_plain and "\\" not in name and "\0" not in name else []
    canonical, source = split_source(name)
    if canonical in SIZES:
        sources = [source] if source else ["hub", "openai"]
        names += [directory_name(canonical, source) for source in sources]
    elif HUB_ID.fullmatch(name) or SAE_ID.fullmatch(name):
        names.append(directory_name(name, "hub"))
    return names


def adapters_alone(path: Path) -> str | None:
    """Say how a folder of low-rank adapters becomes a model; None for any other folder."""
    if not os.path.isfile(path / ADAPTERS_FILE):
        return None
    return (
        f"{path} holds LoRA adapters, which are not a model by themselves. "
        f"To write with them, run: gpt2kit generate --adapter {path}; to make a model of them, "
        f"run: gpt2kit merge {path} --out {path}-merged"
    )


def _what_to_type(model: str | Path, path: Path) -> str:
    """Return the message for a model that is not on this machine."""
    name, folder = str(model), weights_dir()
    canonical, source = split_source(name)
    if canonical in SIZES:
        option = " --source openai" if source else ""
        return (
            f"{name} is not on this machine (looked in {folder}). "
            f"Run: gpt2kit download {canonical}{option}"
        )
    if advice := adapters_alone(path) or adapters_alone(folder / name):
        return advice
    if "\0" not in name and path.name and os.path.lexists(previous(path)):
        return (
            f"there is no directory {name}: it was being replaced when the program was killed. "
            f"Its previous content is whole; run: mv {previous(path)} {path}"
        )
    if isinstance(model, str) and HUB_ID.fullmatch(name):
        return (
            f"there is no directory {name}, and the Hub's {name} is not on this machine "
            f"(looked in {folder}). Run: gpt2kit download {name}"
        )
    if isinstance(model, Path) or Path(name).name != name:
        return f"there is no directory {name}; for a published model, run: gpt2kit download 124M"
    if os.path.isdir(folder / name) and not name.startswith("."):
        expected = ", ".join(MODEL_FILES)
        return f"{folder / name} is there but holds no model: expected one of {expected}"
    return f"no model is called {name}{_similar(name)}"


def _similar(name: str) -> str:
    """Return the end of the message for an unknown name: similar names and what to type."""
    here = [model.name for model in installed()]
    close = difflib.get_close_matches(name, here, n=1, cutoff=0.7)
    listed = f" On this machine: {', '.join(here)}." if here else ""
    if close:
        return f"; did you mean {close[0]}?{listed}"
    if nearest := nearest_size(name):
        return f"; did you mean {nearest}? Run: gpt2kit download {nearest}.{listed}"
    return f".{listed} To download one of {', '.join(SIZES)}, run: gpt2kit download 124M"
