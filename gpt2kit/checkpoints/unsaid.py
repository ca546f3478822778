"""What a file of weights alone does not say about its model, and the user may."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.config import Activation
from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option


@dataclass(frozen=True, kw_only=True)
class Unsaid:
    """What a file of weights alone does not say about its model; None is the program's own value.

    A file that says it, such as config.json, is not overruled: with one, these are refused.
    """

    n_head: int | None = option(
        None,
        "Attention heads, for a file that does not say them. Default: width / 64.",
        group="Model",
        at_least=1,
    )
    activation_function: Activation | None = option(
        None, "Of the MLP, for a file that does not say it.", group="Model"
    )
    norm_first: bool | None = option(
        None,
        "Normalize before attention and MLP, or after, for a file that does not say it.",
        group="Model",
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def refuse(self, path: Path) -> None:
        """Raise ConfigError if anything is given, since the file says it itself."""
        if self.given:
            raise ConfigError(
                f"{path}: {', '.join(self.given)} cannot be given, because the model's own files "
                "say it; leave it out"
            )
