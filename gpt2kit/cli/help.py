"""What every command's help has in common: types only where a value is typed, and paragraphs as wide as the terminal."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperArgument, TyperGroup


class Commands(TyperGroup):
    """A group of commands with such help."""

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _without_types(command.get_params(ctx))
            paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
            command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return command


def _without_types(parameters: Any) -> Any:
    """Take away the <bool> of flags, and what an argument's name says better."""
    for parameter in parameters:
        if isinstance(parameter, TyperArgument):
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif parameter.is_flag:
            parameter.metavar = ""
    return parameters
