"""The pictures in docs/images: one of each kind of plot, and small."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit.cli.pictures import plot

IMAGES = Path(__file__).parents[2] / "docs" / "images"
KINDS = [command.name for command in plot.registered_commands if not command.hidden]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_picture(kind: str) -> None:
    start = (IMAGES / f"{kind}.png").read_bytes()[:24]
    assert start.startswith(b"\x89PNG")
    assert 400 <= int.from_bytes(start[16:20]) <= 900  # pixels across


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in IMAGES.iterdir()}
    assert len(sizes) >= len(KINDS) == 19
    assert all(size <= 80_000 for size in sizes.values()), sizes
