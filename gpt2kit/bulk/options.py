"""Options of every command that runs over many files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option

GROUP = "Many files"
_SECONDS = {"h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows are found in the input files, and which of their cells are kept."""

    id_field: str | None = option(
        None, "The key or column that is repeated as `id`.", group=GROUP, metavar="COLUMN"
    )
    columns: str | None = option(
        None,
        "Further keys or columns to repeat in the output, with commas between them.",
        group=GROUP,
        metavar="COLUMNS",
    )
    part_rows: int = option(10_000, "Rows of a part, at most.", group=GROUP, at_least=1)
    max_bytes: int = option(
        2**24, "A row with more bytes gets an error in place of figures.", group=GROUP, at_least=1
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns that are repeated."""
        return tuple(name.strip() for name in (self.columns or "").split(",") if name.strip())


@dataclass(frozen=True, kw_only=True)
class Running:
    """Who does the parts, and when they stop; no option here changes a result."""

    workers: int = option(
        1, "Processes, which share this machine's cores.", group=GROUP, at_least=1
    )
    share: str | None = option(
        None,
        "Do only the i-th of n shares of the parts, such as 3/64 for a task of a Slurm array.",
        group=GROUP,
        metavar="I/N",
    )
    time: str | None = option(
        None, "Begin no part after this time, such as 55m or 1h30m.", group=GROUP, metavar="TIME"
    )
    ray: bool = option(
        False,
        "Let the workers be actors of a Ray cluster: that of RAY_ADDRESS, else one started here.",
        group=GROUP,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.share is not None:
            parse_share(self.share)
        if self.time is not None:
            parse_time(self.time)
        if self.ray and self.share is not None:
            raise ConfigError("--ray hands out all parts itself; leave out --share")


def parse_share(text: str) -> tuple[int, int]:
    """Return i and n of a share "i/n"; i counts from 1."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"share is {text!r}, expected i/n with i from 1 to n, such as 3/64")
    return int(found[1]), int(found[2])


def parse_time(text: str) -> float:
    """Return the seconds that a text such as "55m", "1h30m" or "90s" stands for."""
    found = re.findall(r"(\d{1,9})([hms])", text)
    if not found or "".join(map("".join, found)) != text:
        raise ConfigError(f"time is {text!r}, expected hours, minutes or seconds, such as 1h30m")
    return float(sum(int(number) * _SECONDS[unit] for number, unit in found))
