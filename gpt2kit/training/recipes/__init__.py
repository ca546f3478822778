"""Named training set-ups: toy, names, verdict, dante, shakespeare and others, each a file of options.

The first lines of each file say what it is, on which text, and what loss to expect after how long.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.errors import ConfigError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """A training set-up."""

    name: str
    about: str  # the comment that the file begins with
    options: dict[str, Any]  # of `gpt2kit train`, by their names


def names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read(name: str) -> Recipe:
    """Return the recipe of that name; raises ConfigError if there is none."""
    if name not in names():
        raise ConfigError(f"there is no recipe {name!r}; there are {', '.join(names())}")
    text = (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    lines = text.splitlines()
    first = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    about = "\n".join(line.removeprefix("#").strip() for line in lines[:first])
    return Recipe(name, about, tomllib.loads(text))
