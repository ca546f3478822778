"""Recipes: named sets of training options, each with the loss that was measured with it.

A recipe is a file of options of `gpt2kit train`. Its first lines, comments, say on which text it
was measured, what it reached and how long it took. A series is a file with nothing but `steps`, the
names of recipes that are trained in turn.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.errors import ConfigError
from gpt2kit.fields import build
from gpt2kit.training.options import TrainOptions

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """A named set of options for `train`."""

    name: str
    about: str  # the comment at the beginning of the file
    options: dict[str, Any]  # by the names of TrainOptions, and checked by it
    steps: tuple[str, ...] = ()  # of a series: its recipes, and no options

    @property
    def adds(self) -> str:
        """What a recipe of a series adds to the one before it: its first line after the colon."""
        return self.about.splitlines()[0].partition(": ")[2]


def names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Recipe:
    """Return a recipe by its name; raises ConfigError for an unknown or a wrong one."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        found = f"did you mean {near[0]}? All" if near else "all"
        raise ConfigError(f"there is no recipe {name!r}; {found}: {', '.join(names())}")
    return parse(name, (FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Recipe:
    """Return the recipe in the text of its file; see `read`."""
    lines = text.splitlines()
    n_about = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    about = "\n".join(line.removeprefix("#").strip() for line in lines[:n_about])
    options = tomllib.loads(text)
    steps = tuple(options.pop("steps", ()))
    if steps and options:
        raise ConfigError(f"recipe {name} has steps, so it cannot have {min(options)}, too")
    build(TrainOptions, options, what=f"recipe {name}")
    return Recipe(name, about, options, steps)
