"""Labels that can be read, scales, and files."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from gpt2kit import plots
from gpt2kit.errors import ConfigError, MissingDependencyError
from gpt2kit.plots import readable, save
from gpt2kit.plots.canvas import (
    around_zero,
    check_picture,
    explain_colors,
    name_positions,
    new_figure,
    paint,
    rooted,
    thinned,
)


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (b" the", "␣the"),
        (b"\n\n", "⏎⏎"),
        (b"\t", "⇥"),
        (b"\r", "\\r"),
        (b"\x00", "\\x00"),
        ("perché".encode(), "perché"),
        ("é".encode()[:1], "\\xc3"),  # half a character
        ("🙂", "\\U0001f642"),  # not in the font
        ("日", "\\u65e5"),
        ("日本語", "\\u65e5…"),  # an escape is never cut
        ("a" * 12, "a" * 12),
        ("a" * 13, "a" * 11 + "…"),
        (b"", "''"),
        ("$x$", "$x$"),
    ],
)
def test_every_token_has_a_label_that_can_be_seen(token: bytes | str, label: str) -> None:
    assert readable(token) == label


@pytest.mark.filterwarnings("error")
def test_labels_are_drawn_as_they_are_whatever_they_hold() -> None:
    # "$…$" was a formula once; characters that the font lacks gave boxes and warnings.
    figure = new_figure("$unfinished", 3)
    axes = figure.add_subplot()
    name_positions(axes, "x", ["$\\frac$", "🙂", b"\xff", "_", "\u202e"], 5)
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "$\\frac$",
        "\\U0001f642",
        "\\xff",
        "_",
        "\\u202e",
    ]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())


@pytest.mark.parametrize(
    ("n", "step"), [(1, 1), (5, 1), (10, 1), (11, 2), (30, 5), (90, 10), (500, 50)]
)
def test_labels_are_thinned_to_those_that_have_room(n: int, step: int) -> None:
    assert thinned(n, room=10, each=1) == step


@pytest.mark.parametrize("n", [5, 40, 500])
@pytest.mark.parametrize("token", ["x", " unbelievable"])
def test_labels_of_an_axis_never_overlap(n: int, token: str) -> None:
    figure = new_figure("", 4)
    axes = figure.add_subplot()
    axes.set_xlim(0, n - 1)
    name_positions(axes, "x", [token] * n, 8)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(boxes) > 4
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))


def test_thinned_labels_tell_the_position() -> None:
    axes = new_figure("", 3).add_subplot()
    name_positions(axes, "y", [f"t{position}" for position in range(100)], room=1.6, first=200)
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == [
        "200 t0",
        "210 t10",
        "220 t20",
    ]
    assert axes.get_ylabel() == "position and token"


def test_a_scale_that_cuts_the_largest_numbers_says_so() -> None:
    figure = new_figure("", 3)
    values = np.full((40, 40), 0.1)
    values[0, 0] = 1.0
    for numbers, extend in ((values, "max"), (np.minimum(values, 0.1), "neither")):
        axes = figure.add_subplot()
        image = paint(axes, numbers, norm=rooted(numbers))
        explain_colors(image, [axes], "weight")
        assert image.get_clim() == pytest.approx((0, 0.1))
        assert image.colorbar is not None
        assert image.colorbar.extend == extend


def test_zero_is_in_the_middle_of_a_scale_for_both_signs() -> None:
    assert (
        around_zero(np.array([[-3.0, 1.0]])).vmin,
        around_zero(np.array([[-3.0, 1.0]])).vmax,
    ) == (-3, 3)
    assert around_zero(np.zeros((2, 2))).vmax == 1
    assert around_zero(np.array([[-np.inf, 2.0]])).vmax == 2


@pytest.mark.parametrize(
    ("suffix", "first"),
    [("png", b"\x89PNG\r\n"), ("PNG", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF-")],
)
def test_the_name_of_a_file_is_its_format(tmp_path: Path, suffix: str, first: bytes) -> None:
    path = tmp_path / f"x.{suffix}"
    save(new_figure("title", 2), path)
    content = path.read_bytes()
    assert content.startswith(first)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    save(new_figure("title", 2), path)
    assert path.read_bytes() == content  # no date, no random names


def test_dots_per_inch_are_the_size_of_a_png(tmp_path: Path) -> None:
    save(new_figure("", height=2, width=3), tmp_path / "x.png", dpi=40)
    header = (tmp_path / "x.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4]), int.from_bytes(header[4:])) == (120, 80)


def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"x\.jpg: expected a name that ends in \.png, \.svg or \.pdf"
    ):
        save(Figure(), tmp_path / "x.jpg")
    with pytest.raises(ConfigError, match="there is no folder"):
        check_picture(tmp_path / "none" / "x.png")


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for attempt in (lambda: new_figure("", 3), lambda: check_picture(tmp_path / "x.png")):
        with pytest.raises(MissingDependencyError, match=r"gpt2kit\[plots\]"):
            attempt()


def test_no_picture_touches_pyplot() -> None:
    sources = {
        path: path.read_text(encoding="utf-8") for path in Path(plots.__file__).parent.glob("*.py")
    }
    assert len(sources) > 9
    assert not [
        path.name
        for path, source in sources.items()
        if re.search(r"^ *(from|import) .*pyplot", source, re.MULTILINE)
    ]
