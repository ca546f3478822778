"""Options of a command made from dataclass fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from gpt2kit.cli.fields import takes, takes_given
from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option


@dataclass(frozen=True, kw_only=True)
class Shape:
    width: int = option(3, "How wide.", at_least=1, group="shape")
    kind: Literal["round", "square"] = option("round", "Which form.")
    stop: tuple[str, ...] = option((), "Where to stop.")
    filled: bool = option(False, "Filled or not.")
    bias: bool | None = option(None, "With a bias or without.")
    hidden: int = 7

    def __post_init__(self) -> None:
        check(self)


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @takes(without=("hidden",), shape=Shape)
    def draw(name: Annotated[str, typer.Argument()], *, shape: Shape, loud: bool = False) -> None:
        """Draw a shape."""
        typer.echo(f"{name} {loud} {shape}")

    return made


def test_the_function_gets_the_dataclass_made_from_what_was_typed(app: typer.Typer) -> None:
    typed = ["x", "--width", "5", "--kind", "square", "--stop", "a", "--stop", "b", "--no_bias"]
    done = CliRunner().invoke(app, typed)
    expected = Shape(width=5, kind="square", stop=("a", "b"), bias=False)
    assert done.output == f"x False {expected}\n"


def test_what_is_not_typed_has_the_default_of_its_field(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["x"]).output == f"x False {Shape()}\n"


def test_the_help_shows_the_text_and_the_default_of_a_field(app: typer.Typer) -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "How wide." in shown
    assert "3" in shown
    assert "shape" in shown
    assert "hidden" not in shown


def test_a_value_out_of_its_range_is_refused_by_the_dataclass(app: typer.Typer) -> None:
    with pytest.raises(ConfigError, match="width is 0"):
        CliRunner().invoke(app, ["x", "--width", "0"], catch_exceptions=False)


@dataclass(frozen=True, kw_only=True)
class Picture:
    title: str = option("", "What is above it.")
    scale: float = option(0.0, "How large.")
    shape: Shape = field(default_factory=Shape)


def test_a_dataclass_within_a_dataclass_becomes_options_of_its_own() -> None:
    made = typer.Typer()

    @made.command()
    @takes(without=("hidden",), picture=Picture)
    def draw(*, picture: Picture) -> None:
        typer.echo(picture)

    done = CliRunner().invoke(made, ["--width", "5", "--title", "x"])
    assert done.output == f"{Picture(title='x', shape=Shape(width=5))}\n"
    shown = CliRunner().invoke(made, ["--help"]).output
    assert "How wide." in shown
    assert "[default: 0.0]" in shown  # a default of 0 was not shown, for 0 == False


@dataclass(frozen=True, kw_only=True)
class Color:
    hue: int = option(0, "Which color.")
    width: int = option(9, "Of the line.")
    depth: int | None = option(None, "How deep.", default="as the width")
    edge: Literal["sharp", "soft", "none"] = option("sharp", "Which edge.")


@pytest.fixture
def painter() -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @takes_given(given=(Shape, Color))
    def paint(*, given: dict[str, Any], loud: bool = False) -> None:
        """Paint a shape."""
        typer.echo(f"{loud} {given}")

    return made


def test_only_what_was_typed_is_given_also_if_it_is_the_default(painter: typer.Typer) -> None:
    assert CliRunner().invoke(painter, []).output == "False {}\n"
    typed = ["--width", "3", "--hue", "2", "--no_filled", "--loud", "--stop", "a"]
    expected = {"width": 3, "stop": ("a",), "filled": False, "hue": 2}
    assert CliRunner().invoke(painter, typed).output == f"True {expected}\n"


def test_a_field_of_several_dataclasses_is_one_option(painter: typer.Typer) -> None:
    shown = CliRunner().invoke(painter, ["--help"]).output
    assert shown.count("--width") == 1
    assert "How wide." in shown
    assert "Of the line." not in shown
    assert "(as the" in shown  # the default in words


def test_a_choice_that_may_be_none_has_a_short_form(painter: typer.Typer) -> None:
    for typed in (["--edge", "none"], ["--no_edge"], ["--edge", "none", "--no_edge"]):
        assert CliRunner().invoke(painter, typed).output == "False {'edge': 'none'}\n"
    shown = " ".join(CliRunner().invoke(painter, ["--help"]).output.replace("│", "").split())
    assert "Which edge. --no_edge: none." in shown
    with pytest.raises(ConfigError, match="--edge and --no_edge are both given; leave one out"):
        CliRunner().invoke(painter, ["--edge", "soft", "--no_edge"], catch_exceptions=False)
