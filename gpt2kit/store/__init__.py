"""Where weights live: from a name to a directory.

Models are directories of one folder, `weights_dir()`. A downloaded one carries a manifest; a trained one is there under its own name.
Names that begin with a dot are no models: `.NAME.download` is a download that is not finished, `.NAME.old` the previous model while the
new one takes its place, `.NAME.removed` one that is being deleted, `.NAME.lock` what keeps two processes from the same name.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.config import SIZES, canonical_size, nearest_size
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    DownloadError,
)
from gpt2kit.files import delete, previous, restore, write_whole

MANIFEST = "gpt2kit.json"
BUNDLED = Path(__file__).parent / "bundled"  # the models that come with the package
PLAIN_NAME = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
)  # of a file that we fetch: no separator, no leading dot
HUB_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")

_OPENAI_SUFFIX = "-openai"
_LARGEST_MANIFEST = 2**20  # bytes
# A directory holds a model when one of these is in it; which format it is, the readers tell from the contents.
_MODEL_FILES = ("config.json", "hparams.json", "model.safetensors", "pytorch_model.bin", "ckpt.pt")
INT8_SUFFIX = ".gpt2kit-int8"  # of the weights in eight bits, made once and kept beside those that they were made of
ADAPTERS_FILE = "adapter.json"  # what a run with --lora_rank leaves in its place


@dataclass(frozen=True)
class Manifest:
    """Where the files of a directory came from and what they were then; kept beside them as gpt2kit.json."""

    source: str  # "hub" or "openai"
    repository: str  # the Hub repository, or the address of OpenAI's directory
    revision: str | None  # the Hub's commit
    files: Mapping[str, tuple[int, str]]  # name -> (bytes, sha256)

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """Return the directory's manifest, or None if it has none; raise CheckpointFormatError if it is damaged."""
        path = directory / MANIFEST
        try:
            if path.stat().st_size > _LARGEST_MANIFEST:
                raise CheckpointFormatError(path, "too large for a list of files")
            return cls._parse(json.loads(path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointFormatError(
                path, "this is not gpt2kit's record of a download; run: gpt2kit download … --force"
            ) from error

    @classmethod
    def _parse(cls, fields: Any) -> Manifest:
        files = (
            {name: (file["size"], file["sha256"]) for name, file in fields["files"].items()}
            if isinstance(fields["files"], dict)
            else {}
        )
        manifest = cls(fields["source"], fields["repository"], fields["revision"], files)
        texts = [
            manifest.source,
            manifest.repository,
            manifest.revision or "",
            *(sha256 for _, sha256 in files.values()),
        ]
        if not files or not all(isinstance(text, str) for text in texts):
            raise ValueError("fields of other types")
        if any(
            type(size) is not int or not PLAIN_NAME.fullmatch(name)
            for name, (size, _) in files.items()
        ):
            raise ValueError("sizes or names that cannot be")
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


def weights_dir() -> Path:
    """Return the folder that holds the models: $GPT2KIT_WEIGHTS, ./weights where it exists, or the user's cache."""
    if chosen := os.environ.get("GPT2KIT_WEIGHTS"):
        return Path(chosen).expanduser()
    if Path("weights").is_dir():
        return Path("weights")
    import platformdirs

    return Path(platformdirs.user_cache_dir("gpt2kit", appauthor=False))


def split_source(model: str) -> tuple[str, str | None]:
    """Return a model's canonical name and the source that the name itself tells: "117M-openai" is ("124M", "openai")."""
    if size := canonical_size(model):
        return size, None
    if model.lower().endswith(_OPENAI_SUFFIX) and (
        size := canonical_size(model[: -len(_OPENAI_SUFFIX)])
    ):
        return size, "openai"
    return model, None


def directory_name(model: str, source: str) -> str:
    """Return the name of the directory that a download of the model from that source lands in."""
    name, _ = split_source(model)
    return name.replace("/", "--") + (_OPENAI_SUFFIX if source == "openai" else "")


def holds_model(directory: Path) -> bool:
    """Whether the directory looks like a model, in any format that we read."""
    return any(os.path.isfile(directory / name) for name in _MODEL_FILES)


def find(model: str | Path) -> Path:
    """Return the directory that a path, a size, an alias, a Hub id or the name of a trained model stands for.

    A path wins over a name: anything with a separator, and a folder of the current directory that holds a model. A weights file and the
    prefix of a TensorFlow checkpoint are returned as they are. The user's own models win over those that come with the package. Never asks
    the network, and never takes a name for another one that resembles it. Raises CheckpointNotFoundError, which says what to type.
    """
    name = str(model)
    path = Path(os.path.expanduser(model))
    if "\0" not in name:
        restore(Path(os.path.abspath(path)))
    is_path = (
        isinstance(model, Path)
        or os.sep in name
        or (os.altsep is not None and os.altsep in name)
        or name in (".", "..")
    )
    if os.path.isdir(path) and (is_path or holds_model(path)):
        return path
    for candidate in _candidates(name):
        undo_broken_swap(weights_dir() / candidate)
        if holds_model(weights_dir() / candidate):
            return weights_dir() / candidate
        if holds_model(BUNDLED / candidate):
            return BUNDLED / candidate
    if "\0" not in name and (os.path.isfile(path) or os.path.isfile(f"{path}.index")):
        return path
    raise CheckpointNotFoundError(_what_to_type(model, path), path=path if is_path else None)


def _candidates(name: str) -> list[str]:
    """Return the directory names that a model's name may have, the likeliest first: its own, so that a run called "small" is that run."""
    hidden_or_elsewhere = (
        not name
        or name.startswith(".")
        or os.path.basename(name) != name
        or "\\" in name
        or "\0" in name
    )
    names = [] if hidden_or_elsewhere else [name]
    canonical, source = split_source(name)
    if canonical in SIZES:
        names += (
            [directory_name(canonical, source)]
            if source
            else [directory_name(canonical, "hub"), directory_name(canonical, "openai")]
        )
    elif HUB_ID.fullmatch(name):
        names.append(directory_name(name, "hub"))
    return names


def adapters_alone(path: Path) -> str | None:
    """Say what to do with a folder that holds low-rank adapters and no model; None for any other."""
    if not os.path.isfile(path / ADAPTERS_FILE):
        return None
    return f"{path} holds LoRA adapters, which are no model alone. Run: gpt2kit merge {path} --out {path}-merged"


def _what_to_type(model: str | Path, path: Path) -> str:
    name = str(model)
    canonical, source = split_source(name)
    folder = weights_dir()
    if canonical in SIZES:
        return f"{name} is not on this machine (looked in {folder}). Run: gpt2kit download {canonical}{' --source openai' if source else ''}"
    if advice := adapters_alone(path) or adapters_alone(folder / name):
        return advice
    if isinstance(model, str) and HUB_ID.fullmatch(name):
        return f"there is no directory {name}, and the Hub's {name} is not on this machine (looked in {folder}). Run: gpt2kit download {name}"
    if isinstance(model, Path) or Path(name).name != name:
        return f"there is no directory {name}; for a published model, run: gpt2kit download 124M"
    if os.path.isdir(folder / name) and not name.startswith("."):
        return f"{folder / name} is there but holds no model: expected one of {', '.join(_MODEL_FILES)}"
    here = [model.name for model in installed()]
    close = difflib.get_close_matches(name, here, n=1, cutoff=0.7)
    listed = f" On this machine: {', '.join(here)}." if here else ""
    if close:
        return f"no model is called {name}; did you mean {close[0]}?{listed}"
    if nearest := nearest_size(name):
        return f"no model is called {name}; did you mean {nearest}? Run: gpt2kit download {nearest}.{listed}"
    return f"no model is called {name}.{listed} To download one of {', '.join(SIZES)}, run: gpt2kit download 124M"


def int8_file(path: Path) -> Path:
    """Return where a model's weights in eight bits are kept: beside those at a path, be it a folder, a file or a prefix."""
    return (path / "model" if path.is_dir() else path).with_suffix(INT8_SUFFIX)


def memory_needed(path: Path, dtype: str = "float32", quantize: str | None = None) -> int:
    """Return about how many bytes a model's weights take in memory, going by the file that they lie in; 0 where that does not tell.

    It is a guess, made before anything is checked, but never more than the file has. Weights that are to be converted tell nothing.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if quantize is not None:
        kept = int8_file(path)
        return kept.stat().st_size if kept.is_file() else 0
    if file.suffix != ".safetensors" or not file.is_file():
        return 0
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(min(length, 2**24))
    try:
        entries = [entry for entry in json.loads(header).values() if "dtype" in entry]
        weights = [
            entry for entry in entries if len(entry["shape"]) <= 2
        ]  # a mask, which is no weight, has four dimensions
        n = sum(int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]) for entry in weights)
        stored = {entry["dtype"] for entry in weights}
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        return 0
    wanted = {"float64": "F64", "bfloat16": "BF16", "float16": "F16"}.get(dtype, "F32")
    return n if stored == {wanted} and 0 < n <= file.stat().st_size else 0


@dataclass(frozen=True)
class InstalledModel:
    """A model of weights_dir(), or one that comes with the package."""

    name: str
    path: Path
    size: int  # bytes of everything in the directory
    manifest: Manifest | None  # None for what was not downloaded
    is_bundled: bool = False  # whether it comes with the package


def installed() -> list[InstalledModel]:
    """List the directories of weights_dir() that hold a model, by name, and then the bundled models that none of them hides."""
    models: list[InstalledModel] = []
    with contextlib.suppress(OSError):
        for path in sorted(weights_dir().iterdir()):
            if not path.name.startswith(".") and path.is_dir() and holds_model(path):
                manifest = None
                with contextlib.suppress(
                    CheckpointFormatError
                ):  # a damaged record does not hide the model
                    manifest = Manifest.read(path)
                models.append(InstalledModel(path.name, path, _bytes_in(path), manifest))
    hidden = {model.name for model in models}
    bundled = [
        path for path in sorted(BUNDLED.iterdir()) if holds_model(path) and path.name not in hidden
    ]
    return models + [
        InstalledModel(path.name, path, _bytes_in(path), None, is_bundled=True) for path in bundled
    ]


def _bytes_in(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # it may vanish while we look
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def removable(name: str) -> Path:
    """Return the directory of weights_dir() that a name, a size, an alias or a Hub id means, a model or an unfinished download.

    Never another source's than the one that is named. Raises CheckpointNotFoundError if there is none.
    """
    folder = weights_dir()
    _, source = split_source(name)
    names = [
        candidate
        for candidate in _candidates(name)
        if candidate == name or source or not candidate.endswith(_OPENAI_SUFFIX)
    ]
    for candidate in names:
        target = folder / candidate
        if holds_model(target) or os.path.islink(target) or os.path.isdir(staging_dir(candidate)):
            return target
        if os.path.isdir(target):
            raise CheckpointNotFoundError(
                f"{target} holds no model, so it is left alone", path=target
            )
    if holds_model(BUNDLED / name):
        raise CheckpointError(
            f"{name} comes with gpt2kit and is not removed; a model of your own with that name is taken before it"
        )
    here = ", ".join(model.name for model in installed() if not model.is_bundled) or "none"
    raise CheckpointNotFoundError(f"there is no model {name!r} in {folder}; models there: {here}")


def remove(name: str) -> Path:
    """Delete the model that `removable` finds, and what an unfinished download of it left; return where it was.

    Nothing outside of weights_dir() is touched: a symlink is unlinked, and what it points at stays.
    """
    target = removable(name)
    unfinished = staging_dir(target.name)
    try:
        with locked(target.name, wait=False):
            for path in (target, unfinished):
                if (
                    os.path.islink(path)
                    or holds_model(path)
                    or (path == unfinished and path.is_dir())
                ):
                    delete(path)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be deleted: {error.strerror or error}") from error
    return target


def staging_dir(name: str) -> Path:
    """Return where a download for the directory `name` collects its files until all are there."""
    return weights_dir() / f".{name}.download"


@contextlib.contextmanager
def locked(
    name: str, *, wait: bool = True, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Keep other processes from the directory `name` meanwhile; a lock whose holder was killed is free.

    Calls `waiting` once before it waits for another process. Raises DownloadError instead if it may not wait.
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
    """Give the older model its name back, if a kill came between the two renames of `put_in_place`."""
    if os.path.lexists(previous(target)) and not os.path.lexists(target):
        with locked(target.name):  # a swap that is going on finishes first
            restore(target)
