"""Command-line options made from dataclass fields: name, type, default, help and group."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from gpt2kit.errors import ConfigError
from gpt2kit.fields import Rule, declared_types, is_union, rules


def takes(
    *, without: tuple[str, ...] = (), **dataclasses: type
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command whose options are a function's own parameters and the fields of dataclasses.

        @takes(sampling=Sampling)
        def generate(prompt: Prompt, *, sampling: Sampling, json: Json = False) -> None: ...

    The function gets each dataclass whole, made from what the user typed; what the dataclass raises
    for a wrong value reaches the user. A field that is a dataclass itself becomes its own fields.
    Fields named in `without` keep their defaults and are no options.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def run(**typed: Any) -> None:
            made = {name: _made(kind, typed, without) for name, kind in dataclasses.items()}
            function(**typed, **made)

        options = {
            name: [each for each in parameters(kind) if each.name not in without]
            for name, kind in dataclasses.items()
        }
        return _with_options(run, function, options)

    return decorate


def takes_given(
    *,
    without: tuple[str, ...] = (),
    **dataclasses: type | tuple[type, ...],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command whose options are fields of dataclasses, and that gets only those typed.

        @takes_given(given=TrainOptions)
        def train(corpus: Corpus, *, given: dict[str, Any], json: Json = False) -> None: ...

    The function gets a dictionary, not a dataclass: options that are not typed may come from
    elsewhere before the dataclass is made. A field that several dataclasses have is one option;
    fields named in `without` are none. A choice with the value "none" has a short form: `--no_x` is
    `--x none`.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        options: dict[str, list[inspect.Parameter]] = {}
        for argument, kinds in dataclasses.items():
            named: dict[str, inspect.Parameter] = {}
            for kind in kinds if isinstance(kinds, tuple) else (kinds,):
                for each in (*parameters(kind, two_ways=True), *_short_forms(kind)):
                    named.setdefault(each.name, each)
            options[argument] = [each for each in named.values() if each.name not in without]

        def run(_context: typer.Context, **typed: Any) -> None:
            made: dict[str, Any] = {}
            for argument, each_option in options.items():
                values = {each.name: typed.pop(each.name) for each in each_option}
                typed_here = {
                    name: _as_field(value)
                    for name, value in values.items()
                    if (source := _context.get_parameter_source(name))
                    and source.name == "COMMANDLINE"
                }
                made[argument] = _in_full(typed_here)
            function(**typed, **made)

        context = inspect.Parameter(
            "_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context
        )
        return _with_options(run, function, options, context)

    return decorate


def _with_options(
    run: Callable[..., None],
    function: Callable[..., None],
    options: Mapping[str, Sequence[inspect.Parameter]],
    *more: inspect.Parameter,
) -> Callable[..., None]:
    """Give `run` a function's name, docstring and parameters, with options in place of some."""
    # Annotations are strings in modules that postpone them; Typer wants the types.
    signature = inspect.signature(function, eval_str=True)
    every = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, own in signature.parameters.items()
        for each in options.get(name, [own])
    ]
    every += more
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in every}
    return run


def parameters(kind: type, *, two_ways: bool = False) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as parameters that Typer understands, nested ones too.

    With `two_ways` each option that is true or false can be turned on and off: --x and --no_x.
    """
    made: list[inspect.Parameter] = []
    declared = declared_types(kind)
    for each in fields(kind):
        if is_dataclass(declared[each.name]):
            made += parameters(declared[each.name], two_ways=two_ways)
            continue
        default = each.default if each.default is not MISSING else None
        rule = rules(kind)[each.name]
        annotation = _annotation(each.name, declared[each.name], default, rule, two_ways)
        made.append(
            inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    return made


_SHORT = "_none_for_"  # begins the name of the parameter behind --no_x


def _short_forms(kind: type) -> list[inspect.Parameter]:
    """Return a flag --no_x, which the help of --x mentions, for each choice that may be "none"."""
    return [
        inspect.Parameter(
            _SHORT + name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option(f"--no_{name}", hidden=True)],
        )
        for name, declared in declared_types(kind).items()
        if _can_be_none(declared)
    ]


def _can_be_none(declared: Any) -> bool:
    return get_origin(declared) is Literal and "none" in get_args(declared)


def _in_full(typed: dict[str, Any]) -> dict[str, Any]:
    """Return typed options with `--x none` in place of `--no_x`."""
    full = {name: value for name, value in typed.items() if not name.startswith(_SHORT)}
    for name in (short.removeprefix(_SHORT) for short in typed.keys() - full.keys()):
        if full.setdefault(name, "none") != "none":
            raise ConfigError(f"--{name} and --no_{name} are both given; leave one out")
    return full


def _made(kind: type, typed: dict[str, Any], without: tuple[str, ...]) -> Any:
    """Take the values of a dataclass's fields from what was typed, and return the dataclass."""
    values = {}
    for name, declared in declared_types(kind).items():
        if isinstance(declared, type) and is_dataclass(declared):
            values[name] = _made(declared, typed, without)
        elif name not in without:
            values[name] = _as_field(typed.pop(name))
    return kind(**values)


def _annotation(name: str, declared: Any, default: Any, rule: Rule, two_ways: bool) -> Any:
    flag = f"--{name}"
    if bool in _alternatives(declared) and (two_ways or default is not False):
        flag = f"--{name}/--no_{name}"
    return Annotated[
        _typer_type(declared),
        typer.Option(
            flag,
            help=rule.help
            + (f" --no_{name}: none." if two_ways and _can_be_none(declared) else ""),
            metavar=rule.metavar,
            rich_help_panel=rule.group or None,
            show_default=rule.default or (default is not False and default not in (None, "", ())),
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
