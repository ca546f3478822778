"""A command over many files, as a value that other processes and machines can be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2kit import __version__
from gpt2kit.bulk import cutting, sources
from gpt2kit.bulk import plan as plans
from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.options import Reading
from gpt2kit.bulk.plan import Plan
from gpt2kit.bulk.work import Models, Output, Work, options_of
from gpt2kit.engine.snapshot import weights_sha256
from gpt2kit.errors import ConfigError
from gpt2kit.tokenizers import identity

# Loads the models on a device, by default where the user said.
Load = Callable[[str | None], Models]
_FIRST_ROWS = 4096  # in which a column has to appear


@dataclass(frozen=True)
class Job:
    """What is computed from which files, and where it goes."""

    inputs: tuple[str, ...]  # files, folders and globs
    out: Path
    work: Work
    reading: Reading
    load: Load
    on_error: Literal["cell", "stop"] = "cell"  # whether a bad row stops the run
    until: float | None = None  # time after which no part is begun, in seconds since 1970

    @property
    def folder(self) -> Folder:
        """The folder of the output."""
        return Folder(self.out)

    def output(self, named: list[tuple[str, Path]]) -> Output:
        """Return the columns of the output."""
        return Output(self.work, self.reading, several=len(named) > 1)

    def agree(self, models: Models) -> Plan:
        """Return the plan, written now if there is none; raises ConfigError if another is there."""
        self.work.check(models)
        named = sources.find(self.inputs, self.folder.folders)
        columns = self.output(named).columns
        self.folder.make()
        identity = self.identity(models)

        def make() -> Plan:
            self.check_columns(named)
            inputs, parts = cutting.cut(named, self.reading.part_rows, self.work.by)
            work = self.work
            return Plan(identity, columns, work.gives, tuple(inputs), tuple(parts), work.buckets)

        return plans.agree(self.out, named, identity, make)

    def check_columns(self, named: list[tuple[str, Path]]) -> None:
        """Raise ConfigError for a column that the first rows of no input have."""
        wanted = [*self.work.reads(), *self.reading.kept]
        wanted += [self.reading.id_field] if self.reading.id_field else []
        found: dict[str, None] = {}
        for _, path in named:
            found |= dict.fromkeys(sources.columns_of(path, _FIRST_ROWS))
            missing = [name for name in wanted if name not in found]
            if not missing:
                return
        if found:  # else no row can be read, as the errors will say
            new = ", ".join(self.work.columns())
            raise ConfigError(
                f"the inputs have no column {missing[0]!r}; they have "
                f"{', '.join(found)[:300]}, and the results {new[:300]}"
            )

    def identity(self, models: Models) -> dict[str, Any]:
        """Return all that changes results: the command, the models, and the options of both."""
        model, observer = models.model, models.observer
        return {
            "gpt2kit": __version__,
            "command": self.work.command,
            "weights": weights_sha256(model),
            "observer": None if observer is None else weights_sha256(observer),
            "vocabulary": identity(models.tokenizer),
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantize": "int8" if model.is_quantized else None,
            **{f"--{name}": value for name, value in options_of(self.work).items()},
            **{f"--{name}": value for name, value in asdict(self.reading).items()},
        }
