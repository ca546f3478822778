"""run.json: everything that decides how a run goes, which must not change when it is resumed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError, ConfigError, TrainingError
from gpt2kit.fields import build, check, shortened
from gpt2kit.files import read_json, write_whole
from gpt2kit.training.config import TrainConfig

SETTINGS = "run.json"

Command = Literal["train", "finetune"]

_MISSING = object()
_STEPS = ("options.max_steps", "options.epochs", "training.max_steps")  # may grow on resume


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides how a run goes; run.json has the same fields."""

    command: Command
    options: Mapping[str, Any]  # those that were given, by name, and those of the recipe
    corpus: str  # sha256 of text, split and vocabulary
    start: str  # sha256 of the weights before the first step
    model: GPT2Config
    training: TrainConfig
    # Where the run was started, for readers: another device may continue it.
    device: str = field(default="", compare=False)
    # How the run was extended: the step, the number of steps before and now, exact or a new phase.
    history: Sequence[Mapping[str, Any]] = field(default=(), compare=False)
    # A step that the run is on its way back to, until later states and best weights are gone.
    goes_back_to: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check(self)
        is_list = isinstance(self.history, list | tuple)
        if not is_list or not all(
            isinstance(each, dict) and type(each.get("step")) is int for each in self.history
        ):
            raise ConfigError(f"history is {shortened(self.history)}, expected extensions")

    @property
    def last_phase(self) -> int:
        """The step at which the newest phase of the run began, 0 if it had no other."""
        begun = [each["step"] for each in self.history if each.get("kind") == "new phase"]
        return max(begun, default=0)

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Return the settings that a run was started with.

        A field that an older version did not write has its default. Raises TrainingError if there
        is no run, and for a field that is missing, unknown, or has a wrong value, by its name.
        """
        path = folder / SETTINGS
        if not path.exists():
            raise TrainingError(
                f"{folder}: no training run to resume; expected {SETTINGS} in it. "
                "Leave out --resume to start one"
            )
        try:
            values = read_json(path, error=CheckpointError)
            return build(cls, {**values, **_parts(values)}, what=SETTINGS)
        except (CheckpointError, ConfigError) as error:
            raise TrainingError(
                f"{folder} cannot be resumed: {error}. If another version of gpt2kit started this "
                "run, resume it with that one; --force starts it anew"
            ) from error

    def write(self, folder: Path) -> None:
        """Write run.json, whole or not at all."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        write_whole(folder / SETTINGS, text, part=folder / f"{SETTINGS}.tmp")

    def check_resumed_by(self, other: Settings, folder: Path) -> None:
        """Raise TrainingError with the differences unless `other` may continue this run.

        Only the number of steps may differ, and only grow.
        """
        before, now = _flat(asdict(self)), _flat(asdict(other))
        ignored = ("device", "history", "goes_back_to") + (
            _STEPS if self.training.max_steps < other.training.max_steps else ()
        )
        differences = [
            f"{name} was {_shown(before, name)} and is now {_shown(now, name)}"
            for name in sorted(before.keys() | now.keys())
            if name not in ignored and before.get(name, _MISSING) != now.get(name, _MISSING)
        ]
        if differences:
            raise TrainingError(
                f"{folder} was started differently: {'; '.join(differences)}. "
                "Resume with the same, or start another run with --out"
            )


def _parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of run.json that are objects themselves, as far as they are there."""
    kinds: dict[str, type] = {"options": dict, "model": GPT2Config, "training": TrainConfig}
    parts: dict[str, Any] = {}
    for name, kind in kinds.items():
        if name not in values:
            continue
        value = values[name]
        if not isinstance(value, dict):
            raise ConfigError(f"{name} of {SETTINGS} is {shortened(value)}, expected an object")
        parts[name] = value if kind is dict else build(kind, value, what=f"{name} of {SETTINGS}")
    return parts


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names: training.lr."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not given"
    value = values[name]
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:8] + "…"
    return repr(value)
