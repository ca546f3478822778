"""Every exception gpt2kit raises on purpose.

    Gpt2KitError
    ├── ConfigError                    a size, field or combination that cannot be (also a ValueError)
    ├── CheckpointError
    │   ├── CheckpointNotFoundError    nothing there, or files missing
    │   ├── CheckpointFormatError      there, but corrupt or of a kind that is not supported
    │   └── CheckpointMismatchError    readable, but not this model
    ├── TokenizerError                 text or files that the vocabulary cannot represent
    ├── ContextLengthError             more tokens than the model has positions
    ├── CorpusError                    a text to train on that is empty, undecodable or too short
    ├── GenerationError                the model's output cannot be sampled from
    ├── TrainingError                  the loss is not finite, or a saved run is not this one
    ├── DownloadError                  network, hash or permission
    └── MissingDependencyError         an extra is not installed

A message names what was expected, what was found and what to do next. The facts are attributes too, for programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


class Gpt2KitError(Exception):
    """Any failure that gpt2kit foresees."""


class Gpt2KitWarning(UserWarning):
    """Something was done differently from what was asked, and the work went on."""


class ConfigError(Gpt2KitError, ValueError):
    """A size, field or combination of fields that cannot be."""


class CheckpointError(Gpt2KitError):
    """A checkpoint cannot be found, read or used."""


class CheckpointNotFoundError(CheckpointError):
    """There is nothing at the path, or some of its files are missing."""

    def __init__(
        self, message: str, *, path: Path | None = None, missing: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.path = path
        self.missing = list(missing)


class CheckpointFormatError(CheckpointError):
    """A file is there, but it is damaged or of a kind that is not supported."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.detail = detail


class CheckpointMismatchError(CheckpointError):
    """The tensors can be read, but they are not those of this model."""

    _SHOWN = 5

    def __init__(
        self,
        path: Path,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        self.path = path
        self.missing = sorted(missing)
        self.unexpected = sorted(unexpected)
        self.misshapen = dict(misshapen or {})  # name -> (expected shape, found shape)
        shapes = [
            f"{name} is {list(found)}, not {list(expected)}"
            for name, (expected, found) in sorted(self.misshapen.items())
        ]
        parts = [
            f"{len(items)} {what} ({', '.join(items[: self._SHOWN])}{', …' if len(items) > self._SHOWN else ''})"
            for what, items in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", shapes),
            )
            if items
        ]
        super().__init__(
            f"{path}: the tensors do not fit the configuration: {'; '.join(parts)}. Is config.json or hparams.json another model's?"
        )


class TokenizerError(Gpt2KitError):
    """Text or files that the vocabulary cannot represent."""


class ContextLengthError(Gpt2KitError):
    """More tokens than the model has positions."""

    def __init__(self, message: str, *, requested: int, limit: int) -> None:
        super().__init__(message)
        self.requested = requested
        self.limit = limit


class CorpusError(Gpt2KitError):
    """A text to train on or compare with cannot be read, or holds too little."""

    def __init__(
        self, message: str, *, path: Path | None = None, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset  # of the first bad byte


class GenerationError(Gpt2KitError):
    """The model's output cannot be sampled from: its weights or its arithmetic are broken."""


class TrainingError(Gpt2KitError):
    """A training cannot go on: its loss is not finite, or its folder holds another run."""

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class DownloadError(Gpt2KitError):
    """A file could not be fetched: network, permission, or bytes that are not the right ones."""

    def __init__(self, message: str, *, url: str | None = None, path: Path | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.path = path


class MissingDependencyError(Gpt2KitError):
    """A feature needs a package that is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"this needs {package}, which is not installed; run: pip install 'gpt2kit[{extra}]'"
        )
        self.extra = extra
