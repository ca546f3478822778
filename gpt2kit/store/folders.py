"""The folder that holds the models, and what lies in it.

Each model is a directory of `weights_dir()`. A downloaded one has a manifest, a trained one the
settings of its run. Names that begin with a dot belong to no model:

    .NAME.download    a download that is not finished
    .NAME.old         the previous content of NAME while the new one takes its place
    .NAME.removed     a directory that is being deleted
    .NAME.lock        held by the one process that may change NAME
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2kit.errors import DownloadError
from gpt2kit.files import leftovers, previous, restore

BUNDLED = Path(__file__).parent / "bundled"  # the models that come with the package
MANIFEST = "gpt2kit.json"  # the record of a download
SAE_WEIGHTS = "sae_weights.safetensors"  # of a sparse autoencoder in SAELens's format
ADAPTERS_FILE = "adapter.json"  # a run with --lora_rank leaves it instead of weights
PEFT_FILE = "adapter_config.json"  # beside adapters of PEFT
INT8_SUFFIX = ".gpt2kit-int8"  # of int8 weights, which are made once and kept

_RUN_FILE = "run.json"  # the settings of a training run
# A directory holds a model if it has one of these; the readers tell the format from the contents.
MODEL_FILES = (
    *("config.json", "hparams.json", "model.safetensors", "pytorch_model.bin", "ckpt.pt"),
    PEFT_FILE,
)

# What a model in the Hub's layout consists of: the files beside its weights, and all, as patterns.
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "labels.json",  # words by which the model labels texts
    "gpt2kit_tokenizer.json",  # of characters or words, in models that gpt2kit pushed
)
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # of PEFT
HUB_FILES = (
    *TEXT_FILES,
    *(PEFT_FILE, *ADAPTERS),
    *("model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-?????-of-?????.bin"),
)
CARD_FILE = "README.md"  # describes a model on the Hub


def weights_dir() -> Path:
    """Return the folder of models: $GPT2KIT_WEIGHTS, else ./weights if it exists, else a cache."""
    if chosen := os.environ.get("GPT2KIT_WEIGHTS"):
        return Path(chosen).expanduser()
    if Path("weights").is_dir():
        return Path("weights")
    return _cache_dir()


def _cache_dir() -> Path:
    """Return gpt2kit's folder in the user's cache directory."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("gpt2kit", appauthor=False))


def vocabulary_dir() -> Path:
    """Return the folder of GPT-2's vocabulary alone, for weights that come without one."""
    return weights_dir() / "gpt2-vocabulary"


def holds_model(directory: Path) -> bool:
    """Whether the directory looks like a model, in any format that we read."""
    return any(os.path.isfile(directory / name) for name in MODEL_FILES)


def files_of_others(directory: Path) -> list[str]:
    """Return the names in a directory that no model in the Hub's layout has, in their order."""
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.is_dir()
        or not any(fnmatch.fnmatchcase(path.name, known) for known in (*HUB_FILES, CARD_FILE))
    )


def holds_sae(directory: Path) -> bool:
    """Whether the directory is a sparse autoencoder: a SAELens folder, or a .pt from the Hub."""
    if holds_model(directory):
        return False
    is_downloaded = os.path.isfile(directory / MANIFEST)
    return os.path.isfile(directory / SAE_WEIGHTS) or (
        is_downloaded and any(directory.glob("*.pt"))
    )


def is_in_weights_dir(path: Path) -> bool:
    """Whether a path is an entry of `weights_dir()` itself."""
    path = Path(os.path.abspath(path))
    return os.path.realpath(path.parent) == os.path.realpath(weights_dir())


def kept_dir(folder: Path) -> Path:
    """Return where files are kept that are made of a model's files: int8 weights, checked hashes.

    That is the model's folder if it is a download or a training run of ours in `weights_dir()`. For
    any other folder, which may be somebody else's or part of the package, it is a folder of the
    user's cache directory, named after the model's path; it may not exist yet.
    """
    if is_owned(folder):
        return folder
    path = os.path.realpath(folder)
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return _cache_dir() / ".kept" / f"{os.path.basename(path)[:50]}-{key}"


def int8_file(path: Path) -> Path:
    """Return where the int8 weights of a model are kept, given its folder, file or prefix."""
    folder, name = (path, "model") if path.is_dir() else (path.parent, path.name)
    return kept_dir(folder) / Path(name).with_suffix(INT8_SUFFIX)


def is_owned(folder: Path) -> bool:
    """Whether a folder is a download or a training run of ours in `weights_dir()`, and no link."""
    return (
        is_in_weights_dir(folder)
        and not folder.is_symlink()
        and any(os.path.isfile(folder / name) for name in (MANIFEST, _RUN_FILE))
    )


def staging_dir(name: str) -> Path:
    """Return the folder in which a download for the directory `name` collects its files."""
    return weights_dir() / f".{name}.download"


def remains(name: str) -> list[Path]:
    """Return what killed processes left of the directory `name` that only needs deleting."""
    return leftovers(weights_dir() / name) + leftovers(staging_dir(name))


@contextlib.contextmanager
def locked(
    name: str, *, wait: bool = True, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Keep other processes from the directory `name`; the lock of a killed process is free.

    Calls `waiting` once before waiting for another process. With `wait=False`, raises DownloadError
    instead.
    """
    import filelock

    lock = filelock.FileLock(weights_dir() / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            raise DownloadError(
                f"{name} is being downloaded by another process; try again when that has ended"
            ) from None
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def undo_broken_swap(target: Path) -> None:
    """Rename a model's previous directory back, if replacing it was killed between two renames."""
    target = Path(os.path.abspath(target))  # "." has no name
    if target.name and os.path.lexists(previous(target)) and not os.path.lexists(target):
        with locked(target.name):  # another process may be in the middle of a replacement
            restore(target)
