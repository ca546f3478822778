"""Command-line options made from dataclass fields: name, type, default, help and group."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_args, get_origin

import typer

from gpt2kit.fields import Rule, declared_types, is_union, rules


def takes(
    *, without: tuple[str, ...] = (), **dataclasses: type
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command whose options are a function's own parameters and the fields of dataclasses.

        @takes(sampling=Sampling)
        def generate(prompt: Prompt, *, sampling: Sampling, json: Json = False) -> None: ...

    The function gets each dataclass whole, made from what the user typed; what the dataclass raises
    for a wrong value reaches the user. Fields named in `without` keep their defaults.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        names = {
            argument: [each.name for each in fields(kind) if each.name not in without]
            for argument, kind in dataclasses.items()
        }

        def run(**typed: Any) -> None:
            made = {}
            for argument, kind in dataclasses.items():
                values = {name: typed.pop(name) for name in names[argument]}
                made[argument] = kind(**{name: _as_field(value) for name, value in values.items()})
            function(**typed, **made)

        # Annotations are strings in modules that postpone them; Typer wants the types.
        signature = inspect.signature(function, eval_str=True)
        own = [each for name, each in signature.parameters.items() if name not in dataclasses]
        options = [
            each
            for argument, kind in dataclasses.items()
            for each in parameters(kind)
            if each.name in names[argument]
        ]
        every = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *options)]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in every}
        return run

    return decorate


def parameters(kind: type) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as parameters that Typer understands."""
    made = []
    declared = declared_types(kind)
    for each in fields(kind):
        default = each.default if each.default is not MISSING else None
        annotation = _annotation(each.name, declared[each.name], default, rules(kind)[each.name])
        made.append(
            inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    return made


def _annotation(name: str, declared: Any, default: Any, rule: Rule) -> Any:
    flag = f"--{name}"
    if bool in _alternatives(declared) and default is not False:
        flag = f"--{name}/--no_{name}"
    return Annotated[
        _typer_type(declared),
        typer.Option(
            flag,
            help=rule.help,
            metavar=rule.metavar,
            rich_help_panel=rule.group or None,
            show_default=default not in (None, False, ()),
        ),
    ]


def _typer_type(declared: Any) -> Any:
    """Return the type for Typer, which takes lists but not tuples of any length."""
    if get_origin(declared) is tuple:
        return list[get_args(declared)[0]]  # type: ignore[misc]
    return declared


def _alternatives(declared: Any) -> tuple[Any, ...]:
    if is_union(declared):
        return tuple(each for each in get_args(declared) if each is not types.NoneType)
    return (declared,)


def _as_field(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
