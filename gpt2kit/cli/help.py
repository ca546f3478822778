"""How the help of every command looks: options in groups, short types, paragraphs of full width."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperArgument, TyperGroup


class Commands(TyperGroup):
    """A group of commands with such help."""

    def get_params(self, ctx: Any) -> Any:
        return _with_short_types(super().get_params(ctx), ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            parameters = _with_short_types(command.get_params(ctx), ctx)
            _hide_lonely_help(parameters)
            paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
            command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return command


def _with_short_types(parameters: Any, ctx: Any) -> Any:
    """Show no type for flags and arguments, whose names say enough, and a short one for options."""
    for parameter in parameters:
        if isinstance(parameter, TyperArgument):
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif parameter.is_flag:
            parameter.metavar = ""
        elif parameter.metavar is None and hasattr(parameter, "display_type"):
            parameter.metavar = _short(parameter.display_type(ctx))
            parameter._get_number_range_help_str = lambda: None
    return parameters


def _short(shown: str) -> str:
    """Return Typer's name of a type in one word: N for <int range>, X for <float>, TEXT for <str>.

    A choice stays as it is: <slide|stop|error>.
    """
    name = shown.strip("<>").removesuffix(" range").removeprefix("list[").removesuffix("]")
    return {"int": "N", "float": "X", "str": "TEXT", "path": "FILE"}.get(name, shown)


def _hide_lonely_help(parameters: Any) -> None:
    """Leave --help out of a help in which every other option stands in a group."""
    options = [each for each in parameters if not isinstance(each, TyperArgument)]
    *others, last = options
    if last.name == "help" and all(each.rich_help_panel for each in others):
        last.hidden = bool(others)
