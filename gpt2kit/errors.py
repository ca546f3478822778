"""Every exception that gpt2kit raises on purpose.

    Gpt2KitError
    ├── ConfigError                    an invalid field, option or combination (also a ValueError)
    ├── FileError                      a file is missing, damaged or of another kind
    ├── CheckpointError
    │   ├── CheckpointNotFoundError    nothing is there, or files are missing
    │   ├── CheckpointFormatError      a file is damaged or of an unsupported kind
    │   └── CheckpointMismatchError    the tensors are readable, but not those of this model
    ├── TokenizerError                 text or files that the vocabulary cannot represent
    ├── ContextLengthError             more tokens than the model has positions
    ├── CorpusError                    a text to train on is empty, undecodable or too short
    │   └── BadRowError                a row of a table cannot be measured, and the run shall stop
    ├── GenerationError                the model's output cannot be sampled from
    ├── TrainingError                  the loss is not finite, or a saved run is another one
    ├── DownloadError                  network, hash or permission
    ├── MissingDependencyError         an optional package is not installed
    └── OutOfMemoryError               the machine or its GPU has too little

All of them are exported by `gpt2kit`. A message says what was expected, what was found and what
to do next; attributes hold the same facts for programs:

    try:
        model, tokenizer = gpt2kit.load("124M")
    except gpt2kit.CheckpointNotFoundError:
        gpt2kit.download("124M")
    except gpt2kit.Gpt2KitError as error:
        sys.exit(f"error: {error}")
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


class Gpt2KitError(Exception):
    """Any failure that gpt2kit foresees.

    try:
        gpt2kit.finetune("divina.txt")
    except gpt2kit.Gpt2KitError as error:
        print(error)  # one line that says what to do
    """

    @classmethod
    def for_file(cls, path: Path, detail: str, *, missing: bool = False) -> Gpt2KitError:
        """Return an error of this kind about a file; `missing` if there is no such file."""
        return cls(f"{path}: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with the message alone, which not every class takes.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    cls: type[Gpt2KitError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> Gpt2KitError:
    """Return a copied or unpickled error without running its __init__."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


class Gpt2KitWarning(UserWarning):
    """Something was done differently from what was asked, and the work continued.

    warnings.simplefilter("error", gpt2kit.Gpt2KitWarning)  # stop instead
    """


class ConfigError(Gpt2KitError, ValueError):
    """A field, an option or a combination of them is invalid.

    try:
        config = gpt2kit.GPT2Config(n_embd=100, n_head=3)
    except gpt2kit.ConfigError as error:
        print(error)  # names the field, its value and the rule
    """


class FileError(Gpt2KitError):
    """A file is missing, damaged or of another kind than expected.

    try:
        record = gpt2kit.files.read_json(path)
    except gpt2kit.FileError as error:
        print(f"skipped {error.path}: {error.detail}")
    """

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.detail = detail

    @classmethod
    def for_file(cls, path: Path, detail: str, *, missing: bool = False) -> FileError:
        """Return an error of this kind about a file."""
        return cls(path, detail)


class CheckpointError(Gpt2KitError):
    """A checkpoint cannot be found, read or used.

    try:
        model, tokenizer = gpt2kit.load("weights/mine")
    except gpt2kit.CheckpointError as error:
        print(error)
    """

    @classmethod
    def for_file(cls, path: Path, detail: str, *, missing: bool = False) -> CheckpointError:
        """Return CheckpointNotFoundError for a missing file, else CheckpointFormatError."""
        if missing:
            return CheckpointNotFoundError(f"{path}: {detail}", path=path, missing=[path.name])
        return CheckpointFormatError(path, detail)


class CheckpointNotFoundError(CheckpointError):
    """There is nothing at the path, or some of its files are missing.

    try:
        model, tokenizer = gpt2kit.load("124M")
    except gpt2kit.CheckpointNotFoundError:
        gpt2kit.download("124M")
    """

    def __init__(
        self, message: str, *, path: Path | None = None, missing: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.path = path
        self.missing = list(missing)  # names of files


class CheckpointFormatError(CheckpointError):
    """A file is damaged or of a kind that is not supported.

    try:
        model, tokenizer = gpt2kit.load("124M")
    except gpt2kit.CheckpointFormatError as error:
        print(f"{error.path} is unusable: {error.detail}")
    """

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.detail = detail


class CheckpointMismatchError(CheckpointError):
    """The tensors are readable, but they are not those of this model.

    try:
        model, tokenizer = gpt2kit.load("weights/mine")
    except gpt2kit.CheckpointMismatchError as error:
        print(error.missing, error.unexpected, error.misshapen)
    """

    _SHOWN = 5  # names of each kind in the message; the attributes have all
    _ADVICE = "Does config.json or hparams.json belong to another model?"

    def __init__(
        self,
        path: Path,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
        advice: str | None = None,
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
            f"{len(names)} {what} ({self._first(names)})"
            for what, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", shapes),
            )
            if names
        ]
        super().__init__(
            f"{path}: the tensors do not fit the configuration: {'; '.join(parts)}. "
            f"{self._transposed() or advice or self._ADVICE}"
        )

    def _transposed(self) -> str | None:
        """Return what to ask if every tensor of another shape is a transposed matrix."""
        shapes = self.misshapen.values()
        if shapes and all(found == expected[::-1] for expected, found in shapes):
            return "The matrices are transposed: is this minGPT's, or another program's nn.Linear?"
        return None

    @classmethod
    def _first(cls, names: Sequence[str]) -> str:
        return ", ".join([*names[: cls._SHOWN], *(["…"] if len(names) > cls._SHOWN else [])])


class TokenizerError(Gpt2KitError):
    """A text cannot be written with the vocabulary, or the vocabulary's files are damaged.

    try:
        ids = tokenizer.encode("œuvre")
    except gpt2kit.TokenizerError as error:
        print(error)  # names the character and the nearest ones

    `option` is an option that would help, with its value, on a command line that has it.
    """

    def __init__(self, message: str, *, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class ContextLengthError(Gpt2KitError):
    """There are more tokens than the model has positions.

    try:
        logits = model(ids)
    except gpt2kit.ContextLengthError as error:
        logits = model(ids[:, -error.limit :])
    """

    def __init__(self, message: str, *, requested: int, limit: int) -> None:
        super().__init__(message)
        self.requested = requested  # tokens
        self.limit = limit  # positions of the model


class CorpusError(Gpt2KitError):
    """A text to train on or compare with cannot be read, or holds too little.

    try:
        gpt2kit.finetune("divina.txt")
    except gpt2kit.CorpusError as error:
        print(error.path, error.offset)
    """

    def __init__(
        self, message: str, *, path: Path | None = None, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset  # of the first bad byte

    @classmethod
    def for_file(cls, path: Path, detail: str, *, missing: bool = False) -> CorpusError:
        """Return an error of this kind about a file."""
        return cls(f"{path}: {detail}", path=path)


class BadRowError(CorpusError):
    """A row of a table cannot be measured, and the user wants the run to stop then."""


class GenerationError(Gpt2KitError):
    """The model's output cannot be sampled from: the logits are not finite.

    try:
        text = gpt2kit.generate(model, tokenizer, prompt)
    except gpt2kit.GenerationError:
        model, tokenizer = gpt2kit.load("124M", dtype="float32")
    """


class TrainingError(Gpt2KitError):
    """Training cannot continue: the loss is not finite, or the folder holds another run.

    try:
        gpt2kit.finetune("divina.txt")
    except gpt2kit.TrainingError as error:
        print(f"stopped at step {error.step}: {error}")
    """

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class DownloadError(Gpt2KitError):
    """A file could not be fetched: no connection, no permission, or other bytes than expected.

    try:
        path = gpt2kit.download("124M")
    except gpt2kit.DownloadError:
        path = gpt2kit.download("124M", source="openai")
    """

    def __init__(self, message: str, *, url: str | None = None, path: Path | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.path = path


class MissingDependencyError(Gpt2KitError):
    """A feature needs a package that is not installed.

    try:
        figure = gpt2kit.plots.attention(trace, tokens)
    except gpt2kit.MissingDependencyError as error:
        print(f"pip install 'gpt2kit[{error.extra}]'")
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"this needs {package}, which is not installed; run: pip install 'gpt2kit[{extra}]'"
        )
        self.extra = extra


class OutOfMemoryError(Gpt2KitError):
    """The machine or its GPU has too little memory for what was asked.

    try:
        gpt2kit.finetune("divina.txt", batch_size=64)
    except gpt2kit.OutOfMemoryError:
        gpt2kit.finetune("divina.txt", batch_size=8)
    """


@contextlib.contextmanager
def advice_on_memory(advice: str | Callable[[], str]) -> Iterator[None]:
    """Raise an OutOfMemoryError that ends with `advice` if the block runs out of memory.

    An OutOfMemoryError that the block raises passes, with the advice of whoever raised it.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = advice if isinstance(advice, str) else advice()
        raise OutOfMemoryError(f"not enough memory; {text}") from error


def is_failure(error: BaseException) -> bool:
    """Whether an exception is an error, and not a request to end the program.

    A panic of a library that is written in Rust is an error, although it is no Exception.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left.

    Python and NumPy raise MemoryError, the system OSError with ENOMEM, and torch its own class for
    a GPU. Two raise a plain RuntimeError, told from others by its text: torch's CPU allocator, and
    Python for a thread that cannot have a stack.
    """
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    texts = ("DefaultCPUAllocator", "can't start new thread")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


# Tracebacks show the names that users import: gpt2kit.ConfigError, not gpt2kit.errors.ConfigError.
for _class in list(globals().values()):
    if isinstance(_class, type) and issubclass(_class, (Gpt2KitError, Gpt2KitWarning)):
        _class.__module__ = "gpt2kit"
