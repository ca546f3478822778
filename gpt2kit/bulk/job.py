"""A command over many files, as a value that other processes and machines can be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2kit import __version__
from gpt2kit.bulk import plan as plans
from gpt2kit.bulk import sources
from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.options import Reading
from gpt2kit.bulk.plan import Plan
from gpt2kit.bulk.sources import Input, Part
from gpt2kit.bulk.work import Output, Work, options_of
from gpt2kit.engine.snapshot import weights_sha256
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, identity, require_tokenizer

# Loads the model on a device, by default where the user said.
Load = Callable[[str | None], tuple[GPT2, Tokenizer | None]]


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

    def agree(self, model: GPT2, tokenizer: Tokenizer | None) -> Plan:
        """Return the plan, written now if there is none; raises ConfigError if another is there."""
        self.work.check(model, tokenizer)
        named = sources.find(self.inputs)
        columns = self.output(named).columns
        self.folder.make()
        found = self.identity(model, tokenizer)

        def make(inputs: list[Input], parts: list[Part]) -> Plan:
            return Plan(found, columns, self.work.gives, tuple(inputs), tuple(parts))

        return plans.agree(self.out, named, found, make, self.reading.part_rows)

    def identity(self, model: GPT2, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Return all that changes results: the command, the model, and the options of both."""
        tokenizer = require_tokenizer(tokenizer, "the model")
        return {
            "gpt2kit": __version__,
            "command": self.work.command,
            "weights": weights_sha256(model),
            "vocabulary": identity(tokenizer),
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantize": "int8" if model.is_quantized else None,
            **{f"--{name}": value for name, value in options_of(self.work).items()},
            **{f"--{name}": value for name, value in asdict(self.reading).items()},
        }
