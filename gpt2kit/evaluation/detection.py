"""Detectors: criteria calibrated on human texts and a machine's, kept in a file, and applied.

    detector = Detector.calibrated(made_with, human, machine, names, seed=1)
    detector.save(Path("calibration.json"))
    Detector.read(Path("calibration.json")).verdict(figures, "curvature")

Without a calibration there is no verdict. A detector belongs to the model and the options that its
figures were computed with, and refuses others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2kit import __version__
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.calibration import Calibration, calibrate
from gpt2kit.evaluation.criteria_options import CRITERIA, CriteriaOptions
from gpt2kit.evaluation.receipt import described
from gpt2kit.fields import build
from gpt2kit.files import read_json, write_whole
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer

LIMITS = (
    "A verdict holds for texts like those of the calibration. It cannot tell who wrote a text of "
    "another subject, kind, language or length, one by another machine, or one that was edited, "
    "translated or written by both; it is no evidence against a person."
)

_FORMAT = 1
_LARGEST = 2**30  # bytes of a file of a detector
# What must be the same for figures to be comparable; the device and the model's name may differ.
# The dtype comes first, for it changes the digest of the weights.
_SAME = ("dtype", "quantized", "weights_sha256", "vocabulary_sha256", "n_ctx", "stride", "first")

Figures = Mapping[str, Any]


def made_with(
    model: GPT2,
    tokenizer: Tokenizer | None,
    options: CriteriaOptions,
    observer: GPT2 | None = None,
    *,
    names: Sequence[str] = ("the model", "the observer"),
) -> dict[str, Any]:
    """Return what figures are computed with, for a detector to compare."""
    first, second = names
    return {
        "model": described(first, model, tokenizer, options),
        "observer": described(second, observer, tokenizer, options) if observer else None,
        "binoculars": options.binoculars,
    }


@dataclass(frozen=True)
class Detector:
    """Calibrations of several criteria, and what their figures were computed with."""

    made_with: Mapping[str, Any]  # model, observer (or None), binoculars
    human: Mapping[str, Any]  # texts, left_out; fewest and median tokens of the human texts
    machine: Mapping[str, Any]
    seed: int
    criteria: Mapping[str, Calibration]

    @classmethod
    def calibrated(
        cls,
        made_with: Mapping[str, Any],
        human: Sequence[Figures],
        machine: Sequence[Figures],
        *,
        seed: int,
    ) -> Detector:
        """Calibrate each criterion that both kinds of texts have, from the figures of each text."""
        found = {}
        for name in (name for name, each in CRITERIA.items() if each.machine):
            ours, theirs = (
                [each[name] for each in kind if each.get(name) is not None]
                for kind in (human, machine)
            )
            if ours or theirs:
                higher = CRITERIA[name].machine == "higher"
                found[name] = calibrate(ours, theirs, higher=higher, seed=seed)
        if not found:
            raise ConfigError("no text could be measured, so there is nothing to calibrate")
        return cls(made_with, _counts(human), _counts(machine), seed, found)

    def check(self, made_with: Mapping[str, Any], path: Path) -> None:
        """Raise ConfigError unless figures are made with what the calibration was made with."""
        for part in ("model", "observer"):
            before, now = self.made_with.get(part), made_with.get(part)
            if before is None and now is None:
                continue
            if before is None or now is None:
                change = "no --observer" if before is None else "--observer"
                raise ConfigError(f"{path} was made with {change}; expected the same here")
            for name in _SAME:
                if before.get(name) != now[name]:
                    raise ConfigError(
                        f"{path} does not belong to these figures: {name} of the {part} is "
                        f"{_short(before.get(name))} there, and {_short(now[name])} here; use what "
                        "it was made with, or calibrate again"
                    )
        if self.made_with.get("binoculars") != made_with.get("binoculars"):
            raise ConfigError(f"{path} was made with another --binoculars; calibrate again")

    def calibration(self, name: str) -> Calibration:
        """Return the calibration of a criterion; raises ConfigError if there is none."""
        if name not in self.criteria:
            raise ConfigError(f"the calibration has no {name}; it has {', '.join(self.criteria)}")
        return self.criteria[name]

    def verdict(self, figures: Figures, name: str) -> dict[str, Any]:
        """Return `verdict` and `human_share` of a text, given its figures and a criterion.

        The share is that of human texts which are as machine-like; both are None for a text without
        the figure. A text with fewer tokens than any of the calibration is "too short".
        """
        calibration, figure = self.calibration(name), figures.get(name)
        if figure is None:
            return {"verdict": None, "human_share": None}
        if figures["tokens"] < min(self.human["fewest_tokens"], self.machine["fewest_tokens"]):
            return {"verdict": "too short", "human_share": None}
        machine_like = calibration.machine_like(figure)
        return {
            "verdict": "machine-like" if machine_like else "not told apart",
            "human_share": calibration.human_share(figure),
        }

    # --- the file ---------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write a file that `read` takes, whole or not at all."""
        content = {"gpt2kit": __version__, "format": _FORMAT, **asdict(self), "limits": LIMITS}
        write_whole(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Detector:
        """Read what `save` wrote; raises ConfigError for another file."""
        content = read_json(path, largest=_LARGEST)
        if content.get("format") != _FORMAT or "criteria" not in content:
            raise ConfigError(
                f"{path} is no calibration; expected what gpt2kit detect --calibrate writes"
            )
        try:
            made = {name: content[name] for name in ("made_with", "human", "machine", "seed")}
            criteria = {
                name: _calibration(each, f"{path}: {name}")
                for name, each in content["criteria"].items()
            }
            return cls(**made, criteria=criteria)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is a damaged calibration: {error}") from error


def _counts(figures: Sequence[Figures]) -> dict[str, Any]:
    tokens = sorted(each["tokens"] for each in figures if each["error"] is None)
    return {
        "texts": len(tokens),
        "left_out": len(figures) - len(tokens),
        "fewest_tokens": tokens[0] if tokens else 0,
        "median_tokens": tokens[len(tokens) // 2] if tokens else 0,
    }


def _calibration(values: Mapping[str, Any], what: str) -> Calibration:
    lists = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
    return build(Calibration, lists, what=what)


def _short(value: Any) -> str:
    return str(value)[:12]
